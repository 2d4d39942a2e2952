"""When a learning rate counts as too low."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.lr_too_low import LrTooLow
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 3.0 + 0.1 * math.sin(7 * step), "learning_rate": 1e-7}
ADAM = OptimizerInfo("Adam", 1e-7, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8})


def hits(timeline: Timeline) -> list[Hit]:
    return list(LrTooLow().check(timeline))


def run(*, ratio: Any = 5e-7, loss: Any = STUCK["loss"], rate: Any = 1e-7, gradient: Any = 0.5, **more: Any) -> list[Hit]:
    columns = {"update.ratio": ratio, "weight_gradient.norm": gradient}
    pulses = {"loss": loss, "learning_rate": rate}
    return hits(build(columns=columns, pulses=pulses, **({"total": 200, "optimizers": (ADAM,)} | more)))


def test_steps_that_change_nothing_are_named_with_a_higher_rate() -> None:
    (hit,) = run()
    assert hit.severity is Severity.WARNING
    assert hit.evidence["update_ratio"] == pytest.approx(5e-7)
    assert 'group["lr"] = 0.001 ' in (hit.remedy.code or "")  # 1e-7 * 0.005 / 5e-7


def test_the_remedy_raises_the_rate_ten_thousand_times_at_most() -> None:
    (hit,) = run(ratio=1e-9)
    assert 'group["lr"] = 0.001 ' in (hit.remedy.code or "")


def test_boundary_of_the_ratio() -> None:
    assert run(ratio=0.9e-5)
    assert not run(ratio=1.1e-5)


def at_chance(*, ratio: Any = 2e-5, gradient: float = 0.05, **more: Any) -> list[Hit]:
    return run(ratio=ratio, gradient=gradient, **({"loss": lambda step: 1.4 + 0.02 * math.sin(7 * step)} | more))


def test_steps_too_short_to_lower_a_loss_that_stands_at_a_constant_predictions_are_named() -> None:
    assert at_chance()
    assert not at_chance(ratio=2e-4)
    assert not at_chance(gradient=50.0)  # as short as they are, they could have lowered it
    assert not at_chance(loss=lambda step: 3.0 + 0.02 * math.sin(7 * step))
    assert not at_chance(wiring=one_loss())  # where that is not known
    assert at_chance(optimizers=None, rate=1e-4)
    assert not at_chance(optimizers=None, rate=0.01)  # it is the gradients that are small


def test_a_rate_that_was_too_low_at_the_peak_of_its_schedule_is_named() -> None:
    def decayed(peak: float, **more: Any) -> list[Hit]:
        rate = {"rate": lambda step: 4e-6 * (1 + math.cos(math.pi * step / 199)) / 2}
        return at_chance(ratio=lambda step: peak * (1 + math.cos(math.pi * step / 199)) / 2, **(rate | more))

    assert decayed(2e-5)
    assert not decayed(1e-3)  # what is short is only the end
    assert not decayed(2e-5, rate=lambda step: 4e-6 if step < 20 else 1e-9)  # not long at its peak


def test_one_matrix_that_moves_is_enough_to_be_left_alone() -> None:
    assert not run(ratio={"layers.0.weight": 5e-7, "layers.2.weight": 5e-7, "layers.4.weight": 1e-3})


def test_a_loss_that_falls_is_left_alone() -> None:
    assert not run(loss=lambda step: 3.0 * math.exp(-step / 400))
    assert run(loss=lambda step: 3.0 * math.exp(-step / 40000))


def test_a_loss_that_falls_by_chance_stands_still() -> None:
    noisy = 3.5 + 0.3 * np.random.default_rng(18).standard_normal(200)  # its trend has p < 0.05, and p > 0.001
    assert run(loss=lambda step: noisy[step])


def test_a_rising_or_decayed_rate_is_left_alone() -> None:
    assert not run(rate=lambda step: 1e-9 * (step + 1))
    assert not run(rate=lambda step: 1e-2 if step < 20 else 1e-7)


def test_weights_that_do_not_move_at_all_are_another_matter() -> None:
    assert not run(ratio=0.0)


def test_a_tiny_gradient_is_not_the_rates_fault() -> None:
    assert not run(gradient=1e-9)  # beside Adam's eps
    assert run(gradient=1e-4)
    sgd = {"optimizers": None}
    assert not run(gradient=1e-4, **sgd)  # beside the weights
    assert run(**sgd)


def test_a_bias_whose_gradient_does_not_vanish_proves_nothing() -> None:
    vanished = {p.name: 0.5 if p.name.endswith("bias") else 1e-9 for p in SMALL.parameters}
    assert not run(gradient=vanished)
    assert not run(gradient=vanished, optimizers=None)


def test_several_objectives_and_converged_trainings_are_left_alone() -> None:
    assert not run(shared_process=True)
    assert not run(loss=0.01)


def test_it_asks_for_a_hundred_steps() -> None:
    assert LrTooLow().obstacle(build(steps=range(99))) == "needs 100 steps, the run has 99"


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)
