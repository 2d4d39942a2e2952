"""Healthy trainings raise nothing, at the end or on the way."""

from __future__ import annotations

import pytest

from tests.zoo.program import Healthy
from tests.zoo.running import TESTING
from tests.zoo.running import watched
from tests.zoo.zoo import HEALTHY

LOOKS = (8, 60)  # a few of those that scripts/zoo takes


@pytest.mark.parametrize("program", HEALTHY.values(), ids=HEALTHY.keys())
def test_raises_nothing(program: Healthy) -> None:
    seen = watched(program.train, TESTING, every=1, looks=LOOKS)
    assert seen.outcome.fell(program.falls_to)  # else it is no healthy training
    assert [(run.steps, finding.rule, finding.message) for run, finding in seen.alarms] == []
    assert seen.diagnoses == ()
