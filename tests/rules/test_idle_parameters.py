"""When parameters count as idle."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.records import Site
from gradscope.rules.idle_parameters import IdleParameters
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import poisoned

UNUSED = linear("unused", 8, 8)
LARGE = linear("unused", 128, 128)
RAN = tuple(Site(m.path) for m in SMALL.modules)


def hits(timeline: Timeline) -> list[Hit]:
    return list(IdleParameters().check(timeline))


def run(extra: Net = UNUSED, *, gradient: Any = math.nan, sites: Any = RAN, reached: Any = None, **more: Any) -> list[Hit]:
    net = SMALL + extra
    wiring = classification(net, reached=tuple(p.name for p in SMALL.parameters) if reached is None else reached)
    columns = {"weight_gradient.norm": {"unused.weight": gradient}}
    return hits(build(net, columns=columns, **({"sites": sites, "wiring": wiring} | more)))


def test_a_module_that_never_runs_is_named_as_an_aside() -> None:
    (hit,) = run()
    assert hit.modules == ("unused",)
    assert hit.evidence["parameters"] == ["unused.weight"]
    assert hit.evidence["share"] == pytest.approx(64 / (64 + 16 * 32 + 32 * 32 + 32 * 4))
    assert hit.severity is Severity.INFO
    assert "'unused'" in (hit.remedy.code or "")


def test_a_large_share_in_a_training_that_stands_still_is_a_warning() -> None:
    assert run(LARGE, pulses={"loss": 1.386})[0].severity is Severity.WARNING
    assert run(LARGE)[0].severity is Severity.INFO
    assert run(LARGE, pulses={"loss": 1.386}, steps=range(40))[0].severity is Severity.INFO
    assert run(pulses={"loss": 1.386})[0].severity is Severity.INFO


def test_a_module_that_ran_without_gradients_in_front_of_others_is_detached_not_idle() -> None:
    ungraded = Net(tuple(replace(m, ungraded=True) for m in UNUSED.modules), UNUSED.parameters)
    assert not run(ungraded)


def test_gradients_that_are_kept_as_zeros_are_none() -> None:
    assert run(gradient=0.0)


def test_one_gradient_clears_a_parameter() -> None:
    assert not run(gradient=lambda step: 0.1 if step == 50 else math.nan)


def test_a_module_that_ran_is_not_idle() -> None:
    assert not run(sites=None)


def test_a_parameter_that_a_loss_reached_is_not_idle() -> None:
    assert not run(reached=tuple(p.name for p in (SMALL + UNUSED).parameters))


def test_frozen_parameters_are_idle_on_purpose() -> None:
    assert not run(linear("unused", 8, 8, trainable=False))


def test_parameters_that_no_optimizer_holds_are_another_matter() -> None:
    held = build(SMALL).info.optimizers
    assert not run(optimizers=held)


def test_it_takes_three_graphs_and_ten_steps() -> None:
    few = classification(SMALL, graphs=2)
    assert not run(wiring=few)
    assert not run(steps=range(9))
    assert run(steps=range(10))


def test_a_run_in_which_nothing_gets_gradient_says_nothing() -> None:
    net = SMALL + UNUSED
    assert not hits(build(net, columns={"weight_gradient.norm": math.nan}, sites=RAN))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=(), total=50), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
