"""When gradients count as vanishing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.vanishing_gradients import VanishingGradients
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
STUCK = {"loss": 1.386}
ADAM = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in DEEP.parameters), 0, {"eps": 1e-8})


def hits(timeline: Timeline) -> list[Hit]:
    return list(VanishingGradients().check(timeline))


def run(slope: Any, *, net: Net = DEEP, ratio: Any = 1e-9, columns: Any = None, **more: Any) -> list[Hit]:
    """Gradients that shrink by ``slope`` decades a layer towards the input; the first layer moves by ``ratio``."""
    at = slope if callable(slope) else lambda step: slope
    depth = np.array([i // 2 for i in range(len(net.modules))])
    given = {
        "activation_gradient.rms": lambda step: 1e-2 * 10.0 ** (at(step) * (depth - depth.max())),
        "update.ratio": {"layers.0.weight": ratio},
        **(columns or {}),
    }
    return hits(build(net, columns=given, **({"pulses": STUCK} | more)))


def test_a_gradient_that_dies_before_the_first_layers_is_named() -> None:
    (hit,) = run(0.5)
    assert (hit.first_step, hit.last_step) == (0, 95)
    assert hit.evidence["decades_per_layer"] == pytest.approx(0.5, rel=1e-3)
    assert hit.modules == tuple(f"layers.{i}" for i in range(0, 10, 2))
    assert hit.severity is Severity.CRITICAL
    assert "kaiming_normal_" in (hit.remedy.code or "")


def test_boundaries_of_slope_total_and_layers() -> None:
    assert not run(0.39)  # 3.9 decades over eleven layers
    assert run(0.41)
    assert not run(0.14, net=mlp(*[64] * 35))
    assert run(0.16, net=mlp(*[64] * 35))
    assert not run(2.0, net=mlp(*[64] * 5))


def test_five_of_five_samples_must_show_it() -> None:
    assert not run(lambda step: 0.0 if step % 4 == 0 else 0.5, steps=range(40))
    assert not run(0.5, steps=range(4))
    assert run(0.5, steps=range(5))[0].severity is Severity.WARNING


def test_first_layers_that_move_all_the_same_are_left_alone() -> None:
    assert not run(0.5, ratio=1.1e-6)
    assert run(0.5, ratio=0.9e-6)


def test_an_optimizer_that_divides_by_the_gradient_is_judged_by_its_eps() -> None:
    adam = {"optimizers": (ADAM,)}
    rms_of = lambda rms: {"weight_gradient.norm": {"layers.0.weight": rms * 64}}  # noqa: E731 - 64 x 64 elements
    assert not run(0.5, columns=rms_of(1.1e-7), **adam)
    assert run(0.5, columns=rms_of(0.9e-7), ratio=1e-3, **adam)


def test_a_training_that_works_or_has_converged_is_left_alone() -> None:
    assert not run(0.5, pulses={})
    assert not run(0.5, pulses={"loss": 0.01})


def test_growth_towards_the_input_is_not_vanishing() -> None:
    assert not run(-0.5)


def test_inside_residual_branches_gradients_may_be_small() -> None:
    net = Net((), ())
    for i in range(8):
        net += linear(f"blocks.{i}.a", 64, 64) + module(f"blocks.{i}", "Block", "container")
    wiring = classification(net, residual_additions=8)

    def shrinking(what: str) -> list[Hit]:
        columns: dict[str, Any] = {
            "activation_gradient.rms": {f"blocks.{i}{what}": 10.0 ** (0.8 * (i - 8)) for i in range(8)},
            "update.ratio": 1e-9,
        }
        return hits(build(net, columns=columns, pulses=STUCK, wiring=wiring))

    assert not shrinking(".a")
    assert shrinking("")[0].evidence["blocks"] == 8


def test_layers_without_any_gradient_do_not_make_a_slope() -> None:
    depth = np.array([i // 2 for i in range(len(DEEP.modules))])
    columns = {"activation_gradient.rms": lambda step: np.where(depth < 6, 0.0, 0.01), "update.ratio": 0.0}
    assert not hits(build(DEEP, columns=columns, pulses=STUCK))


def test_behind_sigmoids_the_remedy_is_another_activation() -> None:
    (hit,) = run(0.8, net=mlp(*[64] * 13, activation="sigmoid", kind="Sigmoid"))
    assert "ReLU" in hit.remedy.text


def test_what_comes_after_a_blow_up_proves_nothing() -> None:
    blown_up = {"loss": lambda step: 1.386 if step < 3 else math.nan}
    assert not run(lambda step: 0.5 if step > 3 else 0.0, pulses=blown_up)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not hits(build(DEEP))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value, net=DEEP))
