"""When activations count as growing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.activation_growth import ActivationGrowth
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.39 + 0.01 * math.sin(7 * step)}
STEPS = range(0, 600, 10)
HALF = Net(tuple(replace(module, dtype="float16") for module in SMALL.modules), SMALL.parameters)


def hits(timeline: Timeline) -> list[Hit]:
    return list(ActivationGrowth().check(timeline))


def run(
    decades: float, *, path: str = "layers.2", largest: float = 5e3, net: Net = SMALL, pulses: Any = STUCK, **more: Any
) -> list[Hit]:
    """The output of ``path`` grows by so many decades in 1,000 steps."""
    columns = {
        "activation.rms": {path: lambda step: 10.0 ** (decades * step / 1000)},
        "activation.absmax": {path: largest},
        **more.pop("columns", {}),
    }
    return hits(build(net, columns=columns, pulses=pulses, **({"steps": STEPS} | more)))


def test_activations_that_go_on_growing_are_named() -> None:
    (hit,) = run(2.0)
    assert (hit.modules, hit.severity) == (("layers.2",), Severity.WARNING)
    assert hit.evidence["decades_per_1000_steps"] == pytest.approx(2.0, rel=1e-3)
    assert (hit.first_step, hit.last_step) == (300, 590)
    assert "a weight decay of 0.00013 " in hit.remedy.text  # 0.005^2 / (2 * 0.1), to two digits


def test_boundaries_of_rate_and_size() -> None:
    assert run(1.1)
    assert not run(0.9)
    assert run(2.0, largest=1.1e3)
    assert not run(2.0, largest=0.9e3)


def test_growth_has_to_add_up_in_what_was_seen() -> None:
    assert not run(1.1, steps=range(0, 300, 5))  # 1.44 times over 145 steps
    assert run(1.3, steps=range(0, 300, 5))


def test_a_layer_that_has_found_its_size_is_left_alone() -> None:
    found = {"activation.rms": lambda step: 10.0 ** min(step / 100, 3.0), "activation.absmax": 5e3}
    assert not run(0.0, columns=found)


def test_the_models_output_may_grow() -> None:
    assert not run(2.0, path="layers.4")


def test_where_training_works_growth_is_an_aside_but_in_half_precision() -> None:
    assert run(2.0, pulses={})[0].severity is Severity.INFO
    (hit,) = run(2.0, pulses={}, net=HALF, largest=7e3)
    assert (hit.severity, hit.evidence["half"]) == (Severity.WARNING, True)
    assert not run(2.0, pulses={}, net=HALF, largest=5e3)


def test_a_warm_up_and_several_players_are_left_alone() -> None:
    assert not run(2.0, pulses=STUCK | {"learning_rate": lambda step: 1e-4 * (step + 1)})
    assert not run(2.0, shared_process=True)


def test_what_comes_after_a_blow_up_proves_nothing() -> None:
    late = {"activation.rms": lambda step: 1.0 if step < 100 else 10.0 ** (step / 100), "activation.absmax": 5e3}
    assert not run(0.0, columns=late, pulses={"loss": lambda step: 1.39 if step < 100 else math.nan})


def test_short_runs_are_not_judged() -> None:
    assert not run(5.0, steps=range(150))  # 75 steps in the second half
    assert run(5.0, steps=range(210))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)
