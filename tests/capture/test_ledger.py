"""The ledger, given what steps took."""

from __future__ import annotations

import pytest

from gradscope.capture.ledger import HORIZON
from gradscope.capture.ledger import Ledger

BUDGET = 0.02


def entered(ledger, count, *, own=0.0, sampled=False):
    """After ``count`` steps of one bare second each."""
    for _ in range(count):
        ledger.enter(1, seconds=1.0 + own, own=own, sampled=sampled, most=1.0)
    return ledger


def test_steps_earn_the_budgets_share_of_their_bare_time():
    ledger = entered(Ledger(BUDGET), 10, own=0.001)
    assert ledger.bare_step == pytest.approx(1.0)
    assert ledger.credit == pytest.approx(10 * (BUDGET - 0.001))


def test_no_more_is_laid_by_than_is_asked_for():
    assert entered(Ledger(BUDGET), 1000).credit == pytest.approx(1.0)


def test_what_was_lent_is_paid_back_before_much_else_is_bought():
    ledger = entered(Ledger(BUDGET), HORIZON)
    ledger.lend(3.0)
    before = ledger.credit
    entered(ledger, 10)
    assert ledger.credit - before <= 0.25 * 10 * BUDGET + 1e-9


def test_the_first_steps_can_carry_what_a_hundred_earn():
    ledger = entered(Ledger(BUDGET), 1, own=0.5, sampled=True)
    assert ledger.can_carry(HORIZON * BUDGET - 0.51)
    assert not ledger.can_carry(HORIZON * BUDGET - 0.49)


@pytest.mark.parametrize(("rest", "left"), [(0.5, 0.5), (0.8, 0.25), (1.1, 0.15), (2.0, 0.05)])
def test_samples_keep_a_small_part_whatever_the_rest_costs(rest, left):
    """All in parts of the budget."""
    ledger = entered(Ledger(BUDGET), 20, own=rest * BUDGET)
    assert ledger.credit == pytest.approx(left * 20 * BUDGET, rel=0.1)
