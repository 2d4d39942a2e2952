"""When output logits count as drifting."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.output_logit_drift import OutputLogitDrift
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.4 + 0.01 * math.sin(7 * step)}
LIMIT = 10 * math.log(4)


def hits(timeline: Timeline) -> list[Hit]:
    return list(OutputLogitDrift().check(timeline))


def run(drift: Any, *, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    return hits(build(columns={"loss.log_partition": drift}, pulses=pulses, **more))


def test_a_drift_is_named_with_a_z_loss() -> None:
    (hit,) = run(lambda step: 1.4 + step)
    assert hit.severity is Severity.WARNING
    assert hit.first_step == 15  # the first sampled step above ten times ln 4
    assert hit.evidence["uniform"] == pytest.approx(math.log(4), rel=1e-5)
    assert "1e-4 * torch.logsumexp(output, dim=1)" in (hit.remedy.code or "")


def test_logits_that_were_large_from_the_start_do_not_drift() -> None:
    assert not run(40.0)
    assert not run(lambda step: 40.0 + step / 3)


def test_boundary_of_the_level() -> None:
    assert run(lambda step: 1.4 if step < 5 else 1.01 * LIMIT)
    assert not run(lambda step: 1.4 if step < 5 else 0.99 * LIMIT)


def test_it_takes_fifty_steps() -> None:
    assert run(lambda step: 1.4 if step < 45 else 40.0)
    assert not run(lambda step: 1.4 if step < 50 else 40.0)


def test_few_readings_do_where_they_rise_over_a_hundred_steps() -> None:
    def sparse(readings: dict[int, float]) -> list[Hit]:
        return run(lambda step: readings.get(step, math.nan), steps=sorted(readings), total=300)

    rising = {0: 1.4, 100: 40.0, 150: 60.0, 200: 80.0}
    assert sparse(rising)
    assert not sparse({**rising, 150: 90.0})  # not all the way
    assert not sparse({0: 1.4, 120: 40.0, 150: 60.0, 200: 80.0})  # 80 steps
    assert not sparse({0: 1.4, 100: 40.0, 200: 80.0})


def test_readings_of_the_first_half_do_not_tell_how_coarse_the_numbers_are_now() -> None:
    net = replace(SMALL, modules=tuple(replace(module, dtype="bfloat16") for module in SMALL.modules))
    readings = {0: 1.4, 60: 40.0, 100: 60.0, 130: 80.0, 290: 2000.0}
    columns = {"loss.log_partition": lambda step: readings[step]}
    losses = {"loss": lambda step: 1.4 - 0.05 * step}
    (hit,) = hits(build(net, columns=columns, pulses=losses, steps=sorted(readings), total=300))
    assert hit.severity is Severity.WARNING
    assert not hits(build(columns=columns, pulses=losses, steps=sorted(readings), total=300))


def test_a_blow_up_is_not_a_drift() -> None:
    assert not run(lambda step: 1.4 if step < 20 else 1e6, pulses={"loss": lambda step: 1.4 if step < 25 else 1e6})


@pytest.mark.parametrize(
    ("dtype", "level", "speaks"), [("bfloat16", 300.0, True), ("bfloat16", 200.0, False), (None, 3e4, False)]
)
def test_a_loss_below_zero_says_nothing_of_logits_that_are_rounded_away(dtype: str | None, level: float, speaks: bool) -> None:
    net = replace(SMALL, modules=tuple(replace(module, dtype=dtype) for module in SMALL.modules))
    losses = {"loss": lambda step: 1.4 - 0.05 * step}
    found = hits(build(net, columns={"loss.log_partition": lambda step: 1.4 if step < 20 else level}, pulses=losses))
    assert [hit.severity for hit in found] == ([Severity.WARNING] if speaks else [])


def test_a_sure_classifier_is_an_aside_and_a_converged_one_nothing() -> None:
    assert run(lambda step: 1.4 + step, pulses={})[0].severity is Severity.INFO
    assert not run(lambda step: 1.4 + step, pulses={"loss": lambda step: 1.4 if step < 5 else 0.01})


def test_a_classifier_that_was_sure_before_it_blew_up_did_not_drift() -> None:
    def blown_up(level: float) -> dict[str, Any]:
        return {"loss": lambda step: 1e6 if step >= 90 else (1.4 if step < 5 else level)}

    assert not run(lambda step: 1.4 + step, pulses=blown_up(0.01))
    assert run(lambda step: 1.4 + step, pulses=blown_up(0.3))


def test_losses_without_classes_are_not_judged() -> None:
    assert not run(lambda step: 1.4 + step, wiring=classification(losses=()))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(), empty(), build(steps=(), total=150), poisoned(math.nan), poisoned(math.inf))
    for timeline in timelines:
        assert not hits(timeline)
