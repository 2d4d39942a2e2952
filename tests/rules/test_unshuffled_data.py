"""When batches hold fewer classes than chance would have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.rules.unshuffled_data import UnshuffledData
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import poisoned

TEN = math.log(10)


def hits(timeline: Timeline) -> list[Hit]:
    return list(UnshuffledData().check(timeline))


def run(batch: float, *, seen: float = TEN, count: float = 64.0, classes: int = 10, **given: Any) -> Timeline:
    shape = given.pop("target_shape", (int(count),))
    loss = LossInfo(
        "cross_entropy", "NllLossBackward0", "mean", (int(count), classes), shape, classes, baseline=math.log(classes)
    )
    columns = {"loss.label_entropy": batch, "loss.label_entropy_seen": seen, "loss.target_count": count}
    return build(columns=columns, wiring=classification(losses=(loss,)), **given)


def shuffled(shares: list[float], count: int, *, frames: int = 400) -> tuple[float, float]:
    """Mean entropy of batches drawn from classes with these shares, and that of the shares."""
    drawn = np.random.default_rng(0).multinomial(count, shares, size=frames) / count
    entropies = -np.sum(drawn * np.log(np.where(drawn > 0, drawn, 1)), axis=1)
    return float(entropies.mean()), -sum(share * math.log(share) for share in shares)


def test_names_sorted_data() -> None:
    (hit,) = hits(run(0.0, pulses={"loss": 2.3}))
    assert hit.severity is Severity.CRITICAL and hit.first_step == 0
    assert "as if they were 10" in hit.message
    assert "shuffle=True" in str(hit.remedy.code)


def test_a_loss_that_seems_to_fall_does_not_clear_sorted_data() -> None:
    assert hits(run(0.0))[0].severity is Severity.WARNING


def test_batches_that_are_mixed_a_little_are_an_aside_where_training_works() -> None:
    assert hits(run(0.4 * TEN))[0].severity is Severity.INFO
    assert not hits(run(0.6 * TEN))


@pytest.mark.parametrize("count", [4, 8, 64, 4096])
@pytest.mark.parametrize(
    "shares", [[0.1] * 10, [0.5, 0.5], [0.9, 0.1], [0.97, 0.03], [0.91, *[0.01] * 9], [0.5, 0.3, 0.2], [0.93, *[0.0007] * 100]]
)
def test_shuffled_data_raises_nothing(shares: list[float], count: int) -> None:
    batch, seen = shuffled(shares, count)
    assert not hits(run(batch, seen=seen, count=count, classes=len(shares)))


def test_uneven_classes_that_are_sorted_are_found() -> None:
    assert hits(run(0.0, seen=0.33, classes=2))


def test_one_class_so_far_says_nothing() -> None:
    assert not hits(run(0.0, seen=0.0))


def test_the_pixels_of_a_few_pictures_say_nothing() -> None:
    assert not hits(run(0.5, count=2 * 64 * 64, target_shape=(2, 64, 64)))


def test_twenty_sampled_steps_are_needed() -> None:
    assert not hits(run(0.0, steps=range(19)))
    assert hits(run(0.0, steps=range(20)))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf), run(TEN)):
        assert not hits(timeline)
