"""When an attention counts as collapsed."""

from __future__ import annotations

import math
from typing import Any

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.attention_entropy_collapse import AttentionEntropyCollapse
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

READ = (0, 1, 2, 25, 50, 75, 100, 125, 150, 175, 199)
STUCK = {"loss": 1.386}


def hits(timeline: Timeline) -> list[Hit]:
    return list(AttentionEntropyCollapse().check(timeline))


def run(entropy: Any, *, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    columns = {"attention.entropy": {"b": lambda step: entropy(step) if step in READ else math.nan}}
    return hits(build(steps=range(200), columns=columns, attentions=("a", "b"), pulses=pulses, **more))


def test_a_collapse_that_lasts_is_named_since_its_step() -> None:
    (hit,) = run(lambda step: 0.8 if step < 75 else 0.05)
    assert hit.modules == ("b",)
    assert (hit.first_step, hit.last_step) == (75, 199)
    assert hit.severity is Severity.WARNING
    assert "1 of 2 attentions" in hit.message


def test_it_has_to_last_for_a_hundred_steps() -> None:
    assert run(lambda step: 0.8 if step < 100 else 0.05)
    assert not run(lambda step: 0.8 if step < 125 else 0.05)


def test_boundary_of_the_entropy() -> None:
    assert run(lambda step: 0.099)
    assert not run(lambda step: 0.101)


def test_it_has_to_be_so_at_the_end() -> None:
    assert not run(lambda step: 0.05 if step < 199 else 0.5)


def test_sharp_attention_in_a_training_that_works_is_an_aside() -> None:
    assert run(lambda step: 0.05, pulses={})[0].severity is Severity.INFO


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(attentions=("a", "b")), build(), empty(), build(attentions=("a",), steps=(), total=150))
    for timeline in (*timelines, poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
    assert not run(lambda step: math.nan)
