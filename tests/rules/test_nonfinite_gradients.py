from __future__ import annotations

import math

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.nonfinite_gradients import NonfiniteGradients
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned


def hits(timeline: Timeline) -> list[Hit]:
    return list(NonfiniteGradients().check(timeline))


def test_counts_the_steps_and_names_the_first_parameters() -> None:
    (hit,) = hits(
        build(
            pulses={"gradient_norm": lambda step: math.inf if step >= 40 else 1.0},
            columns={"weight_gradient.nonfinite": {"layers.2.weight": lambda step: float(step >= 40)}},
        )
    )
    assert (hit.first_step, hit.last_step) == (40, 99)
    assert hit.modules == ("layers.2",)
    assert "60 of 100 steps, from step 40 on" in hit.message
    assert hit.severity is Severity.CRITICAL


def test_is_a_warning_where_later_gradients_are_finite() -> None:
    (hit,) = hits(build(pulses={"gradient_norm": lambda step: math.inf if step == 40 else 1.0}))
    assert hit.severity is Severity.WARNING and hit.modules == ()


def test_is_found_in_frames_alone() -> None:
    columns = {"weight_gradient.nonfinite": lambda step: float(step == 95)}
    (hit,) = hits(build(columns=columns, pulses={"gradient_norm": math.nan}))
    assert hit.first_step == 95


def test_a_norm_that_was_not_captured_is_no_fault() -> None:
    assert not hits(build(pulses={"gradient_norm": math.nan}))


def test_is_silent_on_a_healthy_run_and_on_parameters_that_are_not_trained() -> None:
    assert not hits(build())
    assert not hits(build(columns={"weight_gradient.nonfinite": 1.0}, optimizers=[]))


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert not hits(build(steps=()))
    assert not hits(poisoned(math.nan))
    assert len(hits(poisoned(math.inf))) == 1
