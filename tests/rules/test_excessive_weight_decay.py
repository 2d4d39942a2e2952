"""When weight decay counts as excessive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.records import Wiring
from gradscope.rules.excessive_weight_decay import ExcessiveWeightDecay
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

STUCK = {"loss": lambda step: 1.39 + 0.01 * math.sin(7 * step)}
STARTS = np.array([math.sqrt(2 * p.size / p.fan_in) for p in SMALL.parameters])


def optimizer(decay: float, *, kind: str = "AdamW", **settings: float) -> OptimizerInfo:
    return OptimizerInfo(kind, 0.01, tuple(p.name for p in SMALL.parameters), 0, {"weight_decay": decay, **settings})


def hits(timeline: Timeline) -> list[Hit]:
    return list(ExcessiveWeightDecay().check(timeline))


def run(
    decay: float,
    *,
    left: float = 0.3,
    rate: float = 0.01,
    ratio: Any = 0.22,
    pulses: Any = STUCK,
    gradient: float = 0.5,
    **more: Any,
) -> list[Hit]:
    """Weights that sink to ``left`` of their norm within the first fifty steps."""
    columns = {
        "weight.norm": lambda step: STARTS * (left + (1 - left) * max(0.0, 1 - step / 50)),
        "update.ratio": ratio,
        "weight_gradient.norm": gradient,
    }
    optimizers = (more.pop("optimizer", optimizer(decay)),)
    return hits(build(columns=columns, pulses={"learning_rate": rate, **pulses}, optimizers=optimizers, **more))


def test_a_decay_that_takes_a_fifth_off_in_every_step_is_named() -> None:
    (hit,) = run(20.0)
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert (hit.severity, hit.strength) == (Severity.CRITICAL, 5.0)
    assert hit.evidence["decay_per_step"] == pytest.approx(0.2)
    assert hit.evidence["shrunk"] == pytest.approx(0.7, rel=1e-2)
    assert 'group["weight_decay"] = 0.0013  # was 20' in (hit.remedy.code or "")  # 0.005^2 / (2 * 0.01)


def test_boundaries_of_the_share_and_of_the_shrinkage() -> None:
    assert run(1.1)
    assert not run(0.9)
    assert run(20.0, left=0.89)
    assert not run(20.0, left=0.91)


def test_momentum_multiplies_the_decay() -> None:
    assert not run(0.5, optimizer=optimizer(0.5, kind="SGD"))
    assert run(0.5, optimizer=optimizer(0.5, kind="SGD", momentum=0.9))


def test_a_smaller_decay_that_makes_most_of_the_step_is_named_where_training_fails() -> None:
    (hit,) = run(0.9, ratio=0.01)
    assert hit.strength == 3.0
    assert hit.evidence["share_of_step"] == pytest.approx(0.9)
    assert not run(0.9, ratio=0.014)  # 64 % of the step
    assert not run(0.9, ratio=0.01, left=0.75)
    assert not run(0.9, ratio=0.01, pulses={})
    assert not run(0.9, ratio=0.01, pulses={"loss": lambda step: 1.39 - 0.0005 * step})


def test_where_the_decay_is_added_to_an_adaptive_gradient_it_is_weighed_against_that() -> None:
    adam = optimizer(1.0, kind="Adam", eps=1e-8)
    assert run(1.0, optimizer=adam, gradient=0.1)
    assert not run(1.0, optimizer=adam, gradient=100.0)


def test_a_training_that_works_gets_a_warning_and_one_that_has_converged_an_aside() -> None:
    assert run(20.0, pulses={})[0].severity is Severity.WARNING
    assert run(20.0, pulses={"loss": lambda step: 1.4 * math.exp(-step / 20)})[0].severity is Severity.INFO


def test_weights_that_shrink_without_decay_are_another_matter() -> None:
    assert not run(0.0)
    assert not run(1e-4, left=0.1)


def by_penalty(ratio: float, *, shrinks: float = 0.02, pulses: Any = STUCK) -> list[Hit]:
    """Weights that lose a share of their norm in every step, of updates that are ``ratio`` of it, with no decay."""
    columns: dict[str, Any] = {"weight.norm": lambda step: STARTS * (1 - shrinks) ** step, "update.ratio": ratio}
    return hits(build(columns=columns, pulses=pulses, optimizers=(optimizer(0.0),)))


def test_steps_that_lead_straight_to_zero_without_decay_are_those_of_a_penalty_in_the_loss() -> None:
    (hit,) = by_penalty(0.025)
    assert hit.evidence["share_of_step"] == pytest.approx(0.8, rel=1e-3)
    assert "a penalty on them in the loss" in hit.message
    assert not by_penalty(0.03)  # two thirds
    assert not by_penalty(0.015)  # something else shrinks them as well
    assert not by_penalty(0.0025, shrinks=0.002)  # by a fifth in a hundred steps
    assert not by_penalty(0.025, pulses={})  # the training works


def test_slow_shrinkage_over_a_long_run_is_not_counted() -> None:
    columns: dict[str, Any] = {"weight.norm": lambda step: STARTS * math.exp(-step / 3000), "update.ratio": 0.01}
    slow = build(
        columns=columns, pulses={"learning_rate": 0.01, **STUCK}, optimizers=(optimizer(0.9),), steps=range(0, 3000, 50)
    )
    assert not hits(slow)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    decayed = optimizer(20.0)
    assert not hits(build(optimizers=(decayed,)))  # weights that grow
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value))
        broken = {"weight.norm": value, "update.ratio": value, "weight_gradient.norm": value}
        assert not hits(build(columns=broken, optimizers=(decayed,)))
        assert not hits(build(columns=broken, optimizers=(optimizer(20.0, kind="Adam"),)))
    assert not hits(empty())


def test_a_loss_that_falls_because_the_penalty_does_is_no_progress() -> None:
    def shrinking(spread: float, wiring: Wiring, **given: Any) -> list[Hit]:
        columns: dict[str, Any] = {
            "weight.norm": lambda step: STARTS * 0.98**step,
            "update.ratio": 0.025,
            "loss.input_signal": spread,
            **given,
        }
        return hits(build(columns=columns, optimizers=(optimizer(0.0),), wiring=wiring))

    (hit,) = shrinking(0.12, one_loss("mse"), **regressed())
    assert hit.severity is Severity.WARNING
    assert not shrinking(0.4, one_loss("mse"), **regressed())
    assert len(shrinking(0.05, classification())) == 1
    assert not shrinking(0.2, classification())
    assert not shrinking(math.nan, classification())


def test_is_silent_where_decay_acts_alone_for_want_of_a_gradient() -> None:
    assert run(20.0)
    assert not run(20.0, gradient=0.0, pulses={**STUCK, "gradient_norm": 0.0})
