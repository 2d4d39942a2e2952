"""When a graph counts as growing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.rules.growing_graph import GrowingGraph
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

READ = (0, 1, 2, 25, 50, 75)  # steps whose graph is read


def hits(timeline: Timeline) -> list[Hit]:
    return list(GrowingGraph().check(timeline))


def run(nodes: Any = lambda step: 40.0 * (step + 1), *, read: Any = READ, **more: Any) -> list[Hit]:
    columns = {"step.graph_nodes": lambda step: nodes(step) if step in read else math.nan}
    return hits(build(more.pop("net", SMALL), columns=columns, **more))


def test_a_graph_that_holds_all_steps_before_is_named() -> None:
    (hit,) = run()
    assert hit.severity is Severity.WARNING
    assert (hit.first_step, hit.last_step) == (0, 75)
    assert hit.evidence["nodes_a_step"] == pytest.approx(40)
    assert "detach()" in (hit.remedy.code or "")


def test_recurrent_modules_are_named() -> None:
    (hit,) = run(net=SMALL + Net((ModuleInfo("cell", "GRU", "recurrent"),), ()))
    assert hit.modules == ("cell",)


def test_four_readings_are_enough_and_three_are_not() -> None:
    assert run(read=READ[:4])
    assert not run(read=READ[:3])


def test_three_are_enough_where_steps_take_longer_as_well() -> None:
    assert run(read=READ[:3], pulses={"seconds": lambda step: 0.01 * (1 + step / 20)})
    assert not run(read=READ[:3], pulses={"seconds": lambda step: 0.01 * (1 + step / 200)})


def test_slow_steps_alone_prove_nothing() -> None:
    assert not run(lambda step: 40.0, pulses={"seconds": lambda step: 0.01 * (1 + step)})


def test_the_growth_has_to_reach_twice_the_start() -> None:
    assert run(lambda step: 40.0 + 0.54 * step)
    assert not run(lambda step: 40.0 + 0.52 * step)


def test_sequences_of_varying_length_are_no_growth() -> None:
    assert not run(lambda step: 40.0 + 300 * (step * 0.37 % 1))


def test_a_curriculum_is_no_line_from_the_first_steps_on() -> None:
    assert not run(lambda step: 40.0 * (1 + step // 25))


def test_a_graph_that_is_read_in_part_counts_up_to_there() -> None:
    assert run(lambda step: min(400.0 * (step + 1), 20_000.0))
    assert not run(lambda step: 20_000.0)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=(), total=50), poisoned(math.nan), poisoned(math.inf), poisoned(-1.0)):
        assert not hits(timeline)
