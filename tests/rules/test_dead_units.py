"""When units count as dead."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.rules.dead_units import DeadUnits
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import mlp
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

STUCK = {"loss": 1.386}
LONG = {"steps": range(60), "pulses": STUCK}
ALL = 0xFFFF


def hits(timeline: Timeline) -> list[Hit]:
    return list(DeadUnits().check(timeline))


def run(low: Any, high: Any = 0, *, site: str = "layers.0", columns: Any = None, **more: Any) -> list[Hit]:
    given = {"activation.active_low": {site: low}, "activation.active_high": {site: high}, **(columns or {})}
    return hits(build(columns=given, **(LONG | more)))


def first(units: int) -> int:
    """A mask with the first so many units active."""
    return (1 << units) - 1


def test_a_layer_with_most_units_dead_is_named() -> None:
    (hit,) = run(first(8), total=100)
    assert hit.modules == ("layers.0",)
    assert (hit.first_step, hit.last_step, hit.severity) == (0, 59, Severity.WARNING)
    assert hit.evidence["share"] == pytest.approx(0.75)
    assert "['layers.0']" in (hit.remedy.code or "")


def test_in_the_first_hundred_steps_some_dead_units_are_an_aside_and_a_dead_layer_is_not() -> None:
    (some,), (all_of_it,) = run(first(8), total=99), run(0, columns={"weight_gradient.norm": 0.0}, total=99)
    assert (some.severity, all_of_it.severity) == (Severity.INFO, Severity.CRITICAL)


def test_boundary_of_the_share() -> None:
    assert not run(first(16))
    assert run(first(15))


def test_it_tells_since_when_they_are_dead() -> None:
    (hit,) = run(lambda step: ALL if step < 25 else first(4), lambda step: ALL if step < 25 else 0, steps=range(80))
    assert hit.first_step == 25


def test_sparse_units_that_are_active_now_and_then_are_left_alone() -> None:
    assert not run(lambda step: 1 << (step % 16), lambda step: 1 << (step % 16))


def test_units_that_come_back_are_left_alone() -> None:
    assert not run(lambda step: 0 if step < 40 else ALL, lambda step: 0 if step < 40 else ALL)


def test_part_of_a_layer_takes_twenty_samples() -> None:
    assert not run(first(4), steps=range(19))
    assert run(first(4), steps=range(20))


def test_small_batches_take_more_samples() -> None:
    one = LossInfo("cross_entropy", "NllLossBackward0", "mean", (1, 4), (1,), 4)
    wiring = classification(losses=(one,))
    assert not run(first(4), wiring=wiring, steps=range(49))
    assert run(first(4), wiring=wiring, steps=range(50))


def test_a_layer_without_any_activity_or_gradient_is_dead_at_once() -> None:
    still = {"weight_gradient.norm": {"layers.0.weight": 0.0}}
    (hit,) = run(0, columns=still, steps=range(5))
    assert hit.severity is Severity.CRITICAL
    assert hit.evidence["wholly_dead"] == ["layers.0"]
    assert not run(0, columns=still, steps=range(4))
    assert not run(0, steps=range(5))  # its weight still gets a gradient


def test_it_tells_when_a_layer_died() -> None:
    still = {"weight_gradient.norm": {"layers.0.weight": lambda step: 0.5 if step < 3 else 0.0}}
    (hit,) = run(lambda step: ALL if step < 3 else 0, columns=still, steps=range(12))
    assert hit.first_step == 3


def test_where_training_works_some_dead_units_are_an_aside_and_a_dead_layer_a_warning() -> None:
    assert run(first(4), pulses={})[0].severity is Severity.INFO
    assert run(0, pulses={})[0].severity is Severity.WARNING


def rarely(units: int, *, signal: float = 0.05, **more: Any) -> list[Hit]:
    """A regression of which other units are active in each step, so many of 32; the loss falls, with all that is in it."""
    columns = {**regressed(), "loss.input_signal": signal}
    low = {"low": lambda step: 1 << step % 16, "high": lambda step: (1 << units - 1) - 1 << step % 3}
    given: dict[str, Any] = {"steps": range(120), "pulses": {}, "wiring": one_loss(), "columns": columns}
    return run(low["low"], low["high"], **(given | more))


def test_units_that_wake_now_and_then_count_where_the_output_hardly_varies() -> None:
    (hit,) = rarely(2)
    assert (hit.modules, hit.severity, hit.first_step) == (("layers.0",), Severity.WARNING, 115)
    assert "94 % of the units" in hit.message
    assert not rarely(4)
    assert not rarely(2, signal=0.11)
    assert not rarely(2, steps=range(90))


def test_dead_units_are_a_warning_where_the_output_hardly_varies_though_the_loss_falls() -> None:
    more: dict[str, Any] = {"pulses": {}, "wiring": one_loss(), "total": 120}
    silent = {**regressed(), "loss.input_signal": 0.05}
    assert run(first(4), columns=silent, **more)[0].severity is Severity.WARNING
    assert run(first(4), columns=silent | {"loss.input_signal": 0.5}, **more)[0].severity is Severity.INFO


def test_where_several_play_no_loss_tells_and_some_dead_units_are_an_aside() -> None:
    assert run(first(4), shared_process=True)[0].severity is Severity.INFO
    assert run(0, shared_process=True)[0].severity is Severity.WARNING


def test_only_a_relu_can_die() -> None:
    net = mlp(16, 32, 32, 4, activation="leaky_relu", kind="LeakyReLU")
    columns = {"activation.active_low": 0, "activation.active_high": 0}
    assert not hits(build(net, columns=columns, **LONG))


def test_a_relu_behind_a_norm_is_judged_itself_and_a_layer_and_its_relu_once() -> None:
    net = linear("a", 16, 32, norm_follows=True) + norm("n", 32) + module("r", "ReLU", "activation") + linear("b", 32, 4)
    dead = {"activation.active_low": 0, "activation.active_high": 0}
    (hit,) = hits(build(net, columns=dead, **LONG))
    assert hit.modules == ("r",)
    assert hit.remedy.code is None
    (hit,) = hits(build(columns=dead, **LONG))
    assert hit.modules == ("layers.0", "layers.2")


def test_activations_that_are_not_finite_are_left_out() -> None:
    assert not run(0, columns={"activation.nonfinite": 1.0})


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), build(Net((), ())), empty(), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
