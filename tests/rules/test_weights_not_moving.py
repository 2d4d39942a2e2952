from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.weights_not_moving import WeightsNotMoving
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

FLAT = {"loss": 1.4}


def hits(timeline: Timeline) -> list[Hit]:
    return list(WeightsNotMoving().check(timeline))


def standing(unchanged: Any = 1.0, **changes: Any) -> Timeline:
    given: dict[str, Any] = {"columns": {"update.unchanged": unchanged}, "pulses": FLAT}
    return build(**(given | changes))


def test_names_a_learning_rate_of_zero() -> None:
    (hit,) = hits(standing(pulses={**FLAT, "learning_rate": 0.0}))
    assert hit.severity is Severity.CRITICAL
    assert "the learning rate is 0." in hit.message and "29 of 29" in hit.message
    assert 'group["lr"]' in (hit.remedy.code or "")
    assert (hit.first_step, hit.last_step) == (0, 95)


def test_a_rate_that_is_not_zero_is_told_too() -> None:
    (hit,) = hits(standing(pulses={**FLAT, "learning_rate": 1e-12}))
    assert "the learning rate is 1e-12." in hit.message and hit.remedy.code is None


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build(columns={"update.unchanged": 0.003}))


def test_one_weight_that_moves_is_enough() -> None:
    assert not hits(standing([1.0, 1.0, 0.99]))


@pytest.mark.parametrize(("still", "count"), [(2, 0), (3, 1)])
def test_a_warm_up_may_begin_at_zero_for_two_steps(still: int, count: int) -> None:
    assert len(hits(standing(lambda step: float(step < still)))) == count


def test_is_a_warning_where_it_is_over() -> None:
    (hit,) = hits(standing(lambda step: float(step < 5)))
    assert hit.severity is Severity.WARNING and hit.last_step == 4


def test_is_for_information_where_training_has_worked() -> None:
    (hit,) = hits(build(columns={"update.unchanged": lambda step: float(step > 60)}))
    assert hit.severity is Severity.INFO


def test_is_silent_on_steps_without_gradient() -> None:
    assert not hits(build(columns={"update.unchanged": 1.0, "weight_gradient.norm": 0.0}))


def test_backward_without_step_is_found() -> None:
    timeline = build(optimizers=[], steps=(), total=1, pulses={"backwards": 100.0})
    (hit,) = hits(timeline)
    assert WeightsNotMoving().obstacle(timeline) is None
    assert hit.severity is Severity.CRITICAL
    assert "no optimizer.step() in 100 backward() calls" in hit.message
    assert "optimizer.step()" in (hit.remedy.code or "")


def test_backward_without_step_is_not_claimed_too_early_or_where_weights_move() -> None:
    assert not hits(build(optimizers=[], steps=(), total=1, pulses={"backwards": 99.0}))
    assert not hits(build(steps=(), total=1, pulses={"backwards": 1000.0}))
    moving = {"update.outside_change": 0.01}
    assert not hits(build(optimizers=[], steps=(0, 1), pulses={"backwards": 100.0}, columns=moving))


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    for value in (math.nan, math.inf):
        hits(poisoned(value))
