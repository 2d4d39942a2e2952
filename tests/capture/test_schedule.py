"""The governor, given the times of made-up steps."""

from __future__ import annotations

import pytest

from gradscope.capture.schedule import DENSE_STEPS
from gradscope.capture.schedule import EARLY_STEPS
from gradscope.capture.schedule import Governor


def drive(governor, *, steps, bare, cost, alarms=()):
    """Whether each step was sampled, where sampling costs ``cost`` beside ``bare`` seconds."""
    sampled, found = governor.first(), []
    for step in range(steps):
        found.append(sampled)
        own = cost if sampled else 0.0
        if step in alarms:
            governor.alarm()
        sampled = governor.after(step, seconds=bare + own, own=own, sampled=sampled)
    return found


@pytest.mark.parametrize(("bare", "cost"), [(0.01, 0.002), (0.01, 0.02), (1.0, 0.005), (0.001, 0.0005)])
@pytest.mark.parametrize("budget", [0.02, 0.1])
def test_the_budget_is_kept_over_a_run(bare, cost, budget):
    found = drive(Governor(budget, None), steps=20_000, bare=bare, cost=cost)
    share = sum(found) * cost / (len(found) * bare)
    possible = min(budget, cost / bare)
    assert 0.5 * possible < share < 1.2 * budget
    assert all(found[:DENSE_STEPS])
    assert all(found[step] for step in EARLY_STEPS)


def test_a_fixed_cadence_is_kept_whatever_it_costs():
    assert drive(Governor(0.02, 5), steps=11, bare=0.001, cost=1.0) == [step % 5 == 0 for step in range(11)]
    assert all(drive(Governor(0.02, 1), steps=50, bare=0.001, cost=1.0))


def test_an_alarm_brings_a_dense_stretch_and_not_too_many_do():
    quiet = drive(Governor(0.02, None), steps=2000, bare=0.01, cost=0.01)
    alarmed = drive(Governor(0.02, None), steps=2000, bare=0.01, cost=0.01, alarms={1000})
    assert all(alarmed[1001:1006])
    assert not all(quiet[1001:1006])
    storm = drive(Governor(0.02, None), steps=20_000, bare=0.01, cost=0.01, alarms=set(range(0, 20_000, 50)))
    assert sum(storm) * 0.01 / (20_000 * 0.01) < 0.03
