"""When gradients count as exploding, over depth and over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.exploding_gradients import ExplodingGradients
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import poisoned

DEEP = mlp(*[64] * 13)  # twelve matrix layers, eleven compared
DEPTH = np.array([i // 2 for i in range(len(DEEP.modules))])
STUCK = {"loss": 2.6}
BLOWN_UP = {"loss": lambda step: 2.6 if step < 3 else math.nan}


def hits(timeline: Timeline) -> list[Hit]:
    return list(ExplodingGradients().check(timeline))


def over_depth(slope: Any, *, net: Net = DEEP, **more: Any) -> list[Hit]:
    """Gradients that grow by ``slope`` decades a layer towards the input, one slope or one for each step."""
    at = slope if callable(slope) else lambda step: slope
    depth = np.array([i // 2 for i in range(len(net.modules))])
    columns = {"activation_gradient.rms": lambda step: 10.0 ** (-at(step) * depth)}
    return hits(build(net, columns=columns, **({"pulses": STUCK} | more)))


def over_time(norm: Any, **more: Any) -> list[Hit]:
    return hits(build(pulses={**STUCK, "gradient_norm": norm}, **more))


def test_growth_towards_the_input_is_named() -> None:
    (hit,) = over_depth(0.4)
    assert hit.first_step == 0
    assert hit.evidence["decades"] == pytest.approx(4.0, rel=1e-3)
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.remedy.code is None  # there was no calm step whose norm could be the limit


def test_boundaries_of_slope_total_and_layers() -> None:
    assert not over_depth(0.29)  # 2.9 decades over eleven layers
    assert over_depth(0.31)
    assert not over_depth(0.14, net=mlp(*[64] * 25))
    assert over_depth(0.16, net=mlp(*[64] * 25))
    assert not over_depth(2.0, net=mlp(*[64] * 5))


def test_three_of_five_samples_must_show_it() -> None:
    assert not over_depth(lambda step: 0.4 if step in (0, 5) else 0.0)
    assert over_depth(lambda step: 0.4 if step in (0, 2, 4) else 0.0)


def test_one_sample_before_a_blow_up_is_enough() -> None:
    (hit,) = over_depth(lambda step: 0.4 if step == 0 else 0.0, pulses=BLOWN_UP)
    assert hit.severity is Severity.CRITICAL


def test_what_comes_after_the_blow_up_proves_nothing() -> None:
    assert not over_depth(lambda step: 0.4 if step > 3 else 0.0, pulses=BLOWN_UP)


def test_a_training_that_works_is_left_alone() -> None:
    assert not over_depth(0.4, pulses={})


def test_shrinking_towards_the_input_is_no_explosion() -> None:
    assert not over_depth(-0.4)


def test_a_residual_net_is_judged_by_its_blocks() -> None:
    net = Net((), ())
    for i in range(8):
        net += linear(f"blocks.{i}.a", 64, 64) + module(f"blocks.{i}", "Block", "container")
    wiring = classification(net, residual_additions=8)

    def growing(what: str) -> list[Hit]:
        columns = {"activation_gradient.rms": {f"blocks.{i}{what}": 10.0 ** (-0.6 * i) for i in range(8)}}
        return hits(build(net, columns=columns, pulses=STUCK, wiring=wiring))

    assert not growing(".a")
    assert growing("")[0].evidence["blocks"] == 8


def test_a_norm_that_grows_a_thousandfold_is_named() -> None:
    (hit,) = over_time(lambda step: 1.0 if step < 20 else 2000.0)
    assert (hit.first_step, hit.last_step) == (20, 99)
    assert hit.evidence["axis"] == "time"


def test_boundary_and_persistence_of_the_norm() -> None:
    assert not over_time(lambda step: 1.0 if step < 20 else 999.0)
    assert not over_time(lambda step: 5000.0 if step in (20, 22) else 1.0)
    assert over_time(lambda step: 5000.0 if step in (20, 22, 24) else 1.0)


def test_a_norm_that_explodes_within_the_first_five_steps_is_named() -> None:
    assert over_time(lambda step: 1.0 if step == 0 else 1e6)


def test_an_infinite_norm_is_named_at_once() -> None:
    (hit,) = over_time(lambda step: math.inf if step == 50 else (20.0 if step == 49 else 1.0))
    assert hit.first_step == 50
    assert hit.severity is Severity.CRITICAL
    assert "infinity" in hit.message


def test_a_norm_that_breaks_without_having_grown_did_not_explode() -> None:
    assert not over_time(lambda step: math.inf if step >= 50 else 1.0)


def test_a_healthy_loss_silences_a_growing_norm() -> None:
    assert not hits(build(pulses={"gradient_norm": lambda step: 1.0 if step < 20 else 5000.0}))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not hits(build(DEEP))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value, net=DEEP))
