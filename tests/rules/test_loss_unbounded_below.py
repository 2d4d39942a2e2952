"""When a loss counts as one that can be lowered for ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.rules.loss_unbounded_below import LossUnboundedBelow
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned

OTHER = classification(losses=(LossInfo("other", "MeanBackward0"),))
GROWS = {"gradient_norm": lambda step: math.exp(step / 20)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossUnboundedBelow().check(timeline))


def run(loss: Callable[[int], float], **given: Any) -> Timeline:
    return build(**{"pulses": {"loss": loss, **GROWS}, "wiring": OTHER, **given})


def test_names_a_loss_that_falls_faster_and_faster() -> None:
    (hit,) = hits(run(lambda step: 2.0 - math.exp(step / 10)))
    assert hit.severity is Severity.WARNING
    assert hit.first_step == 7
    assert "through zero at step 7" in hit.message
    assert hit.remedy.code == "loss = -loss"


def test_is_critical_where_training_broke_on_it() -> None:
    assert hits(run(lambda s: 2.0 - math.exp(s / 10) if s < 90 else math.nan))[0].severity is Severity.CRITICAL


def test_a_minus_before_a_bounded_loss_is_proof() -> None:
    minus = {"columns": {"loss.weight": -1.0}, "wiring": one_loss("cross_entropy", classes=10)}
    (hit,) = hits(run(lambda step: -2.3 - 0.01 * step, pulses={"loss": lambda step: -2.3 - 0.01 * step}, **minus))
    assert hit.severity is Severity.CRITICAL and hit.strength == 10
    assert hit.message.startswith("cross_entropy counts with a minus sign")
    assert not hits(run(lambda step: -2.3, **minus))
    assert not hits(run(lambda step: -2.3 - step, steps=range(5), **minus))


def test_losses_that_settle_below_zero_are_right() -> None:
    assert not hits(run(lambda step: 1.0 - 40 * (1 - math.exp(-step / 20))))


def test_gradients_have_to_grow() -> None:
    assert not hits(run(lambda step: 2.0 - math.exp(step / 10), pulses={"loss": lambda step: 2.0 - math.exp(step / 10)}))


@pytest.mark.parametrize(("depth", "found"), [(9.0, 0), (11.0, 1)])
def test_ten_times_the_first_magnitude_is_the_boundary(depth: float, found: int) -> None:
    assert len(hits(run(lambda step: 1.0 - (depth + 1) * (step / 97) ** 4))) == found


def test_players_against_one_another_are_left_alone() -> None:
    assert not hits(run(lambda step: 2.0 - math.exp(step / 10), shared_process=True))


def test_a_loss_that_comes_back_is_left_alone() -> None:
    assert not hits(run(lambda step: 1.0 - 40 * math.exp(-(((step - 60) / 10) ** 2))))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf), poisoned(-math.inf)):
        assert not hits(timeline)


def test_gradients_of_the_last_steps_need_not_be_known() -> None:
    sparse = {"gradient_norm": lambda step: math.exp(step / 20) if step < 12 or step == 90 else math.nan}
    assert hits(run(lambda step: 2.0 - math.exp(step / 10), pulses={"loss": lambda step: 2.0 - math.exp(step / 10), **sparse}))


def test_a_last_batch_that_is_not_the_deepest_does_not_hide_the_fall() -> None:
    def falls(step: int) -> float:
        return (2.0 - math.exp(step / 10)) * (0.5 if step % 20 >= 14 else 1.0)

    (hit,) = hits(run(falls))
    assert hit.evidence["last_loss"] < -5000
