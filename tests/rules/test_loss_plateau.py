from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.records import Wiring
from gradscope.rules.loss_plateau import LossPlateau
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed
from tests.timelines import sgd

WOBBLE = np.tile([0.001, -0.002, 0.003, -0.001, 0.002, -0.003, 0.0], 100)  # no trend, for sure
LN4 = math.log(4)
UNKNOWN = Wiring(graphs=3)


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossPlateau().check(timeline))


def run(level: float | np.ndarray[Any, Any], *, total: int = 150, pulses: Any = None, **changes: Any) -> Timeline:
    losses = level + WOBBLE[:total]
    return build(steps=(), total=total, pulses={"loss": losses, **(pulses or {})}, **changes)


def test_a_classifier_that_stays_at_chance_is_found() -> None:
    (hit,) = hits(run(LN4))
    assert (hit.first_step, hit.last_step) == (0, 149)
    assert hit.evidence["reference_loss"] == pytest.approx(LN4)
    assert "the best constant prediction has 1.386" in hit.message
    assert hit.severity is Severity.WARNING


def test_stays_a_warning_as_a_task_may_have_little_to_learn() -> None:
    (hit,) = hits(run(LN4, total=600))
    assert hit.severity is Severity.WARNING


@pytest.mark.parametrize(("share", "count"), [(0.78, 0), (0.83, 1)])
def test_four_fifths_of_the_constant_prediction_is_the_bound(share: float, count: int) -> None:
    assert len(hits(run(share * LN4))) == count


@pytest.mark.parametrize(("share", "count"), [(0.9, 0), (1.0, 1)])
def test_a_loss_that_came_down_to_it_has_to_be_nearer(share: float, count: int) -> None:
    levels = np.where(np.arange(250) < 5, 9.0, share * LN4)
    found = hits(run(levels, total=250))
    assert len(found) == count
    assert all(hit.first_step == 150 for hit in found)


@pytest.mark.parametrize(("share", "count"), [(0.97, 0), (1.0, 1)])
def test_the_way_down_to_a_constant_prediction_is_no_progress_until_it_is_below(share: float, count: int) -> None:
    step = np.arange(200)
    levels = share * LN4 * np.maximum(2 - step / 20, 1)  # whose trend over all 200 losses is down
    found = hits(run(levels, total=200))
    assert len(found) == count
    assert all("in the last 100 steps" in hit.message for hit in found)


def test_far_above_a_constant_prediction_the_way_down_is_progress() -> None:
    step = np.arange(200)
    assert not hits(run(3 * LN4 * np.maximum(2 - step / 20, 1), total=200))


@pytest.mark.parametrize(("total", "count"), [(99, 0), (100, 1)])
def test_a_hundred_losses_are_needed(total: int, count: int) -> None:
    assert len(hits(run(LN4, total=total))) == count


@pytest.mark.parametrize(("total", "count"), [(199, 0), (200, 1)])
def test_two_hundred_are_needed_where_the_level_is_not_known(total: int, count: int) -> None:
    assert len(hits(run(5.0, total=total, wiring=UNKNOWN))) == count


def test_where_the_level_is_not_known_the_loss_must_be_where_it_started() -> None:
    down = np.where(np.arange(250) < 30, 5.0, 4.8)
    assert not hits(run(down, total=250, wiring=UNKNOWN))


def test_slow_progress_is_progress() -> None:
    assert not hits(run(LN4 - 0.001 * np.arange(150)))


def test_a_warm_up_has_not_begun_to_count() -> None:
    assert not hits(run(LN4, pulses={"learning_rate": lambda step: 1e-3 * step}))
    assert not hits(run(LN4, pulses={"learning_rate": lambda step: 1e-3 * min(step, 80)}))
    assert len(hits(run(LN4, total=200, pulses={"learning_rate": lambda step: 1e-3 * min(step, 80)}))) == 1


def test_losses_of_several_players_or_below_zero_are_not_judged() -> None:
    assert not hits(run(LN4, optimizers=[sgd(), sgd()]))
    assert not hits(run(LN4, shared_process=True))
    assert not hits(run(0.0, total=250, wiring=UNKNOWN))


