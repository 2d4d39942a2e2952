"""When the targets of a regression count as out of scale."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.unscaled_target import UnscaledTarget
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

ADAM = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8, "beta1": 0.9, "beta2": 0.999})
FAR = regressed(mean=5000.0, std=1000.0)
LONG_STEPS = {"update.ratio": lambda step: 150.0 if step == 0 else 0.0}
AT_VARIANCE = {"loss": lambda step: 2.6e7 if step == 0 else 1e6}


def hits(timeline: Timeline) -> list[Hit]:
    return list(UnscaledTarget().check(timeline))


def run(columns: dict[str, Any], *, kind: str = "mse", **given: Any) -> Timeline:
    baseline = columns["loss.target_signal"] ** 2 if kind == "mse" else None
    return build(columns=columns, wiring=one_loss(kind, baseline=baseline), **given)


def test_names_targets_far_from_zero_with_the_remedy_worked_out() -> None:
    (hit,) = hits(run({**FAR, **LONG_STEPS}, pulses=AT_VARIANCE, total=150))
    assert hit.severity is Severity.CRITICAL
    assert hit.modules == ("layers.4",)
    assert (hit.evidence["target_mean"], hit.evidence["target_std"]) == (5000.0, pytest.approx(1000.0, rel=1e-3))
    y, names = 7000.0, {}
    exec(f"y = {y}\n{hit.remedy.code}", names)
    assert names["y"] == pytest.approx(2.0, rel=1e-3)


def test_a_first_loss_far_above_the_variance_is_enough() -> None:
    offset = regressed(mean=110.0, std=10.5)
    high = {"loss": lambda step: 110.0**2}
    assert hits(run(offset, pulses=high))[0].severity is Severity.CRITICAL
    assert not hits(run(offset, pulses={"loss": lambda step: 9 * 10.5**2 - step}, steps=range(5)))


def test_adam_that_stands_still_after_a_hundred_steps_shows_it() -> None:
    far = regressed(std=1000.0)
    (hit,) = hits(run(far, pulses={"loss": 1e6, "learning_rate": 1e-3}, optimizers=(ADAM,)))
    assert "1e+06 steps away" in hit.message
    assert hit.severity is Severity.CRITICAL
    assert not hits(run(far, pulses={"loss": 1e6}, optimizers=(ADAM,), steps=range(12)))


def test_is_an_aside_where_the_loss_comes_down() -> None:
    works = {"loss": lambda step: 2.6e7 * math.exp(-step / 10)}
    assert hits(run(FAR, pulses=works))[0].severity is Severity.INFO


def test_an_error_that_fell_and_is_above_a_constant_predictions_does_not_work() -> None:
    def of(outputs: float, last: float) -> list[Severity]:
        falls = {"loss": lambda step: last + 1000.0 * math.exp(-step / 50), "learning_rate": 1e-3}
        columns = {**FAR, "loss.input_mean": outputs}
        found = hits(run(columns, kind="smooth_l1", pulses=falls, optimizers=(ADAM,), total=150))
        return [hit.severity for hit in found]

    assert of(900.0, 4000.0) == [Severity.WARNING]
    assert not of(900.0, 500.0) and not of(4900.0, 500.0)


def test_steps_that_went_into_the_scale_are_counted() -> None:
    def of(crossing: int, total: int) -> list[Severity]:
        """An absolute error that falls from three deviations to half of one, past one deviation at ``crossing``."""
        ages = {**regressed(mean=42.0, std=14.0), "loss.input_mean": 42.0}
        falls = {"loss": lambda step: max(42 - 28 * step / crossing, 7.0), "learning_rate": 1e-3}
        found = hits(run(ages, kind="l1", pulses=falls, optimizers=(ADAM,), total=total))
        assert all("of" in hit.message and hit.evidence["steps_above_constant"] >= crossing for hit in found)
        return [hit.severity for hit in found]

    assert of(70, 126) == [Severity.WARNING]
    assert not of(70, 300)  # less than a third
    assert not of(40, 101)  # few


def test_a_loss_that_never_came_down_to_what_the_mean_costs_is_late() -> None:
    ages = {**regressed(mean=42.0, std=14.0), "loss.input_mean": 20.0}
    falls = {"loss": lambda step: 45 - 0.2 * step, "learning_rate": 1e-3}
    (hit,) = hits(run(ages, kind="l1", pulses=falls, optimizers=(ADAM,), total=120))
    assert hit.severity is Severity.WARNING and hit.evidence["steps_above_constant"] == 120


def test_is_an_aside_at_first_where_steps_are_short() -> None:
    assert hits(run(FAR, pulses={"loss": 2.6e7}, steps=range(3)))[0].severity is Severity.INFO
    assert hits(run({**FAR, **LONG_STEPS}, pulses={"loss": 2.6e7}, steps=range(3)))[0].severity is Severity.WARNING


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (9.0, 1.0), (0.5, 0.3), (0.0, 9.9), (7.0, 0.0)])
def test_ordinary_and_constant_targets_are_left_alone(mean: float, std: float) -> None:
    assert not hits(run({**regressed(mean=mean, std=std), **LONG_STEPS}, pulses={"loss": 100.0}))


def test_only_regressions_are_judged() -> None:
    assert hits(run({**FAR, **LONG_STEPS}, kind="smooth_l1", pulses={"loss": 5000.0}))
    assert not hits(run({**FAR, **LONG_STEPS}, kind="bce", pulses={"loss": 5000.0}))
    assert not hits(build(columns=LONG_STEPS))


def width(outputs: float, *, mean: float = 2000.0, std: float = 500.0, kind: str = "gaussian_nll", **given: Any) -> list[Hit]:
    falls = {"loss": lambda step: 3e6 * math.exp(-step / 90), "learning_rate": 1e-3}
    columns = {**regressed(mean=mean, std=std), "loss.input_mean": outputs, "update.ratio": 0.003}
    return hits(build(columns=columns, wiring=one_loss(kind), optimizers=(ADAM,), **{"pulses": falls, **given}))


@pytest.mark.parametrize("kind", ["gaussian_nll", "laplace_nll"])
def test_a_likelihood_that_falls_with_outputs_far_from_the_targets_does_not_work(kind: str) -> None:
    (hit,) = width(40.0, kind=kind)
    assert hit.severity is Severity.WARNING and "2e+06 steps away" in hit.message
    assert width(990.0)[0].severity is Severity.WARNING  # just over two deviations off
    assert not width(1010.0)
    assert width(40.0, steps=range(20))[0].severity is Severity.INFO
    assert not width(0.1, mean=0.0, std=1.0)


def test_players_against_one_another_are_left_alone() -> None:
    assert not hits(run({**FAR, **LONG_STEPS}, pulses=AT_VARIANCE, shared_process=True))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf), run(regressed())):
        assert not hits(timeline)
