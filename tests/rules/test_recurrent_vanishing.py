"""When gradients count as dying through time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import ModuleInfo
from gradscope.records import Severity
from gradscope.rules.recurrent_vanishing import RecurrentVanishing
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import parameter
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.4 + 0.02 * math.sin(7 * step)}
STEPS = (*range(12), *range(15, 300, 5))


def recurrent(kind: str) -> Net:
    weights = (parameter("cell.weight_ih_l0", (32, 4)), parameter("cell.weight_hh_l0", (32, 32)))
    cell = Net((ModuleInfo("cell", kind, "recurrent", tuple(p.name for p in weights)),), weights)
    return cell + linear("head", 32, 4)


NET = recurrent("RNN")


def hits(timeline: Timeline) -> list[Hit]:
    return list(RecurrentVanishing().check(timeline))


def run(decades: Any, *, net: Net = NET, pulses: Any = STUCK, steps: Any = STEPS, **more: Any) -> list[Hit]:
    columns = {"activation_gradient.time_growth": {"cell": decades}, "activation_gradient.time_steps": {"cell": 61}}
    return hits(build(net, columns=columns, pulses=pulses, steps=steps, **more))


def test_a_loss_that_stood_at_a_constants_for_200_steps_makes_it_a_warning() -> None:
    (hit,) = run(-12.0)
    assert (hit.modules, hit.severity) == (("cell",), Severity.WARNING)
    assert hit.evidence["factor"] == pytest.approx(10**-0.2, rel=1e-4)
    assert "orthogonal_" in (hit.remedy.code or "")


def test_before_200_steps_it_is_an_aside() -> None:
    assert run(-12.0, steps=range(0, 150, 5))[0].severity is Severity.INFO


def test_where_the_constants_loss_is_not_known_it_stays_an_aside() -> None:
    assert run(-12.0, wiring=classification(NET, losses=()))[0].severity is Severity.INFO


def test_gated_layers_get_open_gates() -> None:
    (hit,) = run(-12.0, net=recurrent("LSTM"))
    assert "= 4.1  #" in (hit.remedy.code or "")  # ln 61
    compile(hit.remedy.code or "", "remedy", "exec")


def test_a_training_that_works_or_has_converged_is_left_alone() -> None:
    assert not run(-12.0, pulses={})
    assert not run(-12.0, pulses={"loss": 0.01})


def test_boundary_of_the_growth() -> None:
    assert not run(-5.9, steps=range(0, 190, 5))
    assert run(-6.1, steps=range(0, 190, 5))


def test_where_the_loss_stood_at_a_constants_for_200_steps_four_decades_are_enough() -> None:
    assert run(-4.1)[0].severity is Severity.WARNING
    assert not run(-3.9)
    assert not run(-4.1, wiring=classification(NET, losses=()))


def test_five_samples_in_a_row_and_half_of_all_must_show_it() -> None:
    assert not run(lambda step: -12.0 if step % 4 else -1.0, steps=range(250))
    assert not run(lambda step: -12.0 if step < 120 else -1.0, steps=range(250))


def test_what_has_passed_is_an_aside() -> None:
    assert run(lambda step: -12.0 if step < 200 else -1.0, steps=range(250))[0].severity is Severity.INFO


def test_columns_with_gaps_are_read_where_they_were_captured() -> None:
    assert run(lambda step: -12.0 if step % 25 == 0 else math.nan)


def test_blown_up_trainings_and_several_players_are_left_alone() -> None:
    assert not run(-12.0, pulses={"loss": lambda step: 1.4 if step < 100 else math.nan})
    assert not run(-12.0, shared_process=True)


def test_it_asks_for_a_hundred_steps() -> None:
    timeline = build(NET, steps=range(99), columns={"activation_gradient.time_growth": -9, "activation_gradient.time_steps": 9})
    assert RecurrentVanishing().obstacle(timeline) == "needs 100 steps, the run has 99"


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    assert not hits(build(NET))
    assert not hits(empty())
    for value in (math.nan, math.inf, 0.0):
        assert not hits(poisoned(value, net=NET))


def test_a_matrix_that_grows_while_nothing_is_learned_does_not_take_it_back() -> None:
    last = max(STEPS)
    assert run(lambda step: -12.0 + 7.0 * step / last)[0].severity is Severity.WARNING
    assert run(lambda step: -12.0 if step < 0.6 * last else -3.1)[0].severity is Severity.WARNING
    assert run(lambda step: -12.0 if step < 0.6 * last else -2.9)[0].severity is Severity.INFO


def test_a_recurrence_by_hand_is_seen_by_its_matrix() -> None:
    net = Net((ModuleInfo("cell", "Cell", "other", ("cell.hidden",)),), (parameter("cell.hidden", (32, 32)),))
    columns: Any = {"weight_gradient.time_growth": {"cell.hidden": -12.0}, "weight_gradient.time_steps": {"cell.hidden": 61}}
    (hit,) = hits(build(net, columns=columns, pulses=STUCK, steps=STEPS))
    assert hit.modules == ("cell",) and hit.severity is Severity.WARNING
    assert "'cell.hidden'" in (hit.remedy.code or "")


def test_where_few_steps_showed_it_all_of_them_must_and_three_at_least() -> None:
    def seen_on(count: int, *, last: float = -12.0) -> list[Hit]:
        values = {15 * i: -12.0 for i in range(count)} | {15 * (count - 1): last}
        return run(lambda step: values.get(step, math.nan), steps=range(0, 300, 15))

    assert seen_on(3)[0].severity is Severity.WARNING
    assert not seen_on(2)
    assert not seen_on(3, last=-3.0)
