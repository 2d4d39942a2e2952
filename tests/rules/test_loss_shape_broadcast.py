from __future__ import annotations

import math

import pytest

from gradscope.records import Broadcast
from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.records import Wiring
from gradscope.rules.loss_shape_broadcast import LossShapeBroadcast
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

Shape = tuple[int, ...]


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossShapeBroadcast().check(timeline))


def subtraction(left: Shape, right: Shape, result: Shape) -> Timeline:
    return build(wiring=Wiring(broadcasts=(Broadcast("SubBackward0", left, right, result),), graphs=1))


def loss(kind: str, output: Shape, target: Shape) -> Timeline:
    return build(wiring=Wiring((LossInfo(kind, "Backward0", "mean", output, target),), graphs=1))


@pytest.mark.parametrize(("left", "right"), [((64, 1), (64,)), ((64,), (64, 1))])
def test_finds_a_subtraction_that_pairs_all_with_all(left: Shape, right: Shape) -> None:
    (hit,) = hits(subtraction(left, right, (64, 64)))
    assert "4096 differences" in hit.message and "instead of 64" in hit.message
    assert hit.severity is Severity.CRITICAL
    assert "target.reshape_as(output)" in (hit.remedy.code or "")
    assert (hit.first_step, hit.last_step) == (0, 99)


@pytest.mark.parametrize("kind", ["mse", "l1", "smooth_l1"])
def test_finds_it_in_the_losses_of_torch(kind: str) -> None:
    (hit,) = hits(loss(kind, (32, 1), (32,)))
    assert hit.evidence["result"] == [32, 32]


def test_says_it_once_though_every_graph_shows_it() -> None:
    twice = (Broadcast("SubBackward0", (8, 1), (8,), (8, 8)),) * 2
    assert len(hits(build(wiring=Wiring(broadcasts=twice, graphs=2)))) == 1


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [
        ((64, 1), (1, 64), (64, 64)),  # pairwise, with all axes written out
        ((64, 10), (10,), (64, 10)),  # a mean or a bias
        ((64, 1), (64, 10), (64, 10)),  # one value for a row
        ((1, 1), (1,), (1, 1)),  # one sample
        ((5, 1), (7,), (5, 7)),  # two different sets
    ],
)
def test_is_silent_on_broadcasts_that_are_meant(left: Shape, right: Shape, result: Shape) -> None:
    assert not hits(subtraction(left, right, result))


def test_is_silent_on_equal_shapes_and_on_losses_that_take_classes() -> None:
    assert not hits(loss("mse", (32, 1), (32, 1)))
    assert not hits(loss("cross_entropy", (32, 1), (32,)))
    assert not hits(build())


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert not hits(build(wiring=Wiring((LossInfo("mse", "MseLossBackward0"),))))
    for value in (math.nan, math.inf):
        hits(poisoned(value))
