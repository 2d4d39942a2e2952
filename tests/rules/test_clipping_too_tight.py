"""When clipping counts as too tight."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.clipping_too_tight import ClippingTooTight
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.39 + 0.01 * math.sin(7 * step)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(ClippingTooTight().check(timeline))


def run(
    norm: Any = 2.0, limit: Any = 1e-3, *, place: float = 0.0, ratio: float = 4e-6, pulses: Any = STUCK, **more: Any
) -> list[Hit]:
    columns = {"step.clip_norm": norm, "step.clip_limit": limit, "step.clip_place": place, "update.ratio": ratio}
    return hits(build(columns=columns, pulses=pulses, **more))


def test_a_limit_that_leaves_a_fraction_of_each_gradient_is_named_with_a_better_one() -> None:
    (hit,) = run(lambda step: 2.0 + 0.01 * (step % 5))
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["limit"] == pytest.approx(1e-3)
    assert hit.evidence["left"] == pytest.approx(5e-4, rel=0.02)
    assert "max_norm=2)" in (hit.remedy.code or "")
    assert "0.1 acts like 5e-05" in hit.remedy.text


def test_boundaries_of_what_is_left_and_of_the_step() -> None:
    assert run(limit=0.19)
    assert not run(limit=0.21)
    assert run(ratio=0.9e-3)
    assert not run(ratio=1.1e-3)


def test_nearly_every_step_must_be_clipped() -> None:
    assert run(lambda step: 2.0 if step else 1e-4)
    assert not run(lambda step: 2.0 if step % 10 else 1e-4)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "Lion", "RMSprop", "Muon", "SignSGD"])
def test_optimizers_that_divide_the_size_out_are_not_judged(kind: str) -> None:
    held = OptimizerInfo(kind, 1e-3, tuple(p.name for p in SMALL.parameters), 0, {})
    assert not run(optimizers=(held,))


def test_a_training_that_works_gets_no_more_than_an_aside() -> None:
    assert run(pulses={})[0].severity is Severity.INFO
    assert not run(pulses={"loss": 0.01})


def test_calls_in_the_wrong_place_are_not_counted() -> None:
    assert not run(place=3.0)


def test_a_warm_up_is_left_alone() -> None:
    assert not run(pulses=STUCK | {"learning_rate": lambda step: 1e-3 * (step + 1)})


def test_few_calls_prove_nothing() -> None:
    assert not run(lambda step: 2.0 if step < 9 else math.nan)
    assert run(lambda step: 2.0 if step < 10 else math.nan)


def test_it_asks_for_a_hundred_steps() -> None:
    timeline = build(steps=range(99), columns={"step.clip_norm": 2.0, "step.clip_limit": 1e-3})
    assert ClippingTooTight().obstacle(timeline) == "needs 100 steps, the run has 99"


def test_a_limit_of_infinity_clips_nothing() -> None:
    assert not run(limit=math.inf)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)
