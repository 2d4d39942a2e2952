"""When a training counts as one in evaluation mode."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.eval_mode_training import EvalModeTraining
from gradscope.timeline import Timeline
from tests.timelines import Net
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import linear
from tests.timelines import module
from tests.timelines import norm
from tests.timelines import poisoned

NORMED = linear("a", 16, 32, norm_follows=True) + norm("n", 32, kind="BatchNorm1d") + linear("b", 32, 4)
DROPPED = linear("a", 16, 32) + module("d", "Dropout", "dropout") + linear("b", 32, 4)
BOTH = NORMED + module("d", "Dropout", "dropout")


def hits(timeline: Timeline) -> list[Hit]:
    return list(EvalModeTraining().check(timeline))


def run(share: Any = 1.0, untouched: Any = 1.0, *, net: Net = NORMED, **more: Any) -> list[Hit]:
    columns = {"step.evaluating": share, "step.untouched_statistics": untouched}
    return hits(build(net, columns=columns, **more))


def frozen(net: Net) -> Net:
    return Net(net.modules, tuple(replace(p, trainable=p.module != "n") for p in net.parameters))


def test_batch_norms_that_never_saw_a_batch_are_named() -> None:
    (hit,) = run()
    assert hit.modules == ("n",)
    assert (hit.first_step, hit.last_step, hit.strength) == (0, 95, 10.0)
    assert hit.severity is Severity.WARNING  # though the training works
    assert (hit.remedy.code or "").startswith("model.train()")


def test_a_wasted_training_makes_it_critical() -> None:
    assert run(pulses={"loss": 1.386})[0].severity is Severity.CRITICAL


def test_boundaries_of_share_and_duration() -> None:
    assert run(0.95)
    assert not run(0.94)
    assert run(steps=range(10))
    assert not run(steps=range(9))


def test_steps_without_a_forward_pass_are_passed_over() -> None:
    assert run(lambda step: math.nan if step % 2 else 1.0, steps=range(30))


def test_a_model_that_never_comes_back_from_its_validation_is_named_with_the_step() -> None:
    (hit,) = run(lambda step: float(step >= 20), 0.0, net=BOTH)
    assert hit.evidence["case"] == "never back in training mode"
    assert (hit.first_step, hit.severity) == (20, Severity.WARNING)
    assert hit.modules == ("n", "d")


def test_a_late_switch_is_for_information_until_it_has_lasted() -> None:
    (hit,) = run(lambda step: float(step >= 60), 0.0, steps=range(100))
    assert hit.severity is Severity.INFO
    assert run(lambda step: float(step >= 50), 0.0, steps=range(101))[0].severity is Severity.WARNING


def test_a_model_that_comes_back_is_left_alone() -> None:
    assert not run(lambda step: float(20 <= step < 60), 0.0, steps=range(100))


def test_batch_norm_from_an_earlier_training_may_be_frozen_on_purpose() -> None:
    assert run(untouched=0.0)[0].severity is Severity.INFO
    assert not run(untouched=0.0, net=frozen(NORMED))
    assert run(net=frozen(NORMED))[0].severity is Severity.INFO  # weights that nobody trained: fixed features, perhaps


@pytest.mark.parametrize(("times", "severity"), [(1.9, Severity.INFO), (2.1, Severity.CRITICAL)])
def test_statistics_of_other_data_are_as_grave_as_what_becomes_of_the_training(times: float, severity: Severity) -> None:
    def seen(**more: Any) -> list[Hit]:
        columns = {"activation.rms": {"n": times}, "weight.norm": {"n.weight": math.sqrt(32)}}
        given = {"step.evaluating": 1.0, "step.untouched_statistics": 0.0, **columns}
        return hits(build(more.pop("net", NORMED), columns=given, **more))

    assert seen(pulses={"loss": 1.386})[0].severity is severity
    assert seen()[0].severity is Severity.INFO  # it works all the same
    assert not seen(net=frozen(NORMED), pulses={"loss": 1.386})


def test_dropout_that_was_never_on_is_for_information() -> None:
    (hit,) = run(untouched=math.nan, net=DROPPED)
    assert (hit.severity, hit.modules) == (Severity.INFO, ("d",))


def test_a_frozen_body_under_a_trained_head_is_left_alone() -> None:
    assert not run(0.8, 0.0)


def test_it_explains_what_a_net_without_normalisation_does() -> None:
    assert {"lr-too-high", "loss-plateau", "labels-unrelated"} <= set(EvalModeTraining.explains)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_broken_numbers_raise_nothing(value: float) -> None:
    list(EvalModeTraining().check(poisoned(value, net=BOTH)))


def test_healthy_runs_raise_nothing() -> None:
    for timeline in (build(BOTH), build(), empty(), build(steps=(), total=50), poisoned(math.nan, net=BOTH)):
        assert not hits(timeline)
    assert not run(0.0, math.nan)
