"""When initial weights count as too large."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.init_too_large import InitTooLarge
from gradscope.timeline import ACTIVATION_ENERGY
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
from tests.timelines import one_loss
from tests.timelines import parameter
from tests.timelines import poisoned
from tests.timelines import regressed

DEEP = mlp(*[64] * 9)  # eight matrix layers
TANH = mlp(*[64] * 9, activation="tanh", kind="Tanh")
STUCK = {"loss": 100.0}
BLOWN_UP = {"loss": lambda step: 100.0 if step < 3 else math.nan}


def hits(timeline: Timeline) -> list[Hit]:
    return list(InitTooLarge().check(timeline))


def grown(net: Net, rho: float, *, per_layer: float | None = None) -> dict[str, Values]:
    """Weights rho times He's variance, and a signal that grows along: half log10 rho decades a layer unless told otherwise."""
    norms = np.array([math.sqrt(2 * rho * p.size / p.fan_in) for p in net.parameters])
    slope = 0.5 * math.log10(rho) if per_layer is None else per_layer
    depth = np.array([i // 2 for i in range(len(net.modules))])
    return {"weight.norm": lambda step: norms, "activation.signal": lambda step: 10.0 ** (slope * depth)}


def run(rho: float, *, net: Net = DEEP, per_layer: float | None = None, **more: Any) -> list[Hit]:
    return hits(build(net, columns=grown(net, rho, per_layer=per_layer), **({"pulses": STUCK} | more)))


def test_weights_that_are_too_large_are_named_with_the_factor_that_mends_them() -> None:
    (hit,) = run(5.8)
    assert (hit.first_step, hit.last_step, hit.strength) == (0, 0, 4.0)
    assert hit.evidence["rho"] == pytest.approx(5.8, rel=1e-3)
    assert hit.evidence["decades_per_layer"] == pytest.approx(0.382, rel=1e-2)
    assert hit.modules == tuple(f"layers.{i}" for i in range(0, 14, 2))  # not the last
    assert hit.remedy.code is not None
    assert factors_in(hit.remedy.code)["layers.2"] == 0.4152


def test_severity_follows_what_becomes_of_the_training() -> None:
    assert run(5.8, pulses=BLOWN_UP)[0].severity is Severity.CRITICAL
    assert run(5.8, pulses={})[0].severity is Severity.INFO
    assert run(5.8, steps=range(3))[0].severity is Severity.WARNING


def probed(without: float) -> StepQuality:
    return StepQuality(0, 20.0, 100.0, 1e5, -50.0, 0.1, {"init-too-large": without})


def test_a_measured_remedy_makes_it_sure_however_the_signal_grows() -> None:
    assert not run(2.5, per_layer=0.09)
    assert not run(2.5, per_layer=0.09, probes=(probed(1.1),))
    (hit,) = run(2.5, per_layer=0.09, probes=(probed(0.3),))
    assert hit.strength == 5.0
    assert (hit.evidence["overshoot"], hit.evidence["overshoot_without"]) == (20.0, 0.3)
    assert run(5.8, probes=(probed(0.3),))[0].strength == 5.0
    assert run(5.8, probes=(probed(1.1),))[0].strength == 4.0
    assert not run(1.9, probes=(probed(0.3),))


def test_rho_and_slope_and_total_must_all_be_large() -> None:
    assert not run(1.9, per_layer=0.4)
    assert not run(5.8, per_layer=0.09)
    assert not run(5.8, net=mlp(*[64] * 7), per_layer=0.2)  # six layers, five compared: 0.8 decades
    assert run(5.8, net=mlp(*[64] * 7), per_layer=0.4)


def test_a_learning_rate_that_is_too_high_shows_nothing_at_step_0() -> None:
    columns = {"activation.signal": lambda step: 1.0 if step == 0 else 1e6, "update.ratio": 3.0}
    assert not hits(build(DEEP, columns=columns, pulses=BLOWN_UP))


def test_layers_that_a_norm_follows_do_not_count() -> None:
    net = Net((), ())
    for i in range(8):
        net += linear(f"layers.{2 * i}", 64, 64, norm_follows=True) + module(f"layers.{2 * i + 1}", "BatchNorm1d", "norm")
    assert not run(5.8, net=net)


def test_a_residual_net_is_judged_by_its_blocks() -> None:
    net = Net((), ())
    for i in range(8):
        net += linear(f"blocks.{i}.a", 64, 64, activation="relu") + module(f"blocks.{i}", "Block", "container")
    net += linear("head", 64, 4)
    wiring = classification(net, residual_additions=8)
    norms = np.array([math.sqrt(2 * 6 * p.size / p.fan_in) for p in net.parameters])
    zero_branch = {"weight.norm": lambda step: norms, "activation.signal": {f"blocks.{i}.a": 10.0**i for i in range(8)}}
    growing = {"weight.norm": lambda step: norms, "activation.signal": {f"blocks.{i}": 10.0 ** (0.4 * i) for i in range(8)}}
    assert not hits(build(net, columns=zero_branch, pulses=STUCK, wiring=wiring))
    (hit,) = hits(build(net, columns=growing, pulses=STUCK, wiring=wiring))
    assert hit.evidence["blocks"] == 8


def test_in_short_nets_rho_counts_after_a_blow_up_only() -> None:
    short = mlp(64, 64, 64, 4)
    (hit,) = run(128.0, net=short, pulses=BLOWN_UP)
    assert hit.strength == 3.0
    assert not run(128.0, net=short)
    assert not run(3.9, net=short, pulses=BLOWN_UP)
    assert not run(128.0, net=mlp(64, 64, 4), pulses=BLOWN_UP)


def test_with_a_batch_of_one_theory_stands_for_the_signal() -> None:
    columns = {**grown(DEEP, 5.8), "activation.signal": math.nan}
    (hit,) = hits(build(DEEP, columns=columns, pulses=STUCK))
    assert hit.evidence["decades_per_layer"] == pytest.approx(0.382, rel=1e-2)


def saturated(share: float, *, rho: float = 25.0, **more: Any) -> list[Hit]:
    """A tanh net with saturated activations at step 0 and a signal of the same size in all layers."""
    of_relu = rho / ACTIVATION_ENERGY["tanh"] / 2  # what counts as rho behind a ReLU
    columns = {**grown(TANH, of_relu, per_layer=0.0), "activation.saturated": share, **more.pop("columns", {})}
    return hits(build(TANH, columns=columns, **{"pulses": STUCK, **more}))


def test_activations_that_are_saturated_at_step_0_are_named() -> None:
    (hit,) = saturated(0.84)
    assert hit.evidence["saturated"] == pytest.approx(0.84)
    assert hit.remedy.code is not None
    assert factors_in(hit.remedy.code)["layers.2"] == 0.2
    assert not saturated(0.49)
    assert not saturated(0.84, rho=1.9)


def test_an_input_that_is_too_large_may_saturate_as_well() -> None:
    assert not saturated(0.84, columns={"input.rms": 3.1})


def test_saturation_that_training_overcomes_is_an_aside_unless_the_loss_began_far_too_high() -> None:
    assert saturated(0.84, pulses={})[0].severity is Severity.INFO
    high = {"loss": lambda step: 0.4 + 11 * math.exp(-step / 20)}
    assert saturated(0.84, pulses=high)[0].severity is Severity.WARNING
    (hit,) = saturated(0.84, pulses=high, probes=(probed(0.3),))
    assert (hit.severity, hit.strength, hit.evidence["overshoot"]) == (Severity.WARNING, 5.0, 20.0)


SHORT = mlp(64, 64, 64, 1)
WAVE = regressed(std=0.7)


def at_output(rho: float = 16.0, *, output: float = 80.0, net: Net = SHORT, **more: Any) -> list[Hit]:
    """A short net whose weights have rho times He's variance and whose output has this root mean square."""
    columns = {**grown(net, rho), **WAVE, "loss.input_rms": output, **more.pop("columns", {})}
    given = {"pulses": {"loss": lambda step: 200 - step}, "wiring": one_loss(net=net)} | more
    return hits(build(net, columns=columns, **given))


def test_weights_that_are_too_large_at_any_depth_show_at_the_output() -> None:
    (hit,) = at_output()
    assert (hit.severity, hit.strength, hit.evidence["matrices"]) == (Severity.WARNING, 4.0, 3)
    assert hit.evidence["rho"] == pytest.approx(16.0, rel=1e-3)
    assert "output's root mean square is 80, where the targets have 0.7" in hit.message
    assert factors_in(hit.remedy.code or "")["layers.2.weight"] == 0.25
    assert at_output(net=mlp(64, 64, 1))
    assert not at_output(3.9)
    assert not at_output(output=2.0)
    assert not at_output(columns={"input.rms": 3.1})
    assert not at_output(net=mlp(64, 64, 1) + norm("norm", 64))


def test_a_large_output_is_an_aside_until_training_should_have_brought_it_down() -> None:
    assert at_output(steps=range(99))[0].severity is Severity.INFO
    assert at_output(pulses={"loss": lambda step: 200 * math.exp(-step / 10)})[0].severity is Severity.INFO
    assert at_output(pulses={"loss": lambda step: 200.0 if step < 3 else math.nan})[0].severity is Severity.CRITICAL


def test_a_squared_error_has_to_come_well_under_a_constants() -> None:
    for last, severity in ((0.45, Severity.WARNING), (0.35, Severity.INFO)):  # a constant has 0.49
        falling = {"loss": lambda step, last=last: 80.0 if step < 50 else last}
        assert at_output(pulses=falling)[0].severity is severity


def test_a_constants_error_stands_for_what_an_absolute_error_should_come_to() -> None:
    for last, severity in ((0.8, Severity.WARNING), (0.6, Severity.INFO)):
        falling = {"loss": lambda step, last=last: 80.0 if step < 50 else last}
        assert at_output(wiring=one_loss("l1", net=SHORT), pulses=falling)[0].severity is severity


def test_logits_may_start_at_ten() -> None:
    logits = mlp(64, 64, 4)
    assert at_output(net=logits, output=11.0, wiring=classification(logits))
    assert not at_output(net=logits, output=9.0, wiring=classification(logits))


def test_matrices_that_are_parameters_by_themselves_count_by_their_shorter_side() -> None:
    owner = ModuleInfo("", "Net", "container", ("first", "stack", "table"))
    bare = Net((owner,), (parameter("first", (16, 64)), parameter("stack", (2, 64, 64)), parameter("table", (1, 64))))
    norms = np.array([math.sqrt(p.size) for p in bare.parameters])  # a standard deviation of 1
    (hit,) = at_output(net=bare, columns={"weight.norm": lambda step: norms})
    assert hit.evidence["matrices"] == 2
    assert hit.evidence["rho"] == pytest.approx((8 + 32) / 2)


def test_only_step_0_shows_how_weights_were_initialised() -> None:
    assert not run(5.8, steps=range(1, 20))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(DEEP), empty(), poisoned(math.nan, net=DEEP), poisoned(math.inf, net=DEEP), poisoned(0.0, net=DEEP)):
        assert not hits(timeline)


def test_after_several_updates_within_the_first_step_no_weights_are_the_initial_ones() -> None:
    names = tuple(p.name for p in DEEP.parameters)
    for optimizer, forwards, found in (("LBFGS", 20.0, 0), ("LBFGS", 1.0, 1), ("SGD", 4.0, 1)):
        columns = {**grown(DEEP, 5.8), "step.forwards": forwards}
        optimizers = (OptimizerInfo(optimizer, 1.0, names, 0, {}),)
        assert len(hits(build(DEEP, columns=columns, pulses=BLOWN_UP, optimizers=optimizers))) == found
