from __future__ import annotations

import math

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.nonfinite_loss import NonfiniteLoss
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned


def hits(timeline: Timeline) -> list[Hit]:
    return list(NonfiniteLoss().check(timeline))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tells_where_it_began_and_what_was_before(value: float) -> None:
    (hit,) = hits(build(pulses={"loss": lambda step: value if step >= 30 else 7.25}))
    assert (hit.first_step, hit.last_step) == (30, 99)
    assert "70 of 100 steps, from step 30 on; the loss before it was 7.25" in hit.message
    assert hit.severity is Severity.CRITICAL


def test_is_a_warning_where_the_loop_went_on() -> None:
    (hit,) = hits(build(pulses={"loss": lambda step: math.nan if step == 30 else 1.0}))
    assert hit.severity is Severity.WARNING


def test_the_first_loss_may_be_the_one() -> None:
    (hit,) = hits(build(pulses={"loss": math.nan}))
    assert hit.first_step == 0 and hit.evidence["loss_before"] is None


def test_a_step_without_backward_has_no_loss() -> None:
    assert not hits(build(pulses={"loss": math.nan, "backwards": 0.0}))


def test_is_silent_on_a_healthy_run() -> None:
    assert not hits(build())


def test_survives_what_is_not_there() -> None:
    assert not hits(empty())
    assert len(hits(poisoned(math.nan))) == 1
