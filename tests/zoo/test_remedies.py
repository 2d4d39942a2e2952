"""Faulty trainings get their own fault named on top; what the finding says is done, word by word, and the training works."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from gradscope.run_report import RunReport
from tests.zoo.form_faults import FORMS
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.proving import SEED
from tests.zoo.proving import TREATED
from tests.zoo.proving import proven
from tests.zoo.running import Seen
from tests.zoo.running import alone
from tests.zoo.running import timeline
from tests.zoo.running import treated
from tests.zoo.running import watched
from tests.zoo.running import watched_fault
from tests.zoo.treatment import Treatment
from tests.zoo.trials import CURES
from tests.zoo.trials import DRIFTS
from tests.zoo.trials import FORMED
from tests.zoo.trials import LOOKS
from tests.zoo.trials import OPERATIONS
from tests.zoo.trials import STOPS
from tests.zoo.trials import Trial
from tests.zoo.trials import untried
from tests.zoo.zoo import FAULTS


@pytest.mark.parametrize("fault", TREATED.values(), ids=lambda fault: fault.name)
def test_names_and_cures_the_fault(fault: Fault) -> None:
    seen, twin = proven(fault)
    code = remedy(seen.runs[0], *fault.rules)
    cured = with_code(fault, fault.remedy or "", code)
    assert works(cured, twin), code
    assert [untried(report) for report in seen.runs if untried(report)] == []
    if works(seen.outcome, twin) and not fault.aside:  # the fault does not show in the loss
        assert not fault.proof(cured, twin), code


@pytest.mark.parametrize("trial", CURES, ids=lambda trial: trial.name)
def test_cures_as_well(trial: Trial) -> None:
    fault = FAULTS[trial.program]
    twin = alone(lambda watch: fault.train(watch, False), SEED)
    code = remedy(watched_fault(fault, SEED, every=trial.every).runs[0], trial.rule)
    assert code.startswith(trial.begins)
    assert works(with_code(fault, trial.place, code), twin), code


@pytest.mark.parametrize("trial", FORMED, ids=lambda trial: trial.name)
def test_cures_a_fault_of_another_form(trial: Trial) -> None:
    fault = FORMS[trial.program]
    seen, twin = proven(fault)
    code = remedy(seen.runs[0], trial.rule)
    assert code.startswith(trial.begins)
    assert works(with_code(fault, trial.place, code), twin), code


@pytest.mark.parametrize("program", OPERATIONS)
def test_guards_the_operation(program: str) -> None:
    """The numbers stay finite and the training goes on; how far it comes is up to what stands in the way besides."""
    fault = FAULTS[program]
    code = remedy(watched_fault(fault, SEED, every=1).runs[0], "nonfinite-origin")
    with InPlaceOf(OPERATIONS[program], code):
        guarded = alone(lambda watch: fault.train(watch, True), SEED)
    assert guarded.fell(0.5), code


@pytest.mark.parametrize("trial", STOPS, ids=lambda trial: trial.name)
def test_stops_at_the_fault(trial: Trial) -> None:
    fault = FAULTS[trial.program]
    code = remedy(watched_fault(fault, SEED, every=1).runs[0], trial.rule)
    with torch.autograd.set_detect_anomaly(False):  # puts back what the code may switch on
        with pytest.raises((AssertionError, RuntimeError)):
            with_code(fault, trial.place, code)
        twin = with_code(fault, trial.place, code, faulty=False)
    assert math.isfinite(twin.end)


@pytest.mark.parametrize("trial", LOOKS, ids=lambda trial: trial.name)
def test_looks_at_the_fault(trial: Trial) -> None:
    fault = FAULTS[trial.program]
    code = remedy(watched_fault(fault, SEED, every=1).runs[0], trial.rule)
    with pytest.raises(LookupError) as told:
        with_code(fault, trial.place, f"{code}\nraise LookupError({trial.says})")
    assert told.value.args == (True,)


@pytest.mark.parametrize("trial", DRIFTS, ids=lambda trial: trial.name)
def test_keeps_the_logits_small(trial: Trial) -> None:
    fault = FAULTS[trial.program]
    drifting = watched_fault(fault, SEED, every=1)
    code = remedy(drifting.runs[0], trial.rule)
    held = watched(lambda watch: fault.train(watch, True), SEED, every=1, treatment=Treatment(trial.place, code))
    assert log_partition(held) < log_partition(drifting) / 2


def log_partition(seen: Seen) -> float:
    """Median of the last ones."""
    column = timeline(seen.recorded[0]).column("loss.log_partition")[:, 0]
    return float(np.median(column[np.isfinite(column)][-5:]))


def remedy(report: RunReport, *rules: str) -> str:
    """The code of the first finding of these rules."""
    code = next((finding.remedy.code for finding in report.findings if finding.rule in rules), None)
    assert code is not None
    return code


def with_code(fault: Fault, place: str, code: str, *, faulty: bool = True) -> Outcome:
    return treated(lambda watch: fault.train(watch, faulty), SEED, Treatment(place, code))


def works(cured: Outcome, twin: Outcome) -> bool:
    """Whether the loss came down at least two thirds of the way from where the twin started to where it ended."""
    return math.isfinite(cured.end) and cured.end < twin.end + (twin.start - twin.end) / 3


class InPlaceOf(TorchFunctionMode):
    """Runs code in place of an operation on a tensor that takes part in the loss; it sees ``x`` and a ``divisor``."""

    def __init__(self, operations: tuple[str, ...], code: str) -> None:
        super().__init__()
        self.operations, self.code = operations, code

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in self.operations or not all(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            return func(*args, **(kwargs or {}))
        names = {"torch": torch, "x": args[0], "divisor": args[-1]}
        exec(self.code, names)
        return names["x"]


def test_a_faulty_course_does_not_count_as_cured() -> None:
    twin = Outcome((2.0,) * 5 + (0.2,) * 10)
    assert works(twin, twin)
    assert not works(Outcome((2.0,) * 15), twin)
    assert not works(Outcome((2.0,) * 14 + (math.nan,)), twin)
