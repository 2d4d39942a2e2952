"""The governor, given the times of made-up steps."""

from __future__ import annotations

import random

import pytest

from gradscope.capture.schedule import COMPARED_EVERY
from gradscope.capture.schedule import DENSE_STEPS
from gradscope.capture.schedule import FIRST_NORMS
from gradscope.capture.schedule import FIRST_STEPS
from gradscope.capture.schedule import LARGE
from gradscope.capture.schedule import Governor

BUDGET = 0.02


def drive(governor, *, steps, bare, cost, rest=0.0, alarms=()):
    """Whether each step was sampled, where that costs ``cost`` beside the ``bare`` seconds of the step and ``rest`` of all.

    Each is a number, or is called with the step.
    """
    sampled, found = governor.first(), []
    for step in range(steps):
        found.append(sampled)
        own = at(rest, step) + (at(cost, step) if sampled else 0.0)
        if step in alarms:
            governor.alarm()
        sampled = governor.after(step, seconds=at(bare, step) + own, own=own, sampled=sampled)
    return found


def at(value, step):
    return value(step) if callable(value) else value


def share(found, *, bare, cost, rest=0.0):
    """What watching took, of the bare time."""
    spent = sum(at(rest, step) + (at(cost, step) if sampled else 0.0) for step, sampled in enumerate(found))
    return spent / sum(at(bare, step) for step in range(len(found)))


@pytest.mark.parametrize(("bare", "cost"), [(0.01, 0.002), (0.01, 0.02), (1.0, 0.005), (0.001, 0.0005)])
@pytest.mark.parametrize("budget", [BUDGET, 0.1])
def test_the_budget_is_kept_over_a_run(bare, cost, budget):
    found = drive(Governor(budget, None), steps=20_000, bare=bare, cost=cost)
    possible = min(budget, cost / bare)
    assert 0.8 * possible < share(found, bare=bare, cost=cost) < 1.05 * budget
    assert all(found[step] for step in FIRST_STEPS)


@pytest.mark.parametrize("rows", [0, LARGE])
@pytest.mark.parametrize("cost", [0.01, 0.05, 0.1, 0.18])
def test_a_run_of_a_hundred_steps_keeps_the_budget_where_a_sample_costs_little(cost, rows):
    found = drive(Governor(BUDGET, None, rows=rows), steps=100, bare=1.0, cost=cost)
    assert share(found, bare=1.0, cost=cost) <= 1.25 * BUDGET
    assert all(found[step] for step in FIRST_STEPS)


def test_a_large_model_has_as_many_first_samples_as_a_run_of_a_hundred_steps_carries():
    found = drive(Governor(BUDGET, None, rows=LARGE), steps=100, bare=1.0, cost=0.8)
    assert found[:2] == [True, True]
    assert share(found, bare=1.0, cost=0.8) <= 1.25 * BUDGET


def test_samples_that_cost_next_to_nothing_are_taken_throughout():
    """But for a few steps that the others' times are compared with."""
    found = drive(Governor(BUDGET, None), steps=220, bare=1.0, cost=0.005)
    assert all(found[:DENSE_STEPS])
    assert all(sampled or step % COMPARED_EVERY == 0 for step, sampled in enumerate(found))


@pytest.mark.parametrize("cost", [0.05, 2.0])
def test_the_budget_is_kept_where_step_times_vary_tenfold(cost):
    chance = random.Random(0)
    times = [chance.choice((0.2, 0.4, 0.7, 1.3, 2.0)) for _ in range(20_000)]
    found = drive(Governor(BUDGET, None), steps=20_000, bare=times.__getitem__, cost=cost)
    assert 0.8 * BUDGET < share(found, bare=times.__getitem__, cost=cost) < 1.1 * BUDGET


def test_the_budget_is_kept_where_another_process_takes_half_of_the_machine():
    chance = random.Random(0)
    waits = [chance.choice((1, 1, 3)) for _ in range(20_000)]
    bare, cost = (lambda step: 0.01 * waits[step]), (lambda step: 0.004 * waits[-step])
    found = drive(Governor(BUDGET, None), steps=20_000, bare=bare, cost=cost)
    assert 0.8 * BUDGET < share(found, bare=bare, cost=cost) < 1.1 * BUDGET


@pytest.mark.parametrize(("rest", "most"), [(0.5, 1.0), (0.95, 1.25), (1.1, 1.25)])
def test_what_every_step_costs_is_paid_first(rest, most):
    """``rest`` and ``most`` are of the budget."""
    found = drive(Governor(BUDGET, None), steps=20_000, bare=0.01, cost=0.005, rest=rest * BUDGET * 0.01)
    assert any(found[10_000:])
    assert share(found, bare=0.01, cost=0.005, rest=rest * BUDGET * 0.01) <= (most + 0.05) * BUDGET


def test_what_comes_seldom_and_costs_much_is_paid_like_the_rest():
    rest = lambda step: 0.02 if step % 200 == 150 else 0.0  # noqa: E731
    found = drive(Governor(BUDGET, None), steps=20_000, bare=0.01, cost=0.005, rest=rest)
    assert share(found, bare=0.01, cost=0.005, rest=rest) <= 1.05 * BUDGET


