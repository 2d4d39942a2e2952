"""Faulty trainings get their own fault named on top; those whose remedy is code stand in test_remedies.py."""

from __future__ import annotations

import pytest

from gradscope.rule import all_rules
from tests.zoo.golden import PATH
from tests.zoo.program import Fault
from tests.zoo.proving import UNTREATED
from tests.zoo.proving import proven
from tests.zoo.zoo import FAULTS

# Symptoms that the zoo shows only where a cause explains them, and what no small training has shown.
EXPLAINED = {
    "activation-growth", "attention-entropy-collapse", "collapsed-output", "exploding-gradients", "gradient-spikes",
    "loss-divergence", "loss-plateau", "nonfinite-gradients", "nonfinite-loss", "oscillating-loss", "output-logit-drift",
    "residual-growth", "saturated-units", "vanishing-gradients",
}  # fmt: skip
UNSEEN = {"rank-divergence", "rank-outlier"}


@pytest.mark.parametrize("fault", UNTREATED.values(), ids=lambda fault: fault.name)
def test_names_the_fault(fault: Fault) -> None:
    seen, _ = proven(fault)
    assert len(seen.runs) == 1


def test_every_rule_has_a_fault() -> None:
    truths = {fault.truth for fault in FAULTS.values()}
    assert {rule.name for rule in all_rules()} <= truths | EXPLAINED | UNSEEN
    assert not truths & UNSEEN


def test_every_program_is_in_the_golden_summary() -> None:
    told = [line.split()[1] for line in PATH.read_text(encoding="utf-8").splitlines() if line.startswith("fault ")]
    assert sorted(told) == sorted(FAULTS)
