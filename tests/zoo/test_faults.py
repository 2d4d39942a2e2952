"""Faulty trainings get their own fault named on top, and their healthy twins show that it is this fault."""

from __future__ import annotations

import pytest

from gradscope.rule import all_rules
from tests.zoo.program import Fault
from tests.zoo.running import JUDGING
from tests.zoo.running import alone
from tests.zoo.running import watched
from tests.zoo.zoo import FAULTS

SEED = JUDGING[0]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_names_the_fault(fault: Fault) -> None:
    twin = alone(lambda watch: fault.train(watch, False), SEED)
    seen = watched(lambda watch: fault.train(watch, True), SEED, every=1)
    assert twin.fell(fault.falls_to)
    assert fault.proof(seen.outcome, twin)
    wrong = [name for name in seen.diagnoses if name not in fault.rules]
    assert wrong == []
    assert seen.diagnoses


def test_every_rule_has_a_fault() -> None:
    """As the diagnosis, or as a symptom that one explains; what can only be a symptom of others is listed."""
    diagnoses = {rule for fault in FAULTS.values() for rule in fault.rules}
    explained = {"vanishing-gradients", "saturated-units", "nonfinite-gradients", "nonfinite-loss", "loss-divergence"}
    assert {rule.name for rule in all_rules()} <= diagnoses | explained
