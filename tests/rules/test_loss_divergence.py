from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.records import Wiring
from gradscope.rules.loss_divergence import LossDivergence
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned
from tests.timelines import sgd

REGRESSION = Wiring((LossInfo("mse", "MseLossBackward0", "mean", (32, 1), (32, 1)),), graphs=3)
NOISE = np.random.default_rng(0).exponential(size=400)


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossDivergence().check(timeline))


def run(loss: Any, *, total: int = 100, gradient: Any = 1.0, **changes: Any) -> Timeline:
    return build(steps=(), total=total, pulses={"loss": loss, "gradient_norm": gradient}, **changes)


def test_a_loss_that_grows_step_by_step_is_found() -> None:
    (hit,) = hits(run(lambda step: 1.4 * 1.2**step, wiring=REGRESSION))
    assert hit.first_step == 13  # 1.4 * 1.2**13 is the first above ten times 1.4
    assert hit.last_step == 99
    assert hit.severity is Severity.CRITICAL
    assert "rose from 1.4, where it started" in hit.message


def test_a_loss_that_jumps_and_stays_is_found() -> None:
    (hit,) = hits(run(lambda step: 1.4 if step == 0 else 5e4))
    assert hit.first_step == 1


def test_a_loss_that_grows_until_it_is_nan_is_found() -> None:
    (hit,) = hits(run([1.4, 90.0, 3e7, math.nan], total=4))
    assert hit.evidence["loss_after"] == pytest.approx(3e7)


def test_a_loss_that_turns_nan_without_growth_is_not_meant() -> None:
    assert not hits(run(lambda step: 1.4 if step < 50 else math.nan))
    assert not hits(run(math.nan))


@pytest.mark.parametrize(("end", "count"), [(2.9, 0), (3.1, 1)])
def test_the_bound_is_three_times_the_start_for_classifiers(end: float, count: int) -> None:
    assert len(hits(run(lambda step: math.log(4) if step < 10 else end * math.log(4)))) == count


@pytest.mark.parametrize(("end", "severity"), [(9.9, None), (10.1, Severity.WARNING), (101.0, Severity.CRITICAL)])
def test_the_bound_is_ten_times_the_start_for_losses_without_a_scale(end: float, severity: Severity | None) -> None:
    found = hits(run(lambda step: 1.0 if step < 10 else end, wiring=REGRESSION))
    assert [hit.severity for hit in found] == ([severity] if severity is not None else [])


def test_a_swing_that_comes_back_is_not_meant() -> None:
    assert not hits(run(lambda step: 500.0 if 40 < step < 60 else 1.0))


def test_a_first_loss_that_is_small_by_chance_is_not_meant() -> None:
    losses = NOISE[:100].copy()
    losses[0] = 0.001
    single = Wiring((LossInfo("mse", "MseLossBackward0", "mean", (1, 1), (1, 1)),), graphs=3)
    assert not hits(run(losses, wiring=single))
    assert not hits(run(losses, wiring=Wiring()))


def test_going_back_late_with_growing_gradients_is_a_warning() -> None:
    (hit,) = hits(run(_late, total=300, gradient=lambda step: 1.0 if step < 200 else 5.0))
    assert hit.severity is Severity.WARNING and hit.evidence["late"]
    assert "its best level" in hit.message
    assert 200 <= hit.first_step <= 204


def test_a_rise_within_the_scatter_of_the_losses_is_none() -> None:
    def policy(scatter: float) -> Any:
        return lambda step: (0.02 if step < 50 else -0.027 if step < 200 else 0.01) + scatter * (-1) ** step

    grown = {"total": 300, "gradient": lambda step: 1.0 if step < 200 else 5.0}
    assert hits(run(policy(0.005), **grown)) and not hits(run(policy(0.03), **grown))


def test_going_back_late_with_the_same_gradients_is_not_meant() -> None:
    assert not hits(run(_late, total=300))


def test_noise_around_a_low_loss_is_not_meant() -> None:
    noisy = np.maximum(2.0 * np.exp(-np.arange(400) / 40), 0.02 * NOISE)
    assert not hits(run(noisy, total=400, gradient=1 + NOISE, wiring=REGRESSION))


def test_losses_of_several_players_are_not_judged() -> None:
    assert not hits(run(lambda step: 1.4 * 1.2**step, optimizers=[sgd(), sgd()]))


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build())


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    for value in (math.nan, math.inf, -math.inf):
        hits(poisoned(value))
        hits(run([1.0, value] * 50))


def _late(step: int) -> float:
    return max(0.2, 2.0 * math.exp(-step / 30)) if step < 200 else 1.6


def test_a_loss_that_counts_more_from_a_step_on_has_not_risen() -> None:
    def risen(step: int) -> float:
        return 1.0 if step < 60 else 1000.0

    assert hits(build(steps=range(0, 100, 8), total=100, pulses={"loss": risen, "gradient_norm": risen}))
    counted = build(
        steps=range(0, 100, 8),
        total=100,
        pulses={"loss": risen, "gradient_norm": risen},
        columns={"loss.weight": risen},
    )
    assert not hits(counted)
