"""When a residual stream counts as growing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.residual_growth import ResidualGrowth
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

STUCK = {"loss": 1.39}
NOTHING = Net((), ())


def hits(timeline: Timeline) -> list[Hit]:
    return list(ResidualGrowth().check(timeline))


def residual(blocks: int) -> Net:
    net = Net((), ())
    for i in range(blocks):
        net += linear(f"blocks.{i}.a", 64, 64, activation="relu") + linear(f"blocks.{i}.b", 64, 64)
        net += module(f"blocks.{i}", "Block", "container")
    return net


def run(slope: float = 0.15, *, blocks: int = 10, end: Net = NOTHING, sizes: Any = None, **more: Any) -> list[Hit]:
    net = residual(blocks) + end + linear("head", 64, 4)
    rms = {f"blocks.{i}": size for i, size in enumerate(sizes or [10.0 ** (slope * i) for i in range(blocks)])}
    wiring = more.pop("wiring", classification(net, residual_additions=blocks))
    return hits(build(net, columns={"activation.rms": rms}, wiring=wiring, **({"pulses": STUCK} | more)))


def test_a_stream_that_doubles_its_variance_from_block_to_block_is_named() -> None:
    (hit,) = run()
    assert hit.modules == tuple(f"blocks.{i}" for i in range(10))
    assert (hit.first_step, hit.last_step, hit.severity) == (0, 0, Severity.CRITICAL)
    assert hit.evidence["decades"] == pytest.approx(1.35, rel=1e-3)


def test_the_remedy_scales_the_last_layer_of_each_branch() -> None:
    code = run()[0].remedy.code or ""
    assert "'blocks.9.b'" in code
    assert ".a'" not in code
    assert "mul_(0.316)" in code
    compile(code, "remedy", "exec")


def test_boundaries_of_slope_growth_and_blocks() -> None:
    assert not run(0.09, blocks=20)
    assert not run(0.11)  # 0.99 decades over ten blocks
    assert run(0.11, blocks=11)
    assert not run(0.5, blocks=5)
    assert run(0.5, blocks=6)


def test_growth_like_the_square_root_of_the_depth_is_normal() -> None:
    assert not run(blocks=24, sizes=[math.sqrt(i + 1) for i in range(24)])


def test_where_training_works_it_is_an_aside() -> None:
    assert run(pulses={})[0].severity is Severity.INFO


def test_with_a_final_norm_it_takes_a_training_that_fails() -> None:
    final = norm("norm", 64)
    early = {"steps": range(5), "total": 20}
    assert run(end=final, **early)[0].severity is Severity.INFO
    assert run(**early)[0].severity is Severity.WARNING
    assert run(end=final)[0].severity is Severity.CRITICAL


def test_a_net_without_residual_additions_has_no_stream() -> None:
    assert not run(wiring=classification())


def test_only_what_was_there_before_any_update_counts() -> None:
    assert not run(steps=range(5, 50))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    net = residual(8)
    wiring = classification(net, residual_additions=8)
    assert not hits(build(net, wiring=wiring))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value))
        assert not hits(build(net, columns={"activation.rms": value}, wiring=wiring))
