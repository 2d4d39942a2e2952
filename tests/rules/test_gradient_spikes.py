from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.gradient_spikes import GradientSpikes
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned
from tests.timelines import sgd

FLAT = {"loss": 1.4}
# A flat series has the least spread that counts, 0.1: a score of z is a factor of exp(0.1 z).


def hits(timeline: Timeline) -> list[Hit]:
    return list(GradientSpikes().check(timeline))


def spiking(at: Collection[int], *, score: float = 30.0, usual: float = 2.0, pulses: Any = None, **changes: Any) -> Timeline:
    def norm(step: int) -> float:
        return usual * math.exp(0.1 * score) if step in at else usual

    return build(steps=(), total=150, pulses={"gradient_norm": norm, **(pulses or {})}, **changes)


def test_names_the_step_and_how_far_it_jumped() -> None:
    (hit,) = hits(spiking([60]))
    assert (hit.first_step, hit.last_step) == (60, 60)
    assert "At step 60 the gradient norm jumped to 40.2, 20.1 times" in hit.message
    assert hit.evidence["score"] == pytest.approx(30, rel=1e-3)
    assert "max_norm=2)" in (hit.remedy.code or "")


def test_is_for_information_where_nothing_came_of_it() -> None:
    (hit,) = hits(spiking([60]))
    assert hit.severity is Severity.INFO


def test_is_a_warning_where_the_loss_is_worse_afterwards() -> None:
    (hit,) = hits(spiking([60], pulses={"loss": lambda step: 1.0 if step <= 60 else 1.6}))
    assert hit.severity is Severity.WARNING


def test_a_loss_that_came_back_or_hardly_rose_beside_its_start_takes_no_harm() -> None:
    def severity(loss: Any) -> Severity:
        return hits(spiking([60], pulses={"loss": loss}))[0].severity

    assert severity(lambda step: 1.4 if step < 5 else 0.2 if step <= 60 else 0.5) is Severity.WARNING
    assert severity(lambda step: 1.4 if step < 5 else 0.2 if step <= 60 or step > 110 else 4.6) is Severity.INFO
    assert severity(lambda step: 1.4 if step < 5 else 0.1 if step <= 60 else 0.2) is Severity.INFO


def test_takes_no_harm_where_the_training_converged_all_the_same() -> None:
    def loss(step: int) -> float:
        return 1.4 if step < 30 else (0.01 if step <= 60 else 0.02)

    assert hits(spiking([60], pulses={"loss": loss}))[0].severity is Severity.INFO


def test_norms_that_vary_by_themselves_hide_no_leap_above_all_of_them() -> None:
    def varying(leap: float) -> Timeline:
        norms = np.exp(1.5 * np.random.default_rng(0).standard_normal(150))
        norms[60] = leap * norms[30:60].max()
        return build(steps=(), total=150, pulses={"gradient_norm": lambda step: norms[step]})

    assert not hits(varying(9.0))
    (hit,) = hits(varying(11.0))
    assert (hit.first_step, hit.last_step) == (60, 60)
    assert hit.evidence["score"] < 6


def test_of_two_high_steps_the_first_counts_as_well() -> None:
    (hit,) = hits(spiking([60, 63], score=7.0))
    assert (hit.first_step, hit.last_step) == (60, 63)
    assert not hits(spiking([60, 66], score=7.0))


def test_is_a_warning_where_the_training_blows_up() -> None:
    (hit,) = hits(spiking([60], pulses={"loss": lambda step: 1.0 if step <= 62 else math.nan}))
    assert hit.severity is Severity.WARNING


def test_is_a_warning_where_spikes_return_in_a_training_that_does_not_learn() -> None:
    assert hits(spiking([40, 80, 120], pulses=FLAT))[0].severity is Severity.WARNING
    assert hits(spiking([40, 80], pulses=FLAT))[0].severity is Severity.INFO
    assert hits(spiking([40, 80, 120]))[0].severity is Severity.INFO  # the last batch of each epoch


def test_spikes_within_twenty_steps_are_one_event() -> None:
    assert hits(spiking([60, 65, 75]))[0].evidence["events"] == 1
    assert hits(spiking([60, 90]))[0].evidence["events"] == 2


@pytest.mark.parametrize(
    ("at", "score", "count"), [([60], 7.9, 0), ([60], 8.1, 1), ([60, 63], 5.9, 0), ([60, 63], 6.1, 1), ([60, 66], 6.1, 0)]
)
def test_one_above_eight_or_two_of_five_above_six(at: list[int], score: float, count: int) -> None:
    assert len(hits(spiking(at, score=score))) == count


def test_is_silent_on_steady_growth_and_on_noise() -> None:
    noisy = np.exp(np.random.default_rng(0).normal(scale=0.5, size=150))
    assert not hits(build(steps=(), total=150, pulses={"gradient_norm": lambda step: 1.05**step}))
    assert not hits(build(steps=(), total=150, pulses={"gradient_norm": noisy}))
    assert not hits(build())


def test_is_for_information_where_several_players_move_the_goal() -> None:
    (hit,) = hits(spiking([60], pulses={"loss": lambda step: 1.0 if step <= 60 else 9.0}, optimizers=[sgd(), sgd()]))
    assert hit.severity is Severity.INFO


def test_steps_of_other_optimizers_do_not_count() -> None:
    def norm(step: int) -> float:
        return math.nan if step % 2 else (40.0 if step == 60 else 2.0)

    (hit,) = hits(build(steps=(), total=150, pulses={"gradient_norm": norm}))
    assert hit.first_step == 60


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    for value in (math.nan, math.inf):
        hits(poisoned(value))
    hits(build(steps=(), total=150, pulses={"gradient_norm": 0.0}))


def test_gradients_of_a_loss_that_counts_more_from_a_step_on_are_no_spike() -> None:
    def risen(step: int) -> float:
        return 1.0 if step < 60 else 1000.0

    pulses = {"gradient_norm": risen, "loss": risen}
    assert hits(build(steps=range(0, 150, 8), total=150, pulses=pulses))
    assert not hits(build(steps=range(0, 150, 8), total=150, pulses=pulses, columns={"loss.weight": risen}))


def test_says_how_many_steps_were_made_and_not_of_how_many_norms_are_known() -> None:
    def norm(step: int) -> float:
        return math.nan if step % 2 else (40.0 if step == 60 else 2.0)

    (hit,) = hits(build(steps=(), total=150, pulses={"gradient_norm": norm}))
    assert "(1 such event in 150 steps)" in hit.message
