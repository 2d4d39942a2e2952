"""When initial weights count as too small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.rules.init_too_small import InitTooSmall
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import OptimizerInfo
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import factors_in
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import parameter
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


def test_with_adam_it_is_an_aside_until_a_hundred_steps_have_shown_what_becomes_of_it() -> None:
    adam = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in DEEP.parameters), 0, {"eps": 1e-8})
    assert run(DEFAULT, per_layer=-0.40, optimizers=(adam,), steps=range(60))[0].severity is Severity.WARNING  # 7.2 decades
    assert run(DEFAULT, per_layer=-0.36, optimizers=(adam,), steps=range(60))[0].severity is Severity.INFO
    assert run(DEFAULT, per_layer=-0.36, optimizers=(adam,))[0].severity is Severity.CRITICAL
    assert run(DEFAULT, per_layer=-0.36, steps=range(60))[0].severity is Severity.WARNING


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


def bare(count: int) -> Net:
    """A module of the user's own with so many matrices of 64 by 32."""
    names = [f"weights.{i}" for i in range(count)]
    return Net((), tuple(parameter(name, (64, 32)) for name in names)) + Net(
        (ModuleInfo("weights", "ParameterList", "other", tuple(names)),), ()
    )


def of_bare(rho: float, output: float, *, count: int = 8, **more: Any) -> list[Hit]:
    norms = {name.name: math.sqrt(rho * 32) for name in bare(count).parameters}  # 64 inputs at most
    columns = {"weight.norm": norms, "loss.input_signal": output}
    return hits(build(bare(count), columns=columns, **({"pulses": STUCK} | more)))


def test_matrices_that_no_layer_holds_are_named_by_what_they_let_through_at_most() -> None:
    (hit,) = of_bare(0.01, 1e-9)
    assert hit.evidence["rho"] == pytest.approx(0.01, rel=1e-3) and hit.evidence["decades"] == pytest.approx(-8, rel=1e-3)
    assert "weights.0" in (hit.remedy.code or "") and hit.severity is Severity.CRITICAL


def test_matrices_that_no_layer_holds_must_be_seen_to_let_the_signal_die() -> None:
    assert not of_bare(0.01, 0.1)
    assert not of_bare(0.01, math.nan)
    assert not of_bare(0.01, 1e-9, count=3)
    assert not of_bare(0.5, 1e-9)
    assert not of_bare(0.01, 1e-9, wiring=classification(bare(8), norms=1))


def test_few_layers_that_are_tiny_count_once_training_stands_still() -> None:
    net = mlp(16, 32, 4)
    columns = {"weight.norm": lambda step: np.array([1e-3, 1e-3]), "loss.input_signal": 1e-7}
    (early,) = hits(build(net, columns=columns, pulses=STUCK, steps=range(30), total=30))
    (late,) = hits(build(net, columns=columns, pulses=STUCK, steps=range(0, 200, 10), total=200))
    assert (early.severity, late.severity) == (Severity.INFO, Severity.WARNING)
    assert late.evidence["matrices"] == 2
    assert not hits(build(net, columns={**columns, "loss.input_signal": 0.1}, pulses=STUCK))
    assert not hits(build(net, columns={**columns, "weight.norm": 3.0}, pulses=STUCK))


def test_an_output_that_does_not_vary_has_learned_nothing_whatever_the_loss_seems_to_say() -> None:
    columns = {**shrunk(DEEP, DEFAULT), "loss.input_signal": 0.0}
    assert hits(build(DEEP, columns=columns))[0].severity is Severity.WARNING
    assert hits(build(DEEP, columns={**columns, "loss.input_signal": 0.5}))[0].severity is Severity.INFO
