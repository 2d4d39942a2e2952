from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.weights_not_moving import WeightsNotMoving
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import poisoned
from tests.timelines import sgd

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


def cleared(gradient: float = math.nan, **changes: Any) -> Timeline:
    """Gradients come back through the layers, and at the step there is none."""
    columns = {"weight_gradient.norm": gradient, "update.ratio": 0.0, "update.unchanged": 1.0, "weight.norm": 2.0}
    given: dict[str, Any] = {"columns": columns, "pulses": {**FLAT, "gradient_norm": gradient}}
    return build(**(given | changes))


def decayed(pace: float) -> dict[str, Any]:
    """Gradients of zero, and weights that change by a factor in every step."""
    moves = {"weight.norm": lambda step: 2.0 * pace**step, "update.ratio": abs(1 - pace), "update.unchanged": 0.0}
    optimizer = replace(sgd(), type="AdamW", settings={"weight_decay": 0.01})
    return {"columns": {"weight_gradient.norm": 0.0, **moves}, "optimizers": [optimizer]}


@pytest.mark.parametrize(("gradient", "left"), [(math.nan, "had none"), (0.0, "had zero")])
def test_names_gradients_that_were_cleared_before_the_step(gradient: float, left: str) -> None:
    (hit,) = hits(cleared(gradient))
    assert WeightsNotMoving().obstacle(cleared(gradient)) is None
    assert hit.severity is Severity.CRITICAL and (hit.first_step, hit.last_step) == (0, 95)
    assert f"{left}, so that nothing moves: zero_grad() is called between backward() and step()." in hit.message
    assert (hit.remedy.code or "").startswith("optimizer.zero_grad()\nloss.backward()")


def test_weights_that_weight_decay_alone_moves_are_told_as_well() -> None:
    (hit,) = hits(cleared(0.0, **decayed(0.999)))
    assert "weight decay alone moves the weights: zero_grad()" in hit.message
    assert not hits(cleared(0.0, **decayed(1.001)))


def test_nobody_cleared_gradients_that_never_came_or_that_move_the_weights_all_the_same() -> None:
    assert not hits(cleared(math.nan, wiring=classification(reached=())))
    for name, value in (("update.ratio", 0.01), ("activation_gradient.rms", 0.0), ("activation.rms", 0.0)):
        columns = {"weight_gradient.norm": math.nan, "update.ratio": 0.0, "update.unchanged": 1.0, name: value}
        assert not hits(cleared(columns=columns))
    assert not hits(cleared(pulses={**FLAT, "gradient_norm": 0.1}))


def test_products_of_small_numbers_are_zero_in_float16() -> None:
    half = Net(tuple(replace(module, dtype="float16") for module in SMALL.modules), SMALL.parameters)
    assert not hits(cleared(0.0, net=half, wiring=classification()))


def test_three_sampled_steps_are_needed_to_say_that_gradients_were_cleared() -> None:
    assert [len(hits(cleared(steps=range(steps)))) for steps in (2, 3)] == [0, 1]


def test_the_code_that_is_missing_moves_the_weights() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    (hit,) = hits(build(optimizers=[], steps=(), total=1, pulses={"backwards": 100.0}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exec(str(hit.remedy.code), {"optimizer": optimizer, "loss": model(torch.ones(1, 2)).sum()})
    assert not torch.equal(model.weight, before)
