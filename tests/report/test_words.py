from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradscope.report import words
from tests.report import examples


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.8124, "0.812"),
        (1e-3, "0.001"),
        (9.99e-4, "1.0e-03"),
        (12345.6, "12346"),
        (123456.0, "1.2e+05"),
        (-0.5, "-0.5"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "-"),
    ],
)
def test_numbers_are_short(value, shown):
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("overhead", "said"),
    [
        (0.0, "under 0.1 %"),
        (0.0131, "1.3 %"),
        (0.25, "25 %"),
        (3.5, "350 %"),
        (math.nan, "could not be measured"),
        (math.inf, "could not be measured"),
    ],
)
def test_what_watching_cost(overhead, said):
    assert said in words.cost(replace(examples.HEALTHY, overhead=overhead))


CLOSELY = "Watching cost 80 % of the training's time: it looks closely at the first 100 steps, whatever that takes, and"


@pytest.mark.parametrize(
    ("overhead", "later", "said"),
    [
        (0.02, 0.02, "Watching cost 2.0 % of the training's time."),
        (0.8, 0.021, f"{CLOSELY} cost 2.1 % since."),
        (0.8, math.nan, f"{CLOSELY} then keeps to its budget."),
    ],
)
def test_a_cost_above_the_budget_is_told_apart_from_that_of_the_start(overhead, later, said):
    assert words.cost(replace(examples.HEALTHY, overhead=overhead, overhead_later=later)) == said


def test_a_cadence_that_was_asked_for_has_no_budget():
    every = replace(examples.HEALTHY, info=replace(examples.HEALTHY.info, every=1), overhead=0.8)
    assert words.cost(every) == "Watching cost 80 % of the training's time."


def test_nothing_is_wholly_sure():
    assert words.sure(replace(examples.RATE, confidence=1.0)) == "99 % sure"


def test_rules_that_lack_steps_come_together_before_other_reasons():
    assert words.not_checked(examples.HEALTHY) == (
        ("needs 500 to 1000 steps, the run has 400", ("loss-plateau", "lr-too-low")),
        ("no floating-point tensor was given to the model, or to the part of it that is called first", ("unnormalized-input",)),
    )


def test_a_loss_that_ended_in_nan_is_told_as_such():
    assert "loss 2.31 -> not finite" in words.facts(examples.SYMPTOM, arrow="->")


def test_where_no_cause_is_named_the_first_serious_finding_leads():
    run = replace(examples.BROKEN, diagnosis=None, findings=(examples.INPUT, examples.DEAD))
    assert words.primary(run) is examples.DEAD
    assert words.others(run) == (examples.INPUT,)


def test_an_aside_leads_no_report():
    assert words.primary(examples.NOTED) is None


@pytest.mark.parametrize(("count", "said"), [(1, "a"), (3, "a, b, c"), (5, "a, b, c and 2 more")])
def test_long_lists_are_cut(count, said):
    assert words.listed("abcde"[:count]) == said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("ran at step 0", "The step-quality probe ran at step 0."),
        ("could not run at step 1: why", "The step-quality probe could not run at step 1: why."),
        ("could not have run at step 1: why", None),
        ("switched off with probe=False", None),
    ],
)
def test_of_the_probe_is_told_what_it_did_or_was_kept_from(told, said):
    assert words.probed(replace(examples.HEALTHY, info=replace(examples.HEALTHY.info, probe=told))) == said
