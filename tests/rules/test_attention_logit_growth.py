"""When attention logits count as too large."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.rules.attention_logit_growth import AttentionLogitGrowth
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import parameter
from tests.timelines import poisoned

READ = (0, 1, 2, 25, 50, 75)  # steps whose graph is read
STUCK = {"loss": 1.386}
FUSED = linear("block.qkv", 16, 48, bias=True)
APART = linear("block.q", 16, 16, bias=True)


def hits(timeline: Timeline) -> list[Hit]:
    return list(AttentionLogitGrowth().check(timeline))


def run(logit: Any, *, net: Net = FUSED, site: str = "block.qkv", pulses: Any = STUCK, **more: Any) -> list[Hit]:
    columns = {"attention.logit_max": {site: lambda step: logit(step) if step in READ else math.nan}}
    return hits(build(net + SMALL, columns=columns, attentions=(site, "other"), pulses=pulses, **more))


def growing(step: int) -> float:
    return 6.0 * 1.05**step


def test_logits_that_grow_are_named() -> None:
    (hit,) = run(growing)
    assert hit.modules == ("block.qkv",)
    assert (hit.first_step, hit.last_step) == (50, 75)
    assert hit.severity is Severity.WARNING
    assert hit.evidence["grows"] is True


def test_the_last_two_readings_have_to_be_above_fifty() -> None:
    assert run(lambda step: 51.0)
    assert not run(lambda step: 49.0)
    assert not run(lambda step: 60.0 if step != 50 else 40.0)


def test_where_training_works_it_takes_a_hundred_and_growth() -> None:
    assert run(lambda step: 6.0 if step < 2 else 90.0, pulses={})[0].severity is Severity.INFO
    assert run(lambda step: 6.0 if step < 2 else 110.0, pulses={})[0].severity is Severity.WARNING
    assert run(lambda step: 110.0, pulses={})[0].severity is Severity.INFO


def test_a_blow_up_after_growth_is_critical_and_only_what_came_before_counts() -> None:
    broken = {"loss": lambda step: 1.4 if step < 60 else math.nan}
    (hit,) = run(lambda step: 6.0 if step < 1 else (200.0 if step < 60 else 1e6), pulses=broken)
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["logit"] == 200.0
    assert not run(lambda step: 6.0 if step < 60 else 1e6, pulses=broken)


def test_the_remedy_scales_queries_and_keys_of_one_projection() -> None:
    (hit,) = run(lambda step: 200.0)
    names: dict[str, Any] = {}
    exec((hit.remedy.code or "").partition("\n\n")[0].split("with torch")[0], names)
    assert names["scaled"] == [("block.qkv.weight", 32, 0.5), ("block.qkv.bias", 32, 0.5)]  # sqrt(50 / 200), each


def test_the_remedy_scales_a_projection_of_queries_alone() -> None:
    (hit,) = run(lambda step: 200.0, net=APART, site="block.q")
    assert "('block.q.weight', 16, 0.25)" in (hit.remedy.code or "")


def test_the_remedy_knows_torchs_own_attention() -> None:
    own = (parameter("attn.in_proj_weight", (48, 16)), parameter("attn.in_proj_bias", (48,)))
    net = Net((ModuleInfo("attn", "MultiheadAttention", "attention", tuple(p.name for p in own)),), own)
    (hit,) = run(lambda step: 200.0, net=net, site="attn")
    assert "('attn.in_proj_weight', 32, 0.5)" in (hit.remedy.code or "")


def test_where_the_projection_is_not_known_there_is_no_code() -> None:
    (hit,) = run(lambda step: 200.0, site="(attention)")
    assert hit.remedy.code is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_healthy_and_broken_numbers_raise_nothing(value: float) -> None:
    timelines = (build(attentions=("a", "b")), build(), empty(), build(attentions=("a",), steps=(), total=50))
    for timeline in (*timelines, poisoned(value)):
        assert not hits(timeline)
    assert not run(lambda step: value)
