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


def test_one_reading_is_enough_that_is_ten_times_all_before() -> None:
    assert run(lambda step: 6.0 if step < 75 else 110.0)
    assert not run(lambda step: 6.0 if step < 75 else 95.0)
    assert not run(lambda step: 12.0 if step < 75 else 110.0)


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


def grown(step: int) -> float:
    return 200.0 if step else 6.0


def test_the_remedy_normalises_queries_and_keys_of_one_projection() -> None:
    (hit,) = run(grown)
    assert "{'block.qkv': 16}.items()" in (hit.remedy.code or "")


def test_the_remedy_normalises_two_projections() -> None:
    keys = parameter("block.k.weight", (16, 16))
    both = Net((*APART.modules, ModuleInfo("block.k", "Linear", "linear", (keys.name,))), (*APART.parameters, keys))
    (hit,) = run(grown, net=both, site="block.q")
    assert "{'block.q': 16, 'block.k': 16}.items()" in (hit.remedy.code or "")


def test_queries_alone_are_not_normalised() -> None:
    (hit,) = run(grown, net=APART, site="block.q")
    assert hit.remedy.code is None


def test_torchs_own_attention_has_no_projection_to_wrap() -> None:
    own = (parameter("attn.in_proj_weight", (48, 16)), parameter("attn.in_proj_bias", (48,)))
    net = Net((ModuleInfo("attn", "MultiheadAttention", "attention", tuple(p.name for p in own)),), own)
    (hit,) = run(grown, net=net, site="attn")
    assert hit.remedy.code is None and "QK-norm" in hit.remedy.text


def test_where_the_projection_is_not_known_there_is_no_code() -> None:
    (hit,) = run(grown, site="(attention)")
    assert hit.remedy.code is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_healthy_and_broken_numbers_raise_nothing(value: float) -> None:
    timelines = (build(attentions=("a", "b")), build(), empty(), build(attentions=("a",), steps=(), total=50))
    for timeline in (*timelines, poisoned(value)):
        assert not hits(timeline)
    assert not run(lambda step: value)


def test_logits_that_are_alarming_from_the_start_are_sure_where_training_stands_still() -> None:
    def strength(logit: float, **more: Any) -> float:
        return run(lambda step: logit, **more)[0].strength

    assert (strength(400.0), strength(400.0, total=90)) == (3.0, 1.0)
    assert strength(80.0) == 1.0
    assert strength(400.0, pulses={}) == 1.0  # it learns


def test_logits_that_were_large_before_any_step_are_divided_by_too_little() -> None:
    (hit,) = run(lambda step: 200.0)
    assert hit.remedy.code is None and "by √d" in hit.remedy.text


def test_the_code_bounds_the_products_of_two_projections() -> None:
    torch = pytest.importorskip("torch")
    keys = parameter("block.k.weight", (16, 16))
    both = Net((*APART.modules, ModuleInfo("block.k", "Linear", "linear", (keys.name,))), (*APART.parameters, keys))
    (hit,) = run(grown, net=both, site="block.q")
    model = torch.nn.Module()
    model.block = torch.nn.ModuleDict({name: torch.nn.Linear(16, 16) for name in "qk"})
    with torch.no_grad():
        model.block["q"].weight.mul_(1e4)
    exec(str(hit.remedy.code), {"torch": torch, "model": model})
    x = torch.randn(32, 16)
    assert (model.block["q"](x) @ model.block["k"](x).T).abs().max() <= 16 * 1.001
