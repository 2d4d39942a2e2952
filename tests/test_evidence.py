"""How grave a defect is, by what becomes of the training."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradscope.evidence import gravity
from gradscope.evidence import overshot
from gradscope.evidence import recurrent_weights
from gradscope.evidence import stuck
from gradscope.evidence import time_growth
from gradscope.evidence import works
from gradscope.records import Severity
from tests.timelines import Net
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import parameter

BROKEN: Values = lambda step: 1.4 if step < 50 else math.nan  # noqa: E731
NO_BASELINE = classification(losses=())


def test_coming_down_to_the_loss_of_a_constant_prediction_is_not_working() -> None:
    falls_to_chance = {"loss": lambda step: math.log(4) + 200.0 * math.exp(-step)}
    assert not works(build(pulses=falls_to_chance))
    assert works(build(pulses=falls_to_chance, wiring=NO_BASELINE))
    assert works(build())


def test_a_loss_far_below_the_constant_predictions_works_though_it_does_not_fall() -> None:
    assert works(build(pulses={"loss": 0.3}))
    assert not works(build(pulses={"loss": 0.3}, wiring=NO_BASELINE))


def test_an_overshoot_is_a_jump_that_training_does_not_get_over() -> None:
    jump = lambda step: 50.0 if step == 3 else (1.4 if step < 3 else 1.38)  # noqa: E731
    assert overshot(build(pulses={"loss": jump}))
    assert not overshot(build(pulses={"loss": jump}, shared_process=True))
    assert not overshot(build(pulses={"loss": lambda step: 50.0 if step == 3 else 1.4 * math.exp(-step / 20)}))
    assert not overshot(empty())


@pytest.mark.parametrize(
    ("loss", "total", "severity"),
    [
        (lambda step: 1.4 * math.exp(-step / 20), 100, Severity.INFO),
        (lambda step: 1.4, 100, Severity.CRITICAL),
        (lambda step: 1.4, 99, Severity.WARNING),
        (lambda step: 1.4 - 0.001 * step, 100, Severity.WARNING),
        (BROKEN, 60, Severity.CRITICAL),
    ],
    ids=["works", "stands still", "too early to tell", "creeps", "blew up"],
)
def test_gravity_follows_what_becomes_of_the_training(loss: Values, total: int, severity: Severity) -> None:
    assert gravity(build(steps=range(12), total=total, pulses={"loss": loss})) is severity


def test_of_a_training_that_was_broken_when_it_was_first_seen_no_defect_is_to_blame() -> None:
    def first_seen(step: int, *, broken_from: int) -> Severity:
        columns = {"weight.nonfinite": lambda step: float(step >= broken_from)}
        losses = {"loss": lambda step: math.nan if step >= broken_from else 1.4}
        return gravity(build(steps=range(step, 20), total=20, columns=columns, pulses=losses))

    assert first_seen(0, broken_from=0) is Severity.INFO
    assert first_seen(0, broken_from=3) is Severity.CRITICAL
    assert first_seen(5, broken_from=3) is Severity.CRITICAL  # losses before it were finite


def test_a_loss_is_stuck_where_it_stands_at_the_best_constant_predictions() -> None:
    stands = lambda step: 1.39 + 0.01 * math.sin(7 * step)  # noqa: E731
    assert stuck(build(total=300, pulses={"loss": stands}), 200)
    assert not stuck(build(total=150, pulses={"loss": stands}), 200)
    assert not stuck(build(total=300, pulses={"loss": stands}, wiring=NO_BASELINE), 200)
    assert not stuck(build(total=300, pulses={"loss": lambda step: stands(step) if step < 250 else 1.0}), 200)
    assert not stuck(build(total=300), 200)


def test_the_matrix_of_a_recurrent_layer_is_that_of_its_state() -> None:
    cell = Net((), (parameter("cell.weight_ih_l0", (32, 32)), parameter("cell.weight_hh_l0", (32, 32))))
    timeline = build(cell + linear("square", 16, 16) + linear("head", 32, 4))
    assert recurrent_weights(timeline, "cell") == ["cell.weight_hh_l0"]
    assert recurrent_weights(timeline, "square") == ["square.weight"]
    assert recurrent_weights(timeline, "head") == []


def test_growth_through_time_is_known_where_a_module_recurs_over_four_steps() -> None:
    net = linear("again", 16, 16) + linear("head", 16, 4)

    def known(steps: float) -> list[bool]:
        columns = {"activation_gradient.time_growth": 1.0, "activation_gradient.time_steps": steps}
        return [bool(site) for site in np.isfinite(time_growth(build(net, columns=columns)).decades).any(axis=0)]

    assert known(4) == [True, False, False, False]
    assert not any(known(3))
    assert not any(known(math.inf))
