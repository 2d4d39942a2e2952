"""When clipping counts as misplaced."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.diagnosis import diagnose
from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.clipping_misplaced import ClippingMisplaced
from gradscope.rules.outlier_batch import OutlierBatch
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned
from tests.timelines import sgd

STUCK = {"loss": lambda step: 1.39 + 0.01 * math.sin(7 * step)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(ClippingMisplaced().check(timeline))


def run(place: Any, *, limit: Any = 0.5, norm: Any = 2.0, pulses: Any = None, columns: Any = None, **more: Any) -> list[Hit]:
    columns = {"step.clip_place": place, "step.clip_limit": limit, "step.clip_norm": norm, **(columns or {})}
    return hits(build(columns=columns, pulses=pulses, **more))


@pytest.mark.parametrize(
    ("place", "words"), [(1.0, "before backward()"), (2.0, "after optimizer.step()"), (3.0, "GradScaler's factor")]
)
def test_each_wrong_place_is_named(place: float, words: str) -> None:
    (hit,) = run(place)
    assert words in hit.message
    assert (hit.severity, hit.strength) == (Severity.WARNING, 10.0)
    assert "max_norm=0.5" in (hit.remedy.code or "")
    compile(hit.remedy.code or "", "remedy", "exec")


def test_the_remedy_has_the_order_of_a_step() -> None:
    code = run(2.0)[0].remedy.code or ""
    assert code.index("backward") < code.index("clip_grad_norm_") < code.index("optimizer.step()")
    code = run(3.0)[0].remedy.code or ""
    assert code.index("unscale_") < code.index("clip_grad_norm_") < code.index("scaler.step")


def test_clipping_of_scaled_gradients_is_critical_where_nothing_is_learned() -> None:
    assert run(3.0, pulses=STUCK)[0].severity is Severity.CRITICAL
    assert run(2.0, pulses=STUCK)[0].severity is Severity.WARNING


def test_the_right_place_is_left_alone() -> None:
    assert not run(0.0)


def test_three_sampled_steps_are_needed() -> None:
    assert not run(lambda step: 2.0 if step < 2 else math.nan)
    assert run(lambda step: 2.0 if step < 3 else math.nan)


def test_a_slip_now_and_then_is_no_rule() -> None:
    assert not run(lambda step: 2.0 if step % 2 else 0.0)


def test_a_call_without_a_limit_only_measures() -> None:
    assert not run(2.0, limit=math.inf)


def test_a_limit_that_is_not_known_gets_one_to_begin_with() -> None:
    (hit,) = run(1.0, limit=math.nan, norm=math.nan)
    assert "max_norm=1)" in (hit.remedy.code or "")
    assert hit.evidence["limit"] is None


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), poisoned(math.nan), poisoned(math.inf), poisoned(0.0)):
        assert not hits(timeline)


def blown_up(*, norm: float = 50.0, optimizer: str = "SGD") -> list[Hit]:
    """Steps of 20 % by gradients of this norm, which a limit of 0.5 in its place would have cut."""
    settings = {"eps": 1e-8} if optimizer == "Adam" else {"momentum": 0.0}
    made = OptimizerInfo(optimizer, 0.1, sgd().parameters, 0, settings)
    pulses = {"loss": lambda step: 1.4 * 1.3**step, "gradient_norm": norm}
    return run(2.0, pulses=pulses, columns={"update.ratio": 0.2}, optimizers=(made,))


def test_it_is_critical_where_training_blew_up_by_steps_that_a_limit_in_its_place_had_cut() -> None:
    assert blown_up()[0].severity is Severity.CRITICAL
    assert blown_up(norm=0.4)[0].severity is Severity.WARNING  # below the limit
    assert blown_up(norm=0.6)[0].severity is Severity.WARNING  # and steps as long with it
    assert blown_up(optimizer="Adam")[0].severity is Severity.WARNING  # which divides by their size


def test_it_explains_an_outlier_that_the_limit_had_borne() -> None:
    columns = {"step.clip_place": 2.0, "step.clip_limit": 0.5, "step.clip_norm": 1.0}
    columns |= {"input.absmax": lambda step: 90.0 if step == 60 else 3.0 + 0.1 * (step % 3)}
    pulses = {
        "gradient_norm": lambda step: 60.0 if step == 60 else 1.0 + 0.05 * (step % 3),
        "loss": lambda step: 1.0 + 2 * (step >= 60),
    }
    timeline = build(steps=range(90), columns=columns, pulses=pulses)
    report = diagnose(timeline, (ClippingMisplaced(), OutlierBatch()))
    assert [finding.rule for finding in report.findings] == ["clipping-misplaced", "outlier-batch"]
    assert report.findings[1].severity >= Severity.WARNING
    assert report.findings[0].explains == ("outlier-batch",)
