from __future__ import annotations

import math

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.missing_zero_grad import MissingZeroGrad
from gradscope.timeline import Timeline
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned
from tests.timelines import sgd

FLAT = {"loss": 1.4}


def hits(timeline: Timeline) -> list[Hit]:
    return list(MissingZeroGrad().check(timeline))


def carrying(values: Values = 1.0, **changes: object) -> Timeline:
    return build(columns={"weight_gradient.carried": values}, **changes)  # type: ignore[arg-type]


def test_names_the_step_the_modules_and_the_call_that_is_missing() -> None:
    (hit,) = hits(carrying(pulses={**FLAT, "gradient_norm": lambda step: 1.0 + step}))
    assert (hit.first_step, hit.last_step) == (1, 11)  # consecutive samples end there
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert "optimizer.zero_grad()" in (hit.remedy.code or "")
    assert "11 of 11" in hit.message and "from 2 to 100" in hit.message
    assert hit.severity is Severity.CRITICAL


def test_is_a_warning_where_training_works_all_the_same() -> None:
    (hit,) = hits(carrying())
    assert hit.severity is Severity.WARNING


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build())


def test_two_steps_are_enough_and_one_is_not() -> None:
    assert not hits(carrying(lambda step: float(step == 3)))
    assert len(hits(carrying(lambda step: float(step in (3, 7))))) == 1


@pytest.mark.parametrize(("carriers", "count"), [(1, 0), (2, 1)])
def test_half_of_the_parameters_with_a_gradient_must_carry(carriers: int, count: int) -> None:
    assert len(hits(carrying([1.0] * carriers + [0.0] * (3 - carriers)))) == count


def test_parameters_outside_the_optimizer_or_without_gradient_are_not_counted() -> None:
    only_head = [type(sgd())("SGD", 0.1, ("layers.4.weight",), 0, {})]
    assert not hits(carrying([1.0, 1.0, 0.0], optimizers=only_head))
    assert not hits(build(columns={"weight_gradient.carried": 1.0, "weight_gradient.norm": math.nan}))


def test_is_silent_where_another_players_backward_leaves_gradients() -> None:
    assert not hits(carrying(shared_process=True, pulses={"backwards": 3}))
    assert len(hits(carrying(shared_process=True))) == 1


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert not hits(build(steps=()))
    for value in (math.nan, math.inf):
        hits(poisoned(value))


def test_explains_what_it_brings_about() -> None:
    assert {"lr-too-high", "loss-divergence", "nonfinite-loss"} <= set(MissingZeroGrad.explains)


def test_steps_by_hand_are_told_how_to_clear() -> None:
    (hit,) = hits(carrying(optimizers=[], by_hand=True))
    assert "so the step used the sum" in hit.message
    assert "optimizer" not in (hit.remedy.code or "")