def test_what_a_probe_took_is_paid_back():
    governor = Governor(BUDGET, None)
    governor.owe(1.0)
    found = drive(governor, steps=20_000, bare=0.01, cost=0.005)
    assert share(found, bare=0.01, cost=0.005) * 200 + 1.0 <= 1.05 * BUDGET * 200


def test_what_the_clock_does_not_see_is_learned_from_the_steps_times():
    """On an accelerator, say, where the host goes on before the device has done what it was given."""
    governor, sampled, taken = Governor(BUDGET, None), True, 0.0
    for step in range(20_000):
        hidden = 0.01 if sampled else 0.0
        taken += hidden
        own = 0.001 + governor.unseen if sampled else 0.0
        sampled = governor.after(step, seconds=0.05 + hidden, own=own, sampled=sampled)
    assert governor.unseen == pytest.approx(0.009, rel=0.1)
    assert taken / (20_000 * 0.05) < 1.25 * BUDGET


def test_steps_that_vary_by_themselves_hide_nothing():
    chance, governor, sampled, told = random.Random(1), Governor(BUDGET, None), True, []
    for step in range(5_000):
        own = 0.05 if sampled else 0.0
        sampled = governor.after(step, seconds=chance.choice((0.2, 0.7, 2.0)) + own, own=own, sampled=sampled)
        told.append(governor.unseen)
    assert sum(told) / len(told) < 0.02


@pytest.mark.parametrize("waits", [(1.0,), (0.5, 0.5, 0.5, 0.5, 3.0)])
def test_gradient_norms_are_rationed_from_early_on(waits):
    """By what they cost in the mean, as other processes take the core amid one now and then; the first is dear."""
    governor, took = Governor(BUDGET, None), []
    for step in range(1100):
        if governor.wants_norm(step):
            took.append(0.0005 * waits[len(took) % len(waits)])
            governor.norm_took(took[-1] if step else 0.1)
        governor.after(step, seconds=0.01, own=0.0, sampled=False)
    assert len(took) > FIRST_NORMS
    later = sum(took[FIRST_NORMS:])
    assert 0.5 * 0.3 * BUDGET <= later / (1100 * 0.01) <= 1.1 * 0.3 * BUDGET


def whole_run(steps, *, bare, cost, norm, rest):
    """What watching took of the bare time of a run, gradient norms included, as a training's steps ask for them."""
    governor = Governor(BUDGET, None)
    sampled, spent = governor.first(), 0.0
    for step in range(steps):
        own = rest
        if sampled:
            own += cost + norm
        elif governor.wants_norm(step):
            own += norm
            governor.norm_took(norm)
        spent += own
        sampled = governor.after(step, seconds=bare + own, own=own, sampled=sampled)
    return spent / (steps * bare)


def test_what_the_first_samples_of_short_steps_took_is_given_back_within_three_thousand():
    assert whole_run(3000, bare=0.0075, cost=0.008, norm=0.0004, rest=0.00005) <= 1.25 * BUDGET


@pytest.mark.parametrize(("bare", "cost", "norm"), [(0.3, 0.025, 0.003), (0.4, 0.03, 0.006)])
def test_a_run_of_a_hundred_long_steps_pays_for_its_norms_too(bare, cost, norm):
    assert whole_run(100, bare=bare, cost=cost, norm=norm, rest=0.0001) <= 1.25 * BUDGET


def test_a_fixed_cadence_is_kept_whatever_it_costs():
    assert drive(Governor(BUDGET, 5), steps=11, bare=0.001, cost=1.0) == [step % 5 == 0 for step in range(11)]
    assert all(drive(Governor(BUDGET, 1), steps=50, bare=0.001, cost=1.0))


def test_an_alarm_brings_a_dense_stretch_and_not_too_many_do():
    quiet = drive(Governor(BUDGET, None), steps=2000, bare=0.01, cost=0.01)
    alarmed = drive(Governor(BUDGET, None), steps=2000, bare=0.01, cost=0.01, alarms={1000})
    assert all(alarmed[1001:1006])
    assert not all(quiet[1001:1006])
    storm = drive(Governor(BUDGET, None), steps=20_000, bare=0.01, cost=0.01, alarms=set(range(0, 20_000, 50)))
    assert share(storm, bare=0.01, cost=0.01) < 1.05 * BUDGET


def test_an_alarm_in_a_large_model_is_limited_too():
    found = drive(Governor(BUDGET, None, rows=LARGE), steps=300, bare=1.0, cost=1.0, alarms=set(range(100, 300, 10)))
    assert share(found, bare=1.0, cost=1.0) <= 1.75 * BUDGET


def test_a_watch_that_begins_in_the_midst_of_a_training_is_dense_there():
    governor, found = Governor(BUDGET, None), [True]
    governor.begin_at(5000)
    for step in range(5000, 5010):
        assert governor.wants_norm(step)
        assert not governor.quiet_steps(step)
        found.append(governor.after(step, seconds=0.02, own=0.01, sampled=found[-1]))
    assert found[:5] == [True] * 5
