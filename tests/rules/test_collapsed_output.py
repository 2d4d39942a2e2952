"""When an output counts as the same for every sample."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.collapsed_output import CollapsedOutput
from gradscope.timeline import Timeline
from tests.timelines import CLASSES
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

CHANCE = math.log(CLASSES)
STUCK = {"loss": CHANCE}
SAME = {"loss.input_signal": 0.001, "activation.signal": {"layers.2": 0.001, "layers.3": 0.001, "layers.4": 0.001}}


def hits(timeline: Timeline) -> list[Hit]:
    return list(CollapsedOutput().check(timeline))


def run(columns: dict[str, Any], **given: Any) -> Timeline:
    return build(columns=columns, **{"pulses": STUCK, **given})


def test_names_the_layer_that_loses_the_samples() -> None:
    (hit,) = hits(run(SAME))
    assert hit.modules == ("layers.2",)
    assert hit.severity is Severity.WARNING
    assert "samples become the same in layers.2" in hit.message


def test_the_remedy_measures_the_spread_around_that_layer() -> None:
    torch = pytest.importorskip("torch")
    (hit,) = hits(run(SAME))
    model = torch.nn.Module()
    model.layers = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(5)))
    model.forward = model.layers.forward
    names = {"torch": torch, "model": model, "x": torch.eye(3)}
    exec(str(hit.remedy.code), names)
    ((before, after),) = names["features"]
    assert before > 0 and after > 0
    assert not model.layers[2]._forward_hooks


def test_names_the_last_layer_where_none_is_seen_to_lose_them() -> None:
    assert hits(run({"loss.input_signal": 0.001}))[0].modules == ("layers.4",)


@pytest.mark.parametrize(("signal", "found"), [(0.029, 1), (0.031, 0)])
def test_the_spread_is_measured_against_what_logits_need(signal: float, found: int) -> None:
    assert len(hits(run({"loss.input_signal": signal}))) == found


@pytest.mark.parametrize(("signal", "found"), [(2.9, 1), (3.1, 0)])
def test_the_spread_is_measured_against_the_targets(signal: float, found: int) -> None:
    columns = {**regressed(std=100.0), "loss.input_signal": signal}
    assert len(hits(run(columns, wiring=one_loss(baseline=1e4), pulses={"loss": 1e4}))) == found


@pytest.mark.parametrize("level", [0.85, 3.5])
def test_a_loss_that_is_not_that_of_a_constant_speaks_against_it(level: float) -> None:
    assert not hits(run(SAME, pulses={"loss": level * CHANCE}))


def test_what_still_learns_or_has_only_begun_is_left_alone() -> None:
    assert not hits(run(SAME, pulses={"loss": lambda step: CHANCE * (1 - 0.0009 * step)}))
    assert CollapsedOutput().obstacle(run(SAME, steps=range(50))) is not None
    assert not hits(run(SAME, shared_process=True))


def test_one_step_in_ten_may_differ() -> None:
    assert not hits(run({"loss.input_signal": lambda step: 0.5 if step % 3 == 0 else 0.0}))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
