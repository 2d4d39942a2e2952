"""What one run of a stack showed, set beside what the program says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import PULSE_FIELDS
from gradscope.records import Severity
from gradscope.report import Report
from tests.stacks.running import Trace

STEP, LOSS, BACKWARDS = (PULSE_FIELDS.index(name) for name in ("step", "loss", "backwards"))


def report_of(logdir: Path) -> Report:
    return gradscope.read(logdir)


def diagnoses(report: Report) -> set[str]:
    return {run.diagnosis for run in report.runs if run.diagnosis is not None}


def alarms(report: Report) -> list[str]:
    """What is said at warning or above."""
    return [str(finding) for finding in report.findings if finding.severity >= Severity.WARNING]


def recorded_losses(logdir: Path) -> Mapping[str, tuple[float, ...]]:
    """The loss of each step as the record has it, run by run."""
    found = {}
    for directory in find_runs(logdir):
        pulses = read_run(directory).pulses
        found[directory.name] = tuple(float(loss) for loss in pulses[:, LOSS])
    return found


def step_counts(report: Report) -> dict[str, int]:
    return {run.run: run.steps for run in report.runs}


def counted(trace: Trace) -> list[int]:
    """How many steps each run had, by the program's account."""
    return sorted(len(losses) for losses in trace.losses.values())


def nearly_equal(left: tuple[float, ...], right: tuple[float, ...], tolerance: float) -> bool:
    """Whether two series of losses are the same; where one is not finite the other need not be finite either."""
    return len(left) == len(right) and all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-7) or not (math.isfinite(a) or math.isfinite(b))
        for a, b in zip(left, right, strict=True)
    )
