from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.weights_changed_outside_optimizer import WeightsChangedOutsideOptimizer
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

FLAT = {"loss": 1.4}


def hits(timeline: Timeline) -> list[Hit]:
    return list(WeightsChangedOutsideOptimizer().check(timeline))


def scaled(factor: float = 0.99, **changes: Any) -> Timeline:
    columns = {"update.outside_change": abs(1 - factor), "update.outside_factor": factor, "update.outside_residual": 1e-4}
    given: dict[str, Any] = {"columns": columns | changes.pop("columns", {})}
    return build(**(given | changes))


def test_names_the_factor_and_what_clipping_is() -> None:
    (hit,) = hits(scaled(pulses={**FLAT, "gradient_norm": 4.0}))
    assert hit.evidence["factor"] == pytest.approx(0.99)
    assert "multiplied by 0.99, a weight decay that halves them every 69 steps" in hit.message
    assert hit.modules == ("layers.0", "layers.2", "layers.4")
    assert (hit.first_step, hit.last_step) == (1, 11)
    assert "clip_grad_norm_(model.parameters(), max_norm=4)" in (hit.remedy.code or "")
    assert "weight_decay=0.1" in hit.remedy.text  # (1 - 0.99) / lr
    assert hit.severity is Severity.CRITICAL


def test_is_a_warning_where_training_works() -> None:
    (hit,) = hits(scaled())
    assert hit.severity is Severity.WARNING


def test_a_mild_decay_by_hand_is_for_information_where_training_works() -> None:
    (hit,) = hits(scaled(0.9999))
    assert hit.severity is Severity.INFO


def no_factor(change: float, **more: Any) -> Hit:
    (hit,) = hits(
        scaled(columns={"update.outside_residual": 0.6, "update.outside_change": change, "update.ratio": 0.0035}, **more)
    )
    return hit


def test_a_clamp_is_for_information() -> None:
    hit = no_factor(0.002)
    assert hit.severity is Severity.INFO
    assert "no common factor" in hit.message


def test_steps_that_are_taken_back_are_a_warning_where_training_does_not_get_on() -> None:
    slow = {"loss": lambda step: 1.4 - 0.002 * step}
    hit = no_factor(0.0035, pulses=slow)
    assert hit.severity is Severity.WARNING
    assert "the optimizer's work is taken back" in hit.message
    assert 0.9 < hit.evidence["of_update"] < 1.1
    assert no_factor(0.0015, pulses=slow).severity is Severity.INFO  # a part of the step, and training gets on
    assert no_factor(0.0035).severity is Severity.INFO  # a loss that falls below half
    assert no_factor(0.0035, pulses=slow, steps=range(60), total=60).severity is Severity.INFO  # too early to tell


def test_a_projection_is_a_warning_where_training_stands_still() -> None:
    assert no_factor(0.002, pulses=FLAT).severity is Severity.WARNING
    assert no_factor(0.01, pulses=FLAT).severity is Severity.WARNING
    assert no_factor(0.0005, pulses=FLAT).severity is Severity.INFO  # too little to be what holds it


def test_different_factors_are_no_common_one() -> None:
    (hit,) = hits(scaled(columns={"update.outside_factor": [0.99, 0.9, 1.1]}))
    assert "no common factor" in hit.message


def test_is_silent_on_a_healthy_run_and_on_rounding() -> None:
    assert not hits(build())
    assert not hits(scaled(columns={"update.outside_change": 9e-7}))


@pytest.mark.parametrize(("pairs", "count"), [(2, 0), (3, 1)])
def test_three_pairs_in_a_row_are_needed(pairs: int, count: int) -> None:
    assert len(hits(scaled(columns={"update.outside_change": lambda step: 0.01 * (step in range(5, 5 + pairs))}))) == count


def test_a_checkpoint_loaded_now_and_then_is_no_habit() -> None:
    assert not hits(scaled(columns={"update.outside_change": lambda step: 0.5 * (step % 3 == 0)}))


def test_parameters_outside_the_optimizer_are_not_judged() -> None:
    assert not hits(scaled(optimizers=[]))


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert len(hits(scaled(columns={"update.outside_factor": math.inf}))) == 1
    for value in (math.nan, math.inf):
        hits(poisoned(value))


ADAM = OptimizerInfo("Adam", 0.1, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8})


def anew(*, ratio: float = 0.002, change: float = 1.4, times: int = 3, **more: Any) -> Timeline:
    """Weights that are made anew each thirty steps, Adam's step after it having this ratio and the others 0.004."""
    again = [30 * (i + 1) for i in range(times)]
    columns = {
        "update.outside_change": lambda step: change * (step in again),
        "update.ratio": lambda step: ratio if step in again else 0.004,
        "weight.norm": 5.0,
    }
    return build(**({"columns": columns, "steps": range(120), "optimizers": [ADAM]} | more))


def test_weights_that_are_made_anew_under_the_same_optimizer_are_a_warning() -> None:
    (hit,) = hits(anew())
    assert hit.severity is Severity.WARNING
    assert (hit.first_step, hit.last_step, hit.evidence["times"]) == (30, 90, 3)
    assert "they were made anew" in hit.message and "out of the loop over epochs" in hit.remedy.text


def test_weights_that_are_made_anew_together_with_the_optimizer_are_for_information() -> None:
    assert hits(anew(ratio=0.004))[0].severity is Severity.INFO
    assert hits(anew(optimizers=[replace(ADAM, type="SGD")]))[0].severity is Severity.INFO  # whose memory does not show


def test_few_or_small_changes_are_none_that_make_weights_anew() -> None:
    assert not hits(anew(times=2))
    assert not hits(anew(change=0.8))
