"""When a deep model is said to lack a normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.missing_normalization import MissingNormalization
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

DEEP = mlp(*[64] * 13)  # twelve matrix layers
BLOWN_UP = {"loss": lambda step: 2.6 if step < 3 else math.nan}


def hits(timeline: Timeline) -> list[Hit]:
    return list(MissingNormalization().check(timeline))


def residual(blocks: int) -> Net:
    net = Net((), ())
    for i in range(blocks):
        net += linear(f"blocks.{i}.a", 64, 64, activation="relu") + linear(f"blocks.{i}.b", 64, 64)
        net += module(f"blocks.{i}", "Block", "container")
    return net + linear("head", 64, 4)


def stack(*, blocks: int = 10, slope: float = 0.15, rho: float = 1.0, net: Net | None = None, **more: Any) -> list[Hit]:
    net = net or residual(blocks)
    norms = np.array([math.sqrt(rho * (1 if p.name.endswith("b.weight") else 2) * p.size / p.fan_in) for p in net.parameters])
    columns = {
        "weight.norm": lambda step: norms,
        "activation.rms": {f"blocks.{i}": 10.0 ** (slope * i) for i in range(blocks)},
    }
    wiring = more.pop("wiring", classification(net, residual_additions=blocks))
    return hits(build(net, columns=columns, wiring=wiring, **({"pulses": {"loss": 2.6}} | more)))


def plain(*, net: Net = DEEP, ratio: Any = 0.05, pulses: Any = BLOWN_UP, columns: Any = None, **more: Any) -> list[Hit]:
    return hits(build(net, columns={"update.ratio": ratio, **(columns or {})}, pulses=pulses, **more))


def test_a_residual_stack_that_doubles_its_variance_from_block_to_block_is_named() -> None:
    (hit,) = stack()
    assert (hit.first_step, hit.last_step, hit.strength) == (0, 0, 4.0)
    assert hit.evidence["decades_per_block"] == pytest.approx(0.15, rel=1e-3)
    assert hit.modules == tuple(f"blocks.{i}" for i in range(10))
    assert hit.remedy.code is not None
    assert "torch.nn.LayerNorm(width)" in hit.remedy.code
    assert "'blocks.9'], 64)" in hit.remedy.code
    assert "0.32" in hit.remedy.text  # 1 / sqrt(10)


def test_severity_follows_what_becomes_of_the_training() -> None:
    assert stack(pulses=BLOWN_UP)[0].severity is Severity.CRITICAL
    assert stack(pulses={})[0].severity is Severity.INFO


def test_a_residual_stack_with_a_norm_or_quiet_branches_is_left_alone() -> None:
    assert not stack(net=norm("norm", 64) + residual(10))
    assert not stack(wiring=classification(residual(10), residual_additions=10, norms=3))
    assert not stack(slope=0.09)


def test_boundaries_of_blocks_and_of_the_weights_scale() -> None:
    assert stack(blocks=6)
    assert not stack(blocks=5)
    assert stack(rho=2.4)
    assert not stack(rho=2.6)  # that is the initialisation's fault
    assert not stack(rho=0.29)


def test_a_deep_plain_net_that_blows_up_at_small_steps_is_named() -> None:
    (hit,) = plain()
    assert (hit.first_step, hit.last_step, hit.strength) == (0, 3, 3.0)
    assert hit.evidence["update_ratio"] == pytest.approx(0.05)
    assert "'layers.20': torch.nn.LayerNorm(64)" in (hit.remedy.code or "")  # the last but one
    assert "'layers.22'" not in (hit.remedy.code or "")


def probed(without: float) -> StepQuality:
    return StepQuality(0, 20.0, 2.6, 1e5, -50.0, 0.1, {"missing-normalization": without})


def test_a_measured_remedy_makes_it_sure() -> None:
    assert stack(probes=(probed(0.2),))[0].strength == 5.0
    assert stack(probes=(probed(2.0),))[0].strength == 4.0
    assert plain(probes=(probed(0.2),))[0].strength == 5.0


def test_a_deep_plain_net_whose_first_step_overshot_need_not_blow_up() -> None:
    stuck = {"loss": 2.6}
    assert not plain(pulses=stuck)
    assert not plain(pulses=stuck, probes=(probed(1.2),))
    (hit,) = plain(pulses=stuck, probes=(probed(0.2),))
    assert (hit.first_step, hit.last_step, hit.strength) == (0, 0, 5.0)
    assert "overshot at their first step" in hit.message
    assert plain(pulses={}, probes=(probed(0.2),))[0].severity is Severity.INFO


def test_large_steps_are_the_learning_rates_fault() -> None:
    assert not plain(ratio=lambda step: 0.3 if step == 2 else 0.05)
    assert plain(ratio=lambda step: 0.3 if step > 2 else 0.05)  # after the blow-up they prove nothing


def test_plain_nets_that_are_short_survive_or_start_uneven_are_left_alone() -> None:
    depth = np.array([i // 2 for i in range(len(DEEP.modules))])
    assert not plain(net=mlp(*[64] * 10))
    assert not plain(pulses={})
    assert not plain(pulses={"loss": lambda step: 2.6 if step < 11 else math.nan})
    assert not plain(columns={"activation.signal": lambda step: 10.0 ** (0.2 * depth)})
    assert not plain(net=norm("norm", 64) + DEEP)


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(DEEP), empty(), poisoned(math.nan, net=DEEP), poisoned(math.inf, net=DEEP)):
        assert not hits(timeline)
    assert not stack(slope=math.nan)


def unseen(slope: float, *, blocks: int = 10, **more: Any) -> list[Hit]:
    """Branches of two layers that the model adds up: no module puts out the sum."""
    net = Net((), ())
    for i in range(blocks):
        net += linear(f"a.{i}", 64, 64, activation="relu") + linear(f"b.{i}", 64, 64)
    net += linear("head", 64, 4)
    norms = np.array([math.sqrt((1 if p.name.startswith("b") else 2) * p.size / p.fan_in) for p in net.parameters])
    scales = {f"{part}.{i}": 10.0 ** (slope * i) for i in range(blocks) for part in "ab"}
    wiring = classification(net, residual_additions=blocks)
    columns = {"weight.norm": lambda step: norms, "activation.rms": scales}
    return hits(build(net, columns=columns, wiring=wiring, **({"pulses": BLOWN_UP} | more)))


def test_branches_that_the_model_adds_up_are_judged_by_what_their_layers_put_out() -> None:
    (hit,) = unseen(0.2)
    assert hit.evidence["decades_per_block"] == pytest.approx(0.2, rel=0.02) and hit.evidence["blocks"] == 10
    assert hit.severity is Severity.CRITICAL
    assert not unseen(0.09)
    assert not unseen(0.2, pulses={"loss": 2.6})  # nothing blew up


def test_the_code_normalises_what_each_layer_puts_out() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Module()
    model.layers = torch.nn.Sequential(*(torch.nn.ReLU() if i % 2 else torch.nn.Linear(64, 64) for i in range(23)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)
    exec(str(plain()[0].remedy.code), {"torch": torch, "model": model})
    hidden = model.layers[:21](torch.randn(8, 64))
    assert hidden.std().item() == pytest.approx(1, rel=0.1)