def test_is_silent_on_healthy_and_on_converged_runs() -> None:
    assert not hits(build())
    assert not hits(run(np.maximum(1.3 * np.exp(-np.arange(400) / 20), 0.05), total=400))


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert not hits(run(np.where(np.arange(150) == 140, math.nan, LN4)))
    for value in (math.nan, math.inf, -math.inf):
        hits(poisoned(value))
        columns = dict.fromkeys(regressed(), value)
        hits(build(total=200, columns=columns, pulses={"loss": value}, wiring=one_loss(baseline=1.0)))
        hits(build(total=200, columns=regressed(), pulses={"loss": value}, wiring=one_loss(baseline=1.0)))
    hits(run(LN4, pulses={"learning_rate": math.nan}))


def test_a_variance_of_the_first_batch_that_no_other_has_is_no_level() -> None:
    def at(std: float) -> Timeline:
        losses = {"loss": lambda step: 5.0 if step < 20 else 11.0 + WOBBLE[step]}
        return build(total=300, pulses=losses, columns=regressed(std=std), wiring=one_loss(baseline=12.8))

    assert not hits(at(1.1)) and hits(at(3.5))


def regression(left: Callable[[int], float], variance: Callable[[int], float]) -> Timeline:
    """What is left of the variance of each batch's targets."""
    columns = {**regressed(), "loss.target_rms": lambda step: math.sqrt(variance(step))}
    losses = {"loss": lambda step: left(step) * variance(step)}
    return build(total=120, pulses=losses, columns=columns, wiring=one_loss(baseline=variance(0)))


def test_a_squared_error_is_measured_by_its_own_batches_where_the_first_was_an_easy_one() -> None:
    def of_the_first(step: int) -> float:
        return 0.5 if step == 0 else 1.0

    assert hits(regression(lambda step: 1.0 + WOBBLE[step], of_the_first))
    assert not hits(regression(lambda step: 0.7 + WOBBLE[step], of_the_first))


def test_what_the_batches_of_long_ago_showed_says_nothing_of_now() -> None:
    died = {"loss": lambda step: 0.5 if step < 30 else 1.0 + WOBBLE[step]}
    seen_early = build(steps=range(30), total=400, pulses=died, columns=regressed(), wiring=one_loss(baseline=1.0))
    assert hits(seen_early)


def test_a_squared_error_that_comes_down_beside_its_batches_variances_is_progress() -> None:
    def varied(step: int) -> float:
        return (0.7, 1.4, 1.0, 0.8, 1.2)[step // 5 % 5] + 0.002 * step

    assert hits(regression(lambda step: 1.0 + WOBBLE[step], varied))
    assert not hits(regression(lambda step: 0.99 - 0.0012 * step, varied))


def test_targets_with_heavy_tails_have_no_level() -> None:
    def sparse(step: int) -> float:
        return 1.0 if step < 12 or step % 2 else 40.0

    assert not hits(regression(lambda step: 1.0 + WOBBLE[step], sparse))
    assert hits(regression(lambda step: 1.0 + WOBBLE[step], lambda step: 1.0 if step < 12 or step % 2 else 3.0))
    assert not hits(regression(lambda step: 1.0 + WOBBLE[step], lambda step: 40.0 if step % 5 == 1 else 1.0))


@pytest.mark.parametrize(("scatter", "total", "count"), [(0.2, 110, 1), (0.4, 130, 0), (0.4, 200, 1), (0.6, 200, 0)])
def test_scattering_losses_take_longer_to_show_that_they_have_no_trend(scatter: float, total: int, count: int) -> None:
    wave = np.tile([1.0, -1.0, 0.5, -0.5, -1.0, 1.0, -0.5, 0.5], total)[:total]
    assert len(hits(run(LN4 * (1 + scatter * wave), total=total))) == count


def test_a_squared_error_of_several_tasks_is_measured_by_all_of_them() -> None:
    def tasks(left: float) -> list[Hit]:
        mean, rms = {"(loss)": 0.0, "(other)": 0.0}, {"(loss)": 0.5, "(other)": 1.5}  # variances of 0.25 and 2.25
        columns = {"loss.target_mean": mean, "loss.target_rms": rms, "loss.weight": 0.5}
        wiring, losses = one_loss(baseline=0.25), ("(loss)", "(other)")
        return hits(
            build(total=150, pulses={"loss": left * 1.25 + WOBBLE[:150]}, columns=columns, wiring=wiring, losses=losses)
        )

    assert not tasks(0.75)
    assert tasks(1.0)[0].evidence["reference_loss"] == pytest.approx(1.25)
