"""Losses whose weight is changed in the midst of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import one_loss

STEPS = range(0, 100, 8)
AT = 50


def weighed(*, by: float = 1000.0, jump: float | None = None, at: int = AT, **given: Any) -> Timeline:
    """A loss of 0.5 whose weight rises from 1 to ``by`` at a step, and loss and gradient along, or to ``jump`` times."""

    def times(step: int) -> float:
        return 1.0 if step < at else (jump or by)

    columns = {"loss.weight": lambda step: 1.0 if step < at else by}
    pulses = {"loss": lambda step: 0.5 * times(step) * (1 + 0.2 * math.sin(step)), "gradient_norm": times}
    return build(**{"steps": STEPS, "total": 100, "columns": columns, "pulses": pulses, **given})


@pytest.mark.parametrize("by", [1000.0, 4.0, 0.001])
def test_losses_and_gradients_are_brought_to_the_weight_of_the_end(by: float) -> None:
    timeline = weighed(by=by)
    assert [step for step, _ in timeline.reweighed] == [AT]  # between two readings, where the loss jumped
    assert timeline.loss == pytest.approx(0.5 * by * (1 + 0.2 * np.sin(np.arange(100))), rel=1e-5)
    assert timeline.gradient_norms == pytest.approx(by)
    assert timeline.loss_weight == pytest.approx(by)
    assert timeline.onset is None


def test_the_loss_of_a_constant_goes_along() -> None:
    assert weighed().known_baseline == pytest.approx(1000 * math.log(4))


def test_a_weight_that_something_takes_back_changes_nothing() -> None:
    timeline = weighed(jump=1.0)
    assert timeline.reweighed == [] and timeline.loss[-1] < 1


def test_a_loss_that_rises_by_itself_stays_as_it_is() -> None:
    timeline = weighed(by=1.0, jump=1000.0)
    assert timeline.reweighed == [] and timeline.onset == AT


def test_weights_that_come_with_each_batch_are_no_setting() -> None:
    columns = {"loss.weight": lambda step: 10.0 ** (step % 2)}
    timeline = build(steps=range(40), columns=columns, pulses={"loss": lambda step: 10.0 ** (step % 2)})
    assert timeline.reweighed == []


def test_of_several_losses_one_weight_does_not_tell() -> None:
    assert weighed(losses=("(loss)", "(other)")).reweighed == []


@pytest.mark.parametrize(
    ("kind", "weights", "share"),
    [("mse", (1.0, 1.0), None), ("mse", (0.5, 0.5), 1.0), ("cross_entropy", (1.0, 0.3), 1.3), ("mse", (1.0, math.nan), 1.0)],
)
def test_the_level_of_several_losses(kind: str, weights: tuple[float, float], share: float | None) -> None:
    """Parts of one mean have one variance; squared errors with targets of their own do not; ln C is that of each."""
    columns = {"loss.weight": {"(loss)": weights[0], "(other)": weights[1]}}
    timeline = build(columns=columns, losses=("(loss)", "(other)"), wiring=one_loss(kind, baseline=2.0))
    assert timeline.known_baseline == (None if share is None else pytest.approx(2.0 * share))


def test_a_weight_that_is_not_known_or_broken_changes_nothing() -> None:
    for value in (math.nan, math.inf, 0.0, -1.0):
        assert build(columns={"loss.weight": value}).reweighed == []


def squared(means: Any = 0.0, stds: Any = 1.0, **given: Any) -> float | None:
    """The level of a regression whose first batch alone had targets with a variance of 36."""
    by_step = [(x if callable(x) else (lambda step, x=x: x)) for x in (means, stds)]
    columns = {
        "loss.target_mean": by_step[0],
        "loss.target_rms": lambda step: math.hypot(by_step[0](step), by_step[1](step)),
        "loss.target_count": 32.0,
    }
    return build(columns=columns, wiring=one_loss("mse", baseline=36.0), **given).known_baseline


def test_one_batch_does_not_tell_what_a_constant_has_of_squares() -> None:
    assert squared(stds=lambda step: 6.0 if step == 0 else 1.0) == pytest.approx(1.0)
    assert squared(stds=lambda step: 1.0 if step < 10 else 6.0) == pytest.approx(1.0)  # by the first ten that were sampled
    assert squared(stds=6.0, steps=(0,), total=1) == pytest.approx(36.0)


def test_parts_of_one_mean_have_the_level_of_all_their_targets() -> None:
    columns = {"loss.weight": {"(loss)": 0.25, "(other)": 0.75}, "loss.target_mean": 0.0}
    given = {**columns, "loss.target_rms": {"(loss)": 1.0, "(other)": 3.0}}
    several = build(columns=given, losses=("(loss)", "(other)"), wiring=one_loss("mse", baseline=1.0))
    assert several.known_baseline == pytest.approx(0.25 * 1 + 0.75 * 9)


def test_a_variance_that_the_sampled_batches_do_not_tell_is_that_of_the_first() -> None:
    assert squared(stds=math.nan) == pytest.approx(36.0)
    assert squared(means=1e5, stds=1.0) == pytest.approx(36.0)  # as good as nothing beside the mean, in float32
