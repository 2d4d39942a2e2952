"""When gradients count as growing through time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rules.recurrent_explosion import RecurrentExplosion
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import module
from tests.timelines import parameter
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.386}
BLOWN_UP = {"loss": lambda step: 1.386 if step < 30 else math.nan}


def cell(path: str = "cell", kind: str = "RNN") -> Net:
    weights = (parameter(f"{path}.weight_ih_l0", (32, 4)), parameter(f"{path}.weight_hh_l0", (32, 32)))
    return Net((ModuleInfo(path, kind, "recurrent", tuple(p.name for p in weights)),), weights)


NET = cell() + linear("head", 32, 4)


def hits(timeline: Timeline) -> list[Hit]:
    return list(RecurrentExplosion().check(timeline))


def run(decades: Any, *, steps: float = 61, net: Net = NET, path: str = "cell", pulses: Any = STUCK, **more: Any) -> list[Hit]:
    """Gradients of ``path`` that grow by so many decades over so many time steps."""
    columns = {"activation_gradient.time_growth": {path: decades}, "activation_gradient.time_steps": {path: steps}}
    return hits(build(net, columns=columns, pulses=pulses, **more))


def test_a_gradient_that_grows_with_each_time_step_is_named_with_the_factor() -> None:
    (hit,) = run(60 * math.log10(1.2))
    assert (hit.modules, hit.first_step, hit.strength) == (("cell",), 0, 4.0)
    assert hit.evidence["factor"] == pytest.approx(1.2, rel=1e-4)
    assert hit.severity is Severity.CRITICAL
    assert "['cell.weight_hh_l0']" in (hit.remedy.code or "")
    assert "mul_(0.75)" in (hit.remedy.code or "")
    compile(hit.remedy.code or "", "remedy", "exec")


def test_boundaries_of_the_factor_and_of_the_whole_growth() -> None:
    assert run(2.1)
    assert not run(1.9)
    assert not run(100 * math.log10(1.049), steps=101)
    assert run(100 * math.log10(1.051), steps=101)


def test_a_gradient_that_adds_up_over_losses_at_each_time_step_is_not_growth() -> None:
    for steps in (10, 100, 1000):
        assert not run(math.log10(steps), steps=steps)


def test_growth_that_comes_later_has_to_last_or_to_precede_a_blow_up() -> None:
    assert not run(lambda step: 4.0 if step in (5, 40) else 0.0)
    (hit,) = run(lambda step: 4.0 if step >= 40 else 0.0)
    assert (hit.first_step, hit.strength) == (40, 3.0)
    (hit,) = run(lambda step: 4.0 if step == 25 else 0.0, pulses=BLOWN_UP)
    assert (hit.first_step, hit.severity) == (25, Severity.CRITICAL)


def test_what_comes_after_a_blow_up_proves_nothing() -> None:
    assert not run(lambda step: 4.0 if step > 30 else 0.0, pulses=BLOWN_UP)


def test_a_training_that_works_well_gets_no_more_than_an_aside() -> None:
    assert run(4.0, pulses={})[0].severity is Severity.INFO
    slowly = {"loss": lambda step: 0.8 + 0.6 * math.exp(-step / 30)}
    assert run(4.0, pulses=slowly)[0].severity is Severity.WARNING


def test_growth_that_comes_later_is_an_aside_while_the_loss_falls() -> None:
    slowly = {"loss": lambda step: 0.8 + 0.6 * math.exp(-step / 30)}
    assert run(lambda step: 4.0 if step >= 40 else 0.0, pulses=slowly)[0].severity is Severity.INFO
    assert run(lambda step: 4.0 if step >= 40 else 0.0)[0].severity is Severity.CRITICAL


def test_columns_with_gaps_are_read_where_they_were_captured() -> None:
    assert run(lambda step: 4.0 if step % 10 == 0 and step else math.nan)[0].first_step == 10


def test_a_shared_module_without_a_square_matrix_does_not_recur() -> None:
    net = linear("encoder", 16, 32) + module("act", "ReLU", "activation") + linear("head", 32, 4)
    assert not run(4.0, net=net, path="act")
    assert not run(4.0, net=net, path="head")
    assert run(4.0, net=linear("again", 32, 32) + linear("head", 32, 4), path="again")


def test_a_block_of_many_matrices_is_not_divided() -> None:
    inside = tuple(parameter(f"block.{name}.weight", (16, 16)) for name in "qkvoab")
    net = Net((ModuleInfo("block", "Block", "container"),), inside) + linear("head", 16, 4)
    (hit,) = run(4.0, net=net, path="block")
    assert "Start block with smaller weights" in hit.remedy.text and hit.remedy.code is None


def test_layers_on_top_of_one_another_are_divided_each() -> None:
    weights = tuple(parameter(f"cell.weight_hh_l{layer}", (32, 32)) for layer in range(5))
    net = Net((ModuleInfo("cell", "RNN", "recurrent", tuple(p.name for p in weights)),), weights) + linear("head", 32, 4)
    (hit,) = run(4.0, net=net)
    assert all(f"'{p.name}'" in (hit.remedy.code or "") for p in weights)


def test_a_step_that_was_too_long_because_of_the_growth_is_proof() -> None:
    quality = StepQuality(0, 1e4, 1.4, 50.0, -1.0, 0.1)
    assert run(4.7, probes=(quality,))[0].strength == 5.0
    assert run(2.1, steps=30, probes=(StepQuality(0, 1e6, 1.4, 50.0, -1.0, 0.1),))[0].strength == 4.0


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not run(-0.2 * 60)  # an LSTM as it is by default
    assert not hits(build(NET))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value, net=NET))
