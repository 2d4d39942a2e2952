"""When initial weights count as too small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.init_too_small import InitTooSmall
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import factors_in
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

DEEP = mlp(*[64] * 21)  # twenty matrix layers
STUCK = {"loss": 1.386}
DEFAULT = 1 / 6  # rho of nn.Linear's default before a ReLU


def hits(timeline: Timeline) -> list[Hit]:
    return list(InitTooSmall().check(timeline))


def shrunk(net: Net, rho: float, *, per_layer: float | None = None) -> dict[str, Values]:
    norms = np.array([math.sqrt(2 * rho * p.size / p.fan_in) for p in net.parameters])
    slope = 0.5 * math.log10(rho) if per_layer is None else per_layer
    depth = np.array([i // 2 for i in range(len(net.modules))])
    return {"weight.norm": lambda step: norms, "activation.signal": lambda step: 10.0 ** (slope * depth)}


def run(rho: float, *, net: Net = DEEP, per_layer: float | None = None, **more: Any) -> list[Hit]:
    return hits(build(net, columns=shrunk(net, rho, per_layer=per_layer), **({"pulses": STUCK} | more)))


def test_the_default_initialisation_of_a_deep_plain_net_is_named_with_the_factor_that_mends_it() -> None:
    (hit,) = run(DEFAULT)
    assert (hit.first_step, hit.severity) == (0, Severity.CRITICAL)
    assert hit.evidence["decades_per_layer"] == pytest.approx(-0.389, rel=1e-2)
    assert hit.evidence["layers"] == 19
    assert hit.remedy.code is not None
    assert factors_in(hit.remedy.code)["layers.0"] == 2.449


def test_it_is_an_aside_where_training_works() -> None:
    assert run(DEFAULT, pulses={})[0].severity is Severity.INFO


def test_short_nets_get_by() -> None:
    for count in (4, 5, 6, 7):
        assert not run(DEFAULT, net=mlp(*[64] * (count + 1)))
    assert not run(1e-5, net=mlp(*[64] * 4))  # three layers
    assert run(1e-4, net=mlp(*[64] * 5))


def test_slope_total_and_rho_must_all_be_small() -> None:
    assert not run(DEFAULT, per_layer=-0.14)
    assert not run(DEFAULT, net=mlp(*[64] * 10), per_layer=-0.37)  # 2.6 decades over eight
    assert not run(0.71, per_layer=-0.4)


def test_a_normalisation_or_a_residual_addition_makes_up_for_it() -> None:
    assert not run(DEFAULT, net=norm("norm", 64) + DEEP)
    assert not run(DEFAULT, wiring=classification(DEEP, norms=1))
    assert not run(DEFAULT, wiring=classification(DEEP, residual_additions=10))


def test_behind_sigmoids_the_remedy_is_another_activation() -> None:
    (hit,) = run(DEFAULT, net=mlp(*[64] * 11, activation="sigmoid", kind="Sigmoid"), per_layer=-0.8)
    assert "ReLU" in hit.remedy.text


def test_layers_that_start_at_zero_do_not_count() -> None:
    net = Net((), ())
    for i in range(10):
        net += linear(f"layers.{2 * i}", 64, 64, activation="relu", zero_at_start=i % 2 == 1)
        net += module(f"layers.{2 * i + 1}", "ReLU", "activation")
    zero = {f"layers.{2 * i}.weight": 0.0 for i in range(1, 10, 2)}
    signal = {f"layers.{2 * i}": 1e-9 for i in range(1, 10, 2)}
    assert not hits(build(net, columns={"weight.norm": zero, "activation.signal": signal}, pulses=STUCK))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(DEEP), empty(), poisoned(math.nan, net=DEEP), poisoned(math.inf, net=DEEP), poisoned(0.0, net=DEEP)):
        assert not hits(timeline)
