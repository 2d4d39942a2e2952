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


def by_value(limit: Any = 1e-5, *, full: float = 1.0, ratio: float = 1e-4, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    norms = {p.name: full * 1e-5 * math.sqrt(p.size) for p in SMALL.parameters}
    columns = {"weight_gradient.absmax": limit, "weight_gradient.norm": norms, "update.ratio": ratio}
    return hits(build(columns=columns, pulses=pulses, **more))


def test_a_limit_on_elements_is_seen_in_the_gradients_though_nobody_was_heard_clipping() -> None:
    (hit,) = by_value()
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["limit"] == pytest.approx(1e-5) and hit.evidence["of"] == "elements"
    assert "clip_grad_norm_" in (hit.remedy.code or "")
    assert by_value(pulses={})[0].severity is Severity.INFO
    assert not by_value(ratio=1.1e-3)


def test_most_elements_of_most_parameters_must_stand_at_the_limit() -> None:
    assert by_value(full=0.71) and not by_value(full=0.69)
    assert not by_value({SMALL.parameters[0].name: 2e-5, **{p.name: 1e-5 for p in SMALL.parameters[1:]}})
    assert not by_value(lambda step: 1e-5 * (1 + step % 2))
    assert not by_value(lambda step: 1e-5 if step < 9 else math.nan)


def by_hand(norm: Any = 1e-3, *, pulses: Any = {"loss": lambda step: 1.39 + 0.1 * math.sin(7 * step)}) -> list[Hit]:  # noqa: B006
    return hits(build(columns={"update.ratio": 1e-5}, pulses={"gradient_norm": norm, **pulses}))


def test_a_norm_that_is_the_same_in_every_step_was_set_by_hand() -> None:
    (hit,) = by_hand(lambda step: 1e-3 * (1 - 1e-5 * (step % 3)))
    assert hit.evidence["limit"] == pytest.approx(1e-3, rel=1e-3)
    assert hit.evidence["of"] == "norm"
    assert not by_hand(lambda step: 1e-3 * (1 + 0.01 * (step % 3)))


def test_a_norm_that_is_the_same_because_each_batch_is_the_same_was_not() -> None:
    assert not by_hand(pulses={"loss": lambda step: 1.39 - 1e-6 * step})


def test_it_says_why_it_could_not_look_where_nothing_clips() -> None:
    rule = ClippingTooTight()
    assert rule.obstacle(build()) == "clip_grad_norm_() was not called in the loop"
    assert rule.obstacle(build(columns={"step.clip_norm": 2.0})) is None


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)
