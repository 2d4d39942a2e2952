"""When a first loss is far from that of a guess."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.initial_loss_off import InitialLossOff
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

GUESS = math.log(CLASSES)
HOT = {"loss.input_rms": 20.0}


def hits(timeline: Timeline) -> list[Hit]:
    return list(InitialLossOff().check(timeline))


def run(first: float, later: float, columns: dict[str, Any] | None = None, **given: Any) -> Timeline:
    return build(columns=HOT if columns is None else columns, pulses={"loss": lambda s: first if s == 0 else later}, **given)


def test_names_a_head_that_is_sure_of_itself_with_the_factor() -> None:
    (hit,) = hits(run(20.0, 18.5, total=150))
    assert hit.severity is Severity.WARNING
    assert hit.modules == ("layers.4",)
    assert "mul_(0.05)" in str(hit.remedy.code)


def test_is_an_aside_where_training_works_or_has_only_begun() -> None:
    assert hits(run(20.0, 0.1))[0].severity is Severity.INFO
    assert hits(run(20.0, 18.5, steps=range(5)))[0].severity is Severity.INFO


@pytest.mark.parametrize(("first", "found"), [(2.9 * GUESS, 0), (3.1 * GUESS, 1), (0.11 * GUESS, 0), (0.09 * GUESS, 1)])
def test_boundaries_of_a_classifier(first: float, found: int) -> None:
    assert len(hits(run(first, first))) == found


def test_after_several_updates_within_the_first_step_no_loss_is_the_first() -> None:
    names = tuple(p.name for p in SMALL.parameters)
    optimizers = (OptimizerInfo("LBFGS", 1.0, names, 0, {}),)
    for forwards, found in ((4.0, 0), (1.0, 1)):
        assert len(hits(run(20.0, 18.5, {**HOT, "step.forwards": forwards}, optimizers=optimizers))) == found


def test_a_low_start_is_an_aside_and_only_at_step_0() -> None:
    (hit,) = hits(run(0.05, 0.05))
    assert hit.severity is Severity.INFO and "knows the answers" in hit.message
    assert not hits(run(0.05, 0.05, steps=range(5, 20)))


def test_a_regression_is_measured_by_the_variance_of_its_targets() -> None:
    assert hits(run(11.0, 0.1, {**regressed(), "loss.input_rms": 4.0}, wiring=one_loss()))
    assert not hits(run(9.0, 0.1, {**regressed(), "loss.input_rms": 4.0}, wiring=one_loss()))


def test_a_sum_is_divided_by_its_terms_and_a_part_by_its_weight() -> None:
    summed = one_loss("cross_entropy", reduction="sum", classes=CLASSES, input_shape=(32, CLASSES), target_shape=(32,))
    assert not hits(run(32 * GUESS, 1.0, wiring=summed))
    assert hits(run(32 * 20.0, 1.0, wiring=summed))
    assert not hits(run(4 * GUESS, 1.0, {"loss.weight": 4.0}))


def test_a_loss_with_other_terms_or_summed_over_features_is_not_judged() -> None:
    assert not hits(run(40.0, 1.0, {"loss.input_rms": 0.5}))
    assert not hits(run(30.0, 1.0, regressed(), wiring=one_loss()))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)


def test_a_first_batch_with_absurd_targets_is_measured_by_its_own_variance() -> None:
    columns = {**regressed(), "loss.input_rms": 4.0}
    assert not hits(run(14.0, 1.0, columns, wiring=one_loss(baseline=12.8)))
    assert hits(run(14.0, 1.0, columns, wiring=one_loss(baseline=1.1)))
