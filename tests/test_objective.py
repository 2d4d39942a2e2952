"""What is known of a run's loss: its terms, its targets, and what a constant prediction would have."""

from __future__ import annotations

import math

import pytest

from gradscope.objective import Targets
from gradscope.objective import breach
from gradscope.objective import chance
from gradscope.objective import each
from gradscope.objective import label_mixing
from gradscope.objective import loss_weight
from gradscope.objective import of_the_mean
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.objective import terms
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed


def loss_of(timeline: Timeline) -> LossInfo:
    loss = sole_loss(timeline)
    assert loss is not None
    return loss


def test_one_loss_alone_is_told_from_several() -> None:
    two = (LossInfo("mse", "MseLossBackward0"), LossInfo("l1", "AbsBackward0"))
    assert loss_of(build()).kind == "cross_entropy"
    assert sole_loss(build(wiring=classification(losses=two))) is None
    assert sole_loss(build(losses=("(loss)", "(loss)#1"))) is None
    assert sole_loss(build(wiring=classification(losses=(LossInfo("other", "AddBackward0"),)))) is None
    assert sole_loss(build(shared_process=True)) is None
    assert sole_loss(empty()) is None


def test_the_spread_of_targets_far_from_zero_is_that_over_the_batch() -> None:
    drowned = {**regressed(mean=1e6, std=1.0), "loss.target_rms": 1e6, "loss.target_signal": 2.0}
    known = targets(build(columns=drowned))
    assert known is not None and known.std == 2.0
    assert targets(build()) is None


def test_terms_come_from_what_was_counted_or_else_from_the_shapes() -> None:
    assert terms(build(), loss_of(build())) == 32
    blind = build(columns={"loss.target_count": math.nan}, wiring=one_loss(input_shape=(8, 3), target_shape=None))
    assert terms(blind, loss_of(blind)) == 24
    unknown = build(columns={"loss.target_count": math.nan}, wiring=one_loss(input_shape=None, target_shape=None))
    assert math.isnan(terms(unknown, loss_of(unknown)))


def test_a_value_of_the_loss_is_brought_to_the_mean_of_its_terms() -> None:
    summed = build(wiring=one_loss("cross_entropy", reduction="sum", classes=CLASSES), columns={"loss.weight": 0.5})
    assert loss_weight(summed) == 0.5
    assert each(summed, loss_of(summed), 16.0) == 1.0
    assert loss_weight(build(columns={"loss.weight": math.nan})) == 1.0


def test_losses_that_add_up_to_a_steps_loss_weigh_as_much_together() -> None:
    """Each of four micro-batches was divided by four, or by the number of terms of all."""
    mean = build(losses_add_up=True, columns={"loss.weight": 0.25}, pulses={"backwards": 4})
    assert loss_weight(mean) == 1.0
    assert each(mean, loss_of(mean), 2.0) == 2.0
    wiring = one_loss("cross_entropy", reduction="sum", classes=CLASSES)
    columns = {"loss.weight": 1 / 128, "loss.target_count": 128.0}
    summed = build(losses_add_up=True, columns=columns, pulses={"backwards": 4}, wiring=wiring)
    assert each(summed, loss_of(summed), 2.0) == 2.0
    blind = build(
        losses_add_up=True, columns={**columns, "loss.target_count": math.nan}, pulses={"backwards": 4}, wiring=wiring
    )
    assert terms(blind, loss_of(blind)) == 4 * terms(
        build(columns={"loss.target_count": math.nan}, wiring=wiring), loss_of(blind)
    )


def test_a_first_loss_that_cannot_be_such_a_mean_is_not_taken_for_one() -> None:
    per_sample = build(columns=regressed(), wiring=one_loss(), pulses={"loss": 200.0})
    assert math.isnan(each(per_sample, loss_of(per_sample), 200.0))


def test_chance_is_the_entropy_of_labels_or_the_variance_of_targets() -> None:
    seen = build(columns={"loss.label_entropy_seen": 0.7})
    assert chance(seen, loss_of(seen)) == pytest.approx(0.7)
    blind = build(columns={"loss.label_entropy_seen": math.nan})
    assert chance(blind, loss_of(blind)) == pytest.approx(math.log(CLASSES))
    squares = build(columns=regressed(mean=5.0, std=3.0), wiring=one_loss())
    assert chance(squares, loss_of(squares)) == pytest.approx(9.0)
    halves = build(columns=regressed(mean=0.5, std=0.5), wiring=one_loss("bce"))
    assert chance(halves, loss_of(halves)) == pytest.approx(math.log(2))
    absolute = build(columns=regressed(), wiring=one_loss("l1"))
    assert math.isnan(chance(absolute, loss_of(absolute)))


@pytest.mark.parametrize(("kind", "node", "level"), [("mse", "", 9.0), ("l1", "", 3.0), ("smooth_l1", "HuberLoss", 4.5)])
def test_what_predicting_the_mean_costs_at_most(kind: str, node: str, level: float) -> None:
    assert of_the_mean(LossInfo(kind, node), Targets(mean=5.0, std=3.0, low=0.0, high=9.0)) == level


def test_batches_of_one_class_are_mixed_by_nothing() -> None:
    assert label_mixing(build(), loss_of(build())) == pytest.approx(1.0, abs=0.1)
    same = build(columns={"loss.label_entropy": 0.0})
    assert label_mixing(same, loss_of(same)) == 0.0
    assert math.isnan(label_mixing(build(columns={"loss.label_entropy_seen": 0.05}), loss_of(build())))


def test_a_breach_is_a_warning_at_least_unless_training_converged() -> None:
    assert breach(build(pulses={"loss": lambda step: 0.3 + math.exp(-step / 9)})) is Severity.WARNING
    assert breach(build(pulses={"loss": lambda step: 0.01 + math.exp(-step / 9)})) is Severity.INFO
    assert breach(build(pulses={"loss": 1.4})) is Severity.CRITICAL


def test_numbers_that_are_not_finite_raise_nothing() -> None:
    for timeline in (poisoned(math.nan), poisoned(math.inf)):
        loss = loss_of(timeline)
        for value in (terms(timeline, loss), each(timeline, loss, 1.0), chance(timeline, loss), label_mixing(timeline, loss)):
            assert isinstance(value, float)
