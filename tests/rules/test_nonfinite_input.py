"""When an input or target that is not finite is to blame."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Origin
from gradscope.records import Severity
from gradscope.rules.nonfinite_input import NonfiniteInput
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned

BREAKS = {"loss": lambda step: 1.0 if step < 40 else math.nan}
SKIPS = {"loss": lambda step: math.nan if step == 40 else 1.0}


def at(step: int, value: float = 0.01) -> dict[str, Any]:
    return {"input.nonfinite": lambda now: value if now == step else 0.0}


def hits(timeline: Timeline) -> list[Hit]:
    return list(NonfiniteInput().check(timeline))


def test_names_the_input_on_whose_step_the_loss_broke() -> None:
    (hit,) = hits(build(columns={**at(40), "weight.nonfinite": lambda step: float(step > 40)}, pulses=BREAKS))
    assert hit.modules == ("x",)
    assert hit.first_step == 40 and hit.strength == 10
    assert hit.severity is Severity.CRITICAL
    assert "1.000%" in hit.message


def test_names_targets() -> None:
    columns = {"loss.target_nonfinite": lambda step: 0.5 if step == 40 else 0.0}
    (hit,) = hits(build(columns=columns, pulses=BREAKS, wiring=one_loss()))
    assert hit.evidence["place"] == "target"
    assert "isfinite(y)" in str(hit.remedy.code)


def test_the_remedy_drops_the_samples() -> None:
    torch = pytest.importorskip("torch")
    (hit,) = hits(build(columns=at(40), pulses=BREAKS))
    names = {"torch": torch, "x": torch.zeros(4, 3), "y": torch.arange(4)}
    names["x"][2, 1] = math.nan
    exec(str(hit.remedy.code), names)
    assert names["x"].shape == (3, 3)
    assert names["y"].tolist() == [0, 1, 3]


def test_is_a_warning_where_the_step_was_skipped() -> None:
    assert hits(build(columns=at(40), pulses=SKIPS))[0].severity is Severity.WARNING


def test_is_an_aside_where_the_loss_stayed_finite() -> None:
    assert hits(build(columns=at(40)))[0].severity is Severity.INFO


def test_names_the_input_on_whose_step_the_gradient_broke() -> None:
    broken: dict[str, Any] = {**BREAKS, "gradient_norm": lambda step: math.inf if step >= 40 else 1.0}
    broken["loss"] = lambda step: 1.0 if step <= 40 else math.nan
    for origin in (Origin(40, "backward", "layers.0"), None):
        (hit,) = hits(build(columns=at(40), pulses=broken, origin=origin))
        assert hit.severity is Severity.CRITICAL and hit.first_step == 40
        assert "the gradient was not finite, though the loss was" in hit.message
    (hit,) = hits(build(pulses=broken, origin=Origin(40, "input")))
    assert "the gradient was not finite, though the loss was" in hit.message


def test_masks_that_are_never_finite_are_left_alone() -> None:
    mask = {"input.nonfinite": {"mask": 0.4}}
    assert not hits(build(columns=mask, inputs=("x", "mask")))
    assert not hits(build(columns=mask, inputs=("x", "mask"), pulses=BREAKS))


def test_what_comes_after_the_weights_broke_is_a_consequence() -> None:
    columns = {"input.nonfinite": lambda step: float(step > 40), "weight.nonfinite": lambda step: float(step > 40)}
    assert not hits(build(columns=columns, pulses=BREAKS))
    assert not hits(build(columns={"input.nonfinite": lambda step: float(step > 40)}, pulses=BREAKS))


def test_an_origin_found_elsewhere_clears_the_input() -> None:
    for place, found in (("forward", 0), ("input", 1)):
        assert len(hits(build(columns=at(40), pulses=BREAKS, origin=Origin(40, place)))) == found


def test_a_step_that_was_not_sampled_is_known_from_the_origin() -> None:
    (hit,) = hits(build(pulses={"loss": lambda step: 1.0 if step < 43 else math.nan}, origin=Origin(43, "input")))
    assert hit.first_step == 43 and hit.severity is Severity.CRITICAL


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
