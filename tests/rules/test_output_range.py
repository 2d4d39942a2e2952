"""When an output cannot reach what it is compared with."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.output_range import OutputRange
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import module
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

STUCK = {"loss": 2.3}
WITHIN = {"loss.input_rms": 0.6}


def hits(timeline: Timeline) -> list[Hit]:
    return list(OutputRange().check(timeline))


def logits(producer: str | None, columns: dict[str, Any] = WITHIN, **given: Any) -> Timeline:
    wiring = one_loss("cross_entropy", producer=producer, classes=10, baseline=math.log(10))
    return build(columns=columns, wiring=wiring, **given)


def values(producer: str, low: float, high: float, *, kind: str = "mse", **given: Any) -> Timeline:
    columns = {**regressed(low=low, high=high), **WITHIN}
    return build(columns=columns, wiring=one_loss(kind, producer=producer, baseline=1.0), **given)


@pytest.mark.parametrize(("producer", "floor"), [("sigmoid", 1.461), ("tanh", 0.797)])
def test_tells_the_floor_that_bounded_logits_leave(producer: str, floor: float) -> None:
    (hit,) = hits(logits(producer, pulses=STUCK))
    assert hit.evidence["floor"] == pytest.approx(floor, abs=1e-3)
    assert hit.severity is Severity.CRITICAL and hit.strength == 10


def test_names_a_relu_before_cross_entropy_and_takes_it_out() -> None:
    (hit,) = hits(logits("relu", net=SMALL + module("layers.5", "ReLU", "activation"), pulses=STUCK))
    assert hit.modules == ("layers.5",)
    assert hit.remedy.code == 'model.set_submodule("layers.5", torch.nn.Identity())'
    assert "no logit can be below zero" in hit.message


def test_names_targets_beyond_the_range() -> None:
    (hit,) = hits(values("tanh", -2.5, 2.8, pulses={"loss": 0.6}))
    assert hit.evidence["beyond"] == pytest.approx(1.8, rel=1e-3)
    assert "-2.5 to 2.8" in hit.message


@pytest.mark.parametrize(
    ("producer", "low", "high", "found"),
    [
        ("tanh", -1.0, 1.0, 0),
        ("tanh", -1.4, 1.4, 0),
        ("tanh", -1.0, 1.6, 1),
        ("sigmoid", 0.0, 1.0, 0),
        ("sigmoid", -1.0, 1.0, 1),
        ("relu", 0.0, 90.0, 0),
        ("relu", -0.4, 9.0, 0),
        ("relu", -2.0, 9.0, 1),
        ("softplus", 0.0, 9.0, 0),
        ("softplus", -2.0, 9.0, 1),
        ("silu", -0.7, 9.0, 0),
        ("silu", -0.8, 9.0, 1),
        ("gelu", -2.0, 2.0, 1),
    ],
)
def test_boundaries_of_targets(producer: str, low: float, high: float, found: int) -> None:
    assert len(hits(values(producer, low, high, pulses={"loss": 0.6}))) == found


@pytest.mark.parametrize(("producer", "found"), [("relu", 1), ("sigmoid", 1), ("tanh", 0), ("silu", 1)])
@pytest.mark.parametrize("kind", ["hinge", "soft_margin"])
def test_scores_that_cannot_be_negative_never_reach_the_negative_class(kind: str, producer: str, found: int) -> None:
    assert len(hits(values(producer, -1.0, 1.0, kind=kind, pulses={"loss": 0.5}))) == found
    assert not hits(values(producer, 1.0, 1.0, kind=kind, pulses={"loss": 0.5}))


@pytest.mark.parametrize(("producer", "floor"), [("relu", None), ("tanh", 0.313)])
def test_logits_of_two_ways_are_logits_too(producer: str, floor: float | None) -> None:
    wiring = one_loss("bce_with_logits", producer=producer)
    (hit,) = hits(build(columns=WITHIN, wiring=wiring, pulses={"loss": 0.6}))
    assert hit.evidence.get("floor") == (pytest.approx(floor, abs=1e-3) if floor else None)
    assert "raw outputs" in hit.remedy.text


def test_is_an_aside_only_where_training_has_converged() -> None:
    assert hits(values("tanh", -2.5, 2.5, pulses={"loss": lambda s: 0.01}))[0].severity is Severity.INFO
    assert hits(values("tanh", -2.5, 2.5, pulses={"loss": lambda s: 0.3 + math.exp(-s)}))[0].severity is Severity.WARNING
    assert hits(values("tanh", -2.5, 2.5, steps=range(3), pulses={"loss": 1.2}))[0].severity is Severity.WARNING


def test_logits_that_are_scaled_behind_the_activation_are_left_alone() -> None:
    assert not hits(logits("tanh", {"loss.input_rms": 5.0}, pulses=STUCK))
    assert hits(logits("relu", {"loss.input_rms": 5.0}, pulses=STUCK))


@pytest.mark.parametrize("producer", [None, "softmax", "log_softmax"])
def test_other_contracts_are_left_to_their_rules(producer: str | None) -> None:
    assert not hits(logits(producer, pulses=STUCK))


def test_losses_for_bounded_outputs_are_right() -> None:
    assert not hits(values("sigmoid", 0.0, 1.0, kind="bce", pulses={"loss": 0.6}))
    assert not hits(values("sigmoid", -3.0, 3.0, kind="bce", pulses={"loss": 0.6}))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
