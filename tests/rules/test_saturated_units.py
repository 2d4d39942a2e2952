"""When units count as saturated."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.rules.saturated_units import SaturatedUnits
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

TANH = mlp(16, 32, 32, 4, activation="tanh", kind="Tanh")
STUCK = {"loss": 1.386}


def hits(timeline: Timeline) -> list[Hit]:
    return list(SaturatedUnits().check(timeline))


def run(share: Any, *, net: Net = TANH, site: str = "layers.0", **more: Any) -> list[Hit]:
    return hits(build(net, columns={"activation.saturated": {site: share}}, **({"pulses": STUCK} | more)))


def test_a_saturated_layer_is_named() -> None:
    (hit,) = run(0.84)
    assert hit.modules == ("layers.0",)
    assert (hit.first_step, hit.last_step) == (0, 95)
    assert hit.evidence["share"] == pytest.approx(0.84)
    assert "gain=1.667" in (hit.remedy.code or "")


def test_severity_follows_what_becomes_of_the_training() -> None:
    assert run(0.84)[0].severity is Severity.CRITICAL
    assert run(0.84, steps=range(6))[0].severity is Severity.WARNING
    assert run(0.84, pulses={})[0].severity is Severity.INFO


def test_boundaries_of_share_and_duration() -> None:
    assert not run(0.49)
    assert run(0.51)
    assert not run(0.84, steps=range(4))
    assert not run(lambda step: 0.84 if step % 5 else 0.1, steps=range(50))


def test_it_tells_since_when() -> None:
    assert run(lambda step: 0.84 if step >= 4 else 0.1)[0].first_step == 4


def test_the_output_may_saturate() -> None:
    net = TANH + module("out", "Sigmoid", "activation")
    assert not run(0.9, net=net, site="out")
    assert not run(0.9, net=net, site="layers.4")


def test_gates_of_recurrent_modules_are_not_judged() -> None:
    lstm = Net((ModuleInfo("lstm", "LSTM", "recurrent"),), ())
    assert not run(0.9, net=lstm + linear("head", 32, 4), site="lstm")


def test_an_activation_that_follows_no_layer_is_judged_itself() -> None:
    net = linear("a", 16, 32, norm_follows=True) + norm("n", 32) + module("t", "Tanh", "activation") + linear("b", 32, 4)
    (hit,) = run(0.9, net=net, site="t")
    assert hit.modules == ("t",)
    assert hit.remedy.code is None


def test_activations_without_flat_ends_on_both_sides_are_not_judged() -> None:
    assert not run(0.9, net=mlp(16, 32, 32, 4, activation="gelu", kind="GELU"))


def test_a_converged_training_is_left_alone() -> None:
    assert not run(0.9, pulses={"loss": 0.01})


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(TANH), build(), empty(), poisoned(math.nan, net=TANH), poisoned(math.inf, net=TANH)):
        assert not hits(timeline)
