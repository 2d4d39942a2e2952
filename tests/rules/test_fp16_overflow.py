"""When numbers count as too large for float16."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Origin
from gradscope.records import Severity
from gradscope.rules.fp16_overflow import Fp16Overflow
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

HALF = Net(tuple(replace(m, dtype="float16") for m in SMALL.modules), SMALL.parameters)
STUCK = {"loss": 1.386}


def hits(timeline: Timeline) -> list[Hit]:
    return list(Fp16Overflow().check(timeline))


def scaled(scale: Any, **more: Any) -> list[Hit]:
    return hits(build(HALF, total=400, pulses={"loss_scale": scale} | more))


def run(largest: Any, *, net: Net = HALF, columns: Any = None, **more: Any) -> list[Hit]:
    return hits(build(net, columns={"activation.absmax": {"layers.2": largest}} | (columns or {}), **more))


def test_a_scale_that_comes_down_late_is_named() -> None:
    (hit,) = scaled(lambda step: 65536.0 / 2 ** max(0, (step - 200) // 20))
    assert hit.evidence["scale_before"] == 65536.0
    assert hit.evidence["step"] == 260  # the third halving
    assert hit.severity is Severity.WARNING  # though the training works: steps are lost
    assert "bfloat16" in (hit.remedy.code or "")


def test_three_halvings_are_needed() -> None:
    assert scaled(lambda step: 65536.0 / 2 ** min(3, max(0, (step - 200) // 20)))
    assert not scaled(lambda step: 65536.0 / 2 ** min(2, max(0, (step - 200) // 20)))


def test_they_have_to_come_within_a_hundred_steps() -> None:
    assert not scaled(lambda step: 65536.0 / 2 ** max(0, (step - 100) // 60))


def test_the_search_for_the_scale_is_not_judged() -> None:
    assert not scaled(lambda step: 65536.0 / 2 ** min(9, step // 10))


def test_probing_for_a_larger_scale_is_not_judged() -> None:
    assert not scaled(lambda step: 65536.0 * (1 + step // 10 % 2))


def test_a_scale_below_one_is_named_at_once() -> None:
    (hit,) = scaled(lambda step: 65536.0 / 4 ** min(step, 9), loss=1.386)
    assert hit.evidence["lowest_scale"] == 0.25
    assert hit.severity is Severity.CRITICAL


def test_a_scale_that_was_set_below_one_is_no_fall() -> None:
    assert not scaled(0.5)


def test_large_outputs_in_float16_are_named_with_module_and_step() -> None:
    (hit,) = run(lambda step: 1000.0 + 1000 * step, pulses=STUCK)
    assert hit.modules == ("layers.2",)
    assert hit.first_step == 30
    assert hit.evidence["largest"] == pytest.approx(31000)


def test_boundary_of_the_output() -> None:
    assert run(3.1e4)
    assert not run(2.9e4)


def test_they_are_an_aside_where_training_works() -> None:
    assert run(4e4)[0].severity is Severity.INFO


def test_other_formats_have_room() -> None:
    for dtype in ("bfloat16", "float32", None):
        assert not run(4e4, net=Net(tuple(replace(m, dtype=dtype) for m in SMALL.modules), SMALL.parameters))


def test_an_infinite_output_is_named_where_all_before_is_finite() -> None:
    infinite = _from_fifty(100.0, math.inf)
    (hit,) = run(infinite, columns={"activation.nonfinite": {"layers.2": _from_fifty(0.0, 1.0)}})
    assert (hit.modules, hit.first_step) == (("layers.2",), 50)
    assert hit.severity >= Severity.WARNING


def test_what_comes_in_infinite_is_not_laid_to_float16() -> None:
    bad = _from_fifty(0.0, 1.0)
    columns = {"activation.absmax": _from_fifty(100.0, math.inf), "activation.nonfinite": bad}
    assert not hits(build(HALF, columns=columns | {"input.nonfinite": bad}))
    assert not hits(build(HALF, columns=columns | {"weight.nonfinite": bad}))


def overflowed(**changes: Any) -> Origin:
    return replace(Origin(40, "between", "layers.2", before="layers.0", node="ExpBackward0", dtype="float16"), **changes)


def test_an_operation_that_can_only_overflow_is_named() -> None:
    (hit,) = hits(build(HALF, origin=overflowed()))
    assert (hit.modules, hit.first_step) == (("layers.0", "layers.2"), 40)
    assert hit.severity >= Severity.WARNING
    assert "ExpBackward0, before layers.2 made infinite numbers" in hit.message


def test_a_power_needs_large_numbers_to_overflow() -> None:
    assert hits(build(HALF, origin=overflowed(node="PowBackward0", largest=300.0)))
    assert not hits(build(HALF, origin=overflowed(node="PowBackward0", largest=2.0)))  # 0 ** -1


@pytest.mark.parametrize(
    "changes", [{"dtype": "float32"}, {"node": "LogBackward0"}, {"node": "DivBackward0"}, {"place": "input"}]
)
def test_what_is_infinite_in_any_format_is_not_laid_to_float16(changes: dict[str, str]) -> None:
    assert not hits(build(HALF, origin=overflowed(**changes)))


NORM = (*HALF.modules[:2], replace(HALF.modules[1], path="scale", type="Scaled", role="other"), *HALF.modules[2:])


def divided(
    *, zero: float = 0.95, before: float = 0.5, largest: float = 300.0, rms: float = 30.0, role: str = "other"
) -> list[Hit]:
    """A module that gets ``before`` zeros and puts out ``zero`` of them."""
    modules = tuple(replace(m, role=role) if m.path == "scale" else m for m in NORM)
    columns = {
        "activation.zero": {"layers.1": before, "scale": zero},
        "activation.absmax": {"layers.1": largest},
        "activation.rms": {"layers.1": rms},
    }
    return hits(build(Net(modules, HALF.parameters), columns=columns, pulses=STUCK))


def test_a_norm_that_overflows_leaves_nothing_but_zeros() -> None:
    (hit,) = divided()
    assert (hit.modules, hit.evidence["zero"]) == (("scale",), pytest.approx(0.95))
    assert divided(largest=200.0, rms=50.0)  # 32 squares of 50 add up to 80,000
    assert not divided(largest=200.0, rms=30.0)  # there is room for them
    assert not divided(zero=0.79)
    assert not divided(before=0.75)
    assert not divided(role="activation")


def test_a_norm_that_overflows_is_a_warning_where_the_loss_got_worse_with_it_and_stayed_so() -> None:
    modules = tuple(replace(m, role="other") if m.path == "scale" else m for m in NORM)

    def after(level: float, *, until: int = 1000) -> Severity:
        columns = {
            "activation.zero": {"layers.1": 0.5, "scale": lambda step: 0.95 if step >= 50 else 0.5},
            "activation.absmax": {"layers.1": 300.0},
            "activation.rms": {"layers.1": 30.0},
        }
        losses = {"loss": lambda step: level if 50 <= step < until else max(0.06, 1.4 - step / 10)}
        (hit,) = hits(build(Net(modules, HALF.parameters), columns=columns, pulses=losses))
        return hit.severity

    assert after(1.2) is Severity.WARNING  # below ln 4, so that training would pass for one that works
    assert after(0.15) is Severity.INFO  # by less than a tenth of the start
    assert after(1.2, until=75) is Severity.INFO  # it came back


def test_without_scaler_and_float16_it_says_why_it_cannot_look() -> None:
    assert "float16" in (Fp16Overflow().obstacle(build()) or "")
    assert Fp16Overflow().obstacle(build(HALF)) is None
    assert Fp16Overflow().obstacle(build(pulses={"loss_scale": 1024.0})) is None


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    timelines = (build(), build(HALF), empty(), build(HALF, steps=(), total=50), poisoned(math.nan, net=HALF))
    for timeline in (*timelines, poisoned(math.inf, net=HALF), poisoned(math.inf), poisoned(0.0, net=HALF)):
        assert not hits(timeline)
    for scale in (math.nan, math.inf, 0.0, -1.0):
        assert not scaled(scale)


def _from_fifty(before: float, after: float) -> Callable[[int], float]:
    return lambda step: after if step >= 50 else before
