"""When gradients, or an eps, count as too small for float16."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.fp16_underflow import Fp16Underflow
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

HALF = Net(tuple(replace(m, dtype="float16") for m in SMALL.modules), SMALL.parameters)
STORED = Net(HALF.modules, tuple(replace(p, dtype="float16") for p in SMALL.parameters))
STUCK = {"loss": 1.386}
SIZES = np.array([p.size for p in SMALL.parameters])


def hits(timeline: Timeline) -> list[Hit]:
    return list(Fp16Underflow().check(timeline))


def run(*, rms: Any = 2e-7, zero: Any = 0.3, net: Net = HALF, pulses: Any = STUCK, **more: Any) -> list[Hit]:
    columns = {"weight_gradient.norm": lambda step: rms * np.sqrt(SIZES), "weight_gradient.zero": zero}
    columns["activation_gradient.absmax"] = 1e-6
    return hits(build(net, columns=columns, pulses=pulses, **more))


def adam(eps: float, *, net: Net = STORED, **more: Any) -> list[Hit]:
    optimizer = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in net.parameters), 0, {"eps": eps})
    return hits(build(net, optimizers=(optimizer,), **more))


def test_gradients_near_the_smallest_number_are_named_with_a_scale() -> None:
    (hit,) = run()
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert hit.severity is Severity.CRITICAL
    assert "init_scale=2.0**24" in (hit.remedy.code or "")


def test_the_scale_leaves_room_above_the_largest_gradient() -> None:
    columns = {"weight_gradient.norm": 1e-9, "weight_gradient.zero": 0.3, "activation_gradient.absmax": 0.05}
    (hit,) = hits(build(HALF, columns=columns, pulses=STUCK))
    assert "init_scale=2.0**16" in (hit.remedy.code or "")  # 65504 / (10 * 0.05) = 131008, just under 2^17


def test_severity_follows_what_becomes_of_the_training() -> None:
    assert run(steps=range(10))[0].severity is Severity.WARNING
    assert run(pulses={})[0].severity is Severity.INFO


def test_boundaries_of_size_and_zeros() -> None:
    assert run(rms=0.9e-6)
    assert not run(rms=1.1e-6)
    assert run(zero=0.06)
    assert not run(zero=0.04)


def test_zeros_at_an_ordinary_size_come_of_dead_units_or_inputs() -> None:
    assert not run(rms=1e-3, zero=0.9)


def test_a_net_whose_gradient_is_zero_everywhere_is_another_matter() -> None:
    assert not run(rms=0.0, zero=1.0)


def nothing(*, arrived: float = 0.0, weight: float = 1e-6, **more: Any) -> list[Hit]:
    columns = {"weight_gradient.norm": 0.0, "weight_gradient.zero": 1.0, "loss.weight": weight}
    columns["activation_gradient.absmax"] = arrived
    return hits(build(HALF, columns=columns, **({"pulses": {"loss": 1.4e-6}} | more)))


def test_where_nothing_is_left_not_even_the_last_output_gets_a_gradient() -> None:
    (hit,) = nothing()  # a small factor before the loss, which makes it small and is no convergence
    assert hit.severity is Severity.CRITICAL
    assert not nothing(arrived=1e-4)
    assert not nothing(weight=0.0)
    assert not nothing(weight=1.0)  # then the loss itself is close to zero, and its gradient by right
    assert not nothing(steps=range(4))


def test_half_of_the_layers_have_to_show_it() -> None:
    one = run(rms=np.array([2e-7, 1e-3, 1e-3]))
    two = run(rms=np.array([2e-7, 2e-7, 1e-3]))
    assert (len(one), len(two)) == (0, 1)


def test_with_a_scaler_nothing_is_said() -> None:
    assert not run(pulses=STUCK | {"loss_scale": 65536.0})


def test_other_formats_have_room() -> None:
    assert not run(net=Net(tuple(replace(m, dtype="bfloat16") for m in SMALL.modules), SMALL.parameters))
    assert not run(net=SMALL)


def test_a_converged_training_has_small_gradients() -> None:
    assert not run(pulses={"loss": lambda step: 1.4 if step < 5 else 1e-4})


def test_an_eps_that_is_zero_in_float16_is_a_broken_contract() -> None:
    (hit,) = adam(1e-8, steps=range(1))
    assert (hit.severity, hit.strength, hit.first_step) == (Severity.WARNING, 10.0, 0)
    assert 'group["eps"] = 1e-4' in (hit.remedy.code or "")
    assert adam(1e-8, pulses={"loss": lambda step: 1.4 if step < 3 else math.nan})[0].severity is Severity.CRITICAL
    assert adam(1e-8)[0].severity is Severity.INFO  # it works


def test_an_eps_that_float16_can_hold_is_fine() -> None:
    assert not adam(1e-7)
    assert not adam(1e-8, net=HALF)  # weights in float32 under autocast


def test_without_float16_it_says_why_it_cannot_look() -> None:
    assert "float16" in (Fp16Underflow().obstacle(build()) or "")
    assert Fp16Underflow().obstacle(build(HALF)) is None


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(), build(HALF), build(STORED), empty(), build(HALF, steps=(), total=50), poisoned(0.0, net=HALF))
    for timeline in (*timelines, poisoned(math.nan, net=HALF), poisoned(math.inf, net=HALF)):
        assert not hits(timeline)
