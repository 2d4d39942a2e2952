"""When a loss counts as oscillating."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.oscillating_loss import OscillatingLoss
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned


def hits(timeline: Timeline) -> list[Hit]:
    return list(OscillatingLoss().check(timeline))


def run(loss: Any, *, total: int = 300, rate: Any = 0.1, **more: Any) -> list[Hit]:
    return hits(build(steps=range(12), total=total, pulses={"loss": loss, "learning_rate": rate}, **more))


def swing(period: float, *, size: float = 0.4, level: float = 1.4) -> Callable[[int], float]:
    return lambda step: level * (1 + size * math.cos(2 * math.pi * step / period))


@pytest.mark.parametrize("period", [2, 7, 40])
def test_a_regular_swing_is_named_with_its_period(period: int) -> None:
    (hit,) = run(swing(period))
    assert hit.evidence["period"] == period
    assert hit.severity is Severity.WARNING
    assert (hit.first_step, hit.last_step) == (100, 299)
    assert "from 0.1 to 0.05" in hit.remedy.text


def test_a_sawtooth_of_an_epoch_is_named() -> None:
    assert run(lambda step: 0.7 + 1.4 * ((step % 25) / 25))[0].evidence["period"] == 25


def test_noise_is_no_oscillation() -> None:
    for seed in range(20):
        noise = 1.4 * np.exp(0.5 * np.random.default_rng(seed).standard_normal(300))
        assert not run(noise.__getitem__)


def test_noise_on_top_does_not_hide_a_swing() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(300)
    assert run(lambda step: swing(20)(step) + noise[step])


def test_boundary_of_the_swing() -> None:
    assert run(swing(2, size=0.16))
    assert not run(swing(2, size=0.14))


def test_a_loss_that_swings_and_falls_is_left_alone() -> None:
    assert not run(lambda step: swing(2)(step) * math.exp(-step / 100))


def test_a_converged_loss_is_left_alone() -> None:
    assert not run(swing(2, level=0.03))


def test_a_rate_that_goes_up_and_down_takes_the_loss_with_it() -> None:
    assert not run(swing(40), rate=lambda step: 0.1 * (1 + 0.5 * math.cos(2 * math.pi * step / 40)))


def test_where_training_works_it_is_an_aside() -> None:
    assert run(lambda step: 5.0 if step < 5 else swing(2, level=0.4)(step))[0].severity is Severity.INFO


def test_players_against_one_another_and_blown_up_trainings_are_left_alone() -> None:
    assert not run(swing(2), shared_process=True)
    assert not run(lambda step: swing(2)(step) if step < 299 else math.nan)


def test_a_hundred_losses_are_needed() -> None:
    assert OscillatingLoss().obstacle(build(steps=range(12), total=99)) == "needs 100 steps, the run has 99"
    assert run(swing(2), total=150)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not run(1.4)
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)
