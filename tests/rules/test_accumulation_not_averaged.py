"""When accumulated gradients count as summed up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import OptimizerInfo
from gradscope.records import Severity
from gradscope.rules.accumulation_not_averaged import AccumulationNotAveraged
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import poisoned

STUCK = {"loss": lambda step: 1.4 + 0.01 * math.sin(7 * step)}
DIVERGED = {"loss": lambda step: 1.4 * 1.2**step}
ADAM = OptimizerInfo("Adam", 1e-3, tuple(p.name for p in SMALL.parameters), 0, {"eps": 1e-8})


def hits(timeline: Timeline) -> list[Hit]:
    return list(AccumulationNotAveraged().check(timeline))


def run(*, count: Any = 4.0, weight: Any = 1.0, forwards: Any = 4.0, pulses: Any = STUCK, ratio: Any = 0.2, **more: Any) -> Any:
    columns = {
        "loss.weight": weight,
        "step.forwards": forwards,
        "update.ratio": ratio,
        "update.outside_change": 0.0,
    } | more.pop("columns", {})
    return hits(build(columns=columns, pulses={"backwards": count} | pulses, **more))


def test_a_wasted_training_on_summed_gradients_is_a_warning() -> None:
    (hit,) = run()
    assert hit.severity is Severity.WARNING
    assert hit.evidence["backwards"] == 4
    assert hit.evidence["expected_factor"] == pytest.approx(0.25)
    assert "loss = loss / 4" in (hit.remedy.code or "")
    assert run(pulses=DIVERGED)[0].severity is Severity.WARNING


def test_a_young_training_takes_a_first_step_that_is_too_long() -> None:
    assert run(steps=range(20))[0].severity is Severity.WARNING
    assert run(steps=range(20), ratio=0.09)[0].severity is Severity.INFO


def test_momentum_makes_the_first_step_the_shortest() -> None:
    def growing(step: int) -> float:
        return 0.08 if step == 0 else min(0.1 + 0.02 * step, 0.3)

    assert run(steps=range(20), ratio=growing)[0].severity is Severity.WARNING
    assert run(steps=range(20), ratio=growing)[0].evidence["update_ratio"] == pytest.approx(0.08)
    assert run(steps=range(20), ratio=growing, pulses={})[0].severity is Severity.INFO


def test_the_division_by_k_is_seen() -> None:
    assert not run(weight=0.25)


def test_a_training_that_works_gets_an_aside() -> None:
    assert run(pulses={})[0].severity is Severity.INFO


def test_a_step_that_would_be_too_long_all_the_same_is_not_laid_to_it() -> None:
    assert run(ratio=0.39)[0].severity is Severity.WARNING
    assert run(ratio=0.41)[0].severity is Severity.INFO


def test_the_first_step_is_what_counts() -> None:
    assert run(ratio=lambda step: 0.2 if step == 0 else 50.0, pulses=DIVERGED)[0].severity is Severity.WARNING


def test_an_optimizer_that_divides_by_the_gradients_size_undoes_it() -> None:
    assert run(optimizers=(ADAM,))[0].severity is Severity.INFO


def test_one_backward_call_a_step_is_no_accumulation() -> None:
    assert not run(count=1.0, forwards=1.0)


def test_several_losses_of_one_forward_pass_are_meant_to_be_added() -> None:
    assert not run(forwards=1.0)


def test_losses_of_different_kinds_are_meant_to_be_added() -> None:
    losses = (*classification().losses, LossInfo("mse", "MseLossBackward0", "mean"))
    assert not run(wiring=classification(losses=losses))


def test_a_sum_over_the_batch_is_another_matter() -> None:
    losses = (LossInfo("cross_entropy", "NllLossBackward0", "sum", classes=4),)
    assert not run(wiring=classification(losses=losses))


def test_weights_that_are_moved_for_a_trial_are_not_accumulation() -> None:
    assert not run(count=2.0, forwards=2.0, columns={"update.outside_change": 1e-8})


def test_players_that_take_turns_are_left_alone() -> None:
    assert not run(shared_process=True)


def test_it_takes_two_sampled_steps() -> None:
    assert run(steps=range(2))
    assert not run(steps=range(1))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=(), total=50), poisoned(math.nan), poisoned(math.inf), poisoned(1.0)):
        assert not hits(timeline)
