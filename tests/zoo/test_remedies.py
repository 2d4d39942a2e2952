"""Faulty trainings get their own fault named on top; what the finding says is done, word by word, and the training works."""

from __future__ import annotations

import math

import pytest

from gradscope.records import RunReport
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.proving import SEED
from tests.zoo.proving import TREATED
from tests.zoo.proving import proven
from tests.zoo.running import treated
from tests.zoo.treatment import Treatment


@pytest.mark.parametrize("fault", TREATED.values(), ids=lambda fault: fault.name)
def test_names_and_cures_the_fault(fault: Fault) -> None:
    seen, twin = proven(fault)
    code = remedy(fault, seen.runs[0])
    assert code is not None
    cured = treated(lambda watch: fault.train(watch, True), SEED, Treatment(fault.remedy or "", code))
    assert works(cured, twin), code


def remedy(fault: Fault, report: RunReport) -> str | None:
    """The code of the first finding that is right."""
    return next((finding.remedy.code for finding in report.findings if finding.rule in fault.rules), None)


def works(cured: Outcome, twin: Outcome) -> bool:
    """Whether the loss came down at least two thirds of the way from where the twin started to where it ended."""
    return math.isfinite(cured.end) and cured.end < twin.end + (twin.start - twin.end) / 3


def test_a_faulty_course_does_not_count_as_cured() -> None:
    twin = Outcome((2.0,) * 5 + (0.2,) * 10)
    assert works(twin, twin)
    assert not works(Outcome((2.0,) * 15), twin)
    assert not works(Outcome((2.0,) * 14 + (math.nan,)), twin)
