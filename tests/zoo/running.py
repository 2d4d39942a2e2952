"""Running a program of the zoo, under gradscope's eyes or alone, and judging what was recorded, all of it or a part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gradscope
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.logdir.runs import RecordedRun
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import Finding
from gradscope.records import Severity
from gradscope.run_report import RunReport
from gradscope.timeline import Timeline
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.treatment import Treatment

CALIBRATION = (0, 1, 2)  # seeds that thresholds may be looked at with
TESTING = 100  # the seed of the usual test run
JUDGING = (900,)  # seeds that only judge
LOOKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 40, 60, 90, 130, 200, 300)  # steps after which a user might ask for a report


@dataclass(frozen=True)
class Seen:
    """One program's run as gradscope reports it, model by model."""

    outcome: Outcome
    recorded: tuple[RecordedRun, ...]
    runs: tuple[RunReport, ...]  # at the end
    looks: tuple[RunReport, ...]  # of all models, on the way

    @property
    def alarms(self) -> tuple[tuple[RunReport, Finding], ...]:
        """Findings at warning or above, at the end or at any look before."""
        reports = (*self.looks, *self.runs)
        return tuple((run, finding) for run in reports for finding in run.findings if finding.severity >= Severity.WARNING)

    @property
    def diagnoses(self) -> tuple[str, ...]:
        """What each model's report names at the end."""
        return tuple(run.diagnosis for run in self.runs if run.diagnosis)

    def named_after(self, fault: Fault) -> int | None:
        """Steps from the fault's beginning to the first look that names it."""
        steps = [run.steps for run in (*self.looks, *self.runs) if names(fault, run)]
        return max(min(steps) - fault.begins, 1) if steps else None


def names(fault: Fault, report: RunReport) -> bool:
    """Whether a report has it right: one of the fault's names on top, or its finding, where that is an aside, and no other."""
    if report.diagnosis is None:
        return fault.aside and finds(fault, report)
    return report.diagnosis in fault.rules


def finds(fault: Fault, report: RunReport) -> bool:
    """Whether a report has the truth in any place, or on top another name that is right."""
    return report.diagnosis in fault.rules or any(finding.rule == fault.truth for finding in report.findings)


def alone(train: Callable[[Watch], Outcome], seed: int) -> Outcome:
    """Run a program as it is."""
    return _seeded(train, lambda model, **options: None, seed)


def treated(train: Callable[[Watch], Outcome], seed: int, treatment: Treatment) -> Outcome:
    """Run a program with a remedy's code in its loop."""
    return _seeded(train, lambda model, **options: treatment, seed)


def watched(
    train: Callable[[Watch], Outcome],
    seed: int,
    *,
    every: int | None,
    looks: Iterable[int] = (),
    treatment: Treatment | None = None,
) -> Seen:
    """Run a program with each of its models attached, and judge what was recorded, at the end and after ``looks`` steps.

    A ``treatment`` stands in its loop from the start.
    """
    with tempfile.TemporaryDirectory() as folder:
        with ExitStack() as scopes:

            def watch(model: nn.Module, **options: Any) -> Treatment | None:
                scopes.enter_context(gradscope.attach(model, Path(folder), every=every, **options))
                return treatment

            outcome = _seeded(train, watch, seed)
        recorded = tuple(read_run(run) for run in find_runs(Path(folder)))
    stops = sorted(set(looks))
    return Seen(
        outcome=outcome,
        recorded=recorded,
        runs=tuple(judged(run) for run in recorded),
        looks=tuple(judged(run, until=steps) for run in recorded for steps in stops if steps < len(run.pulses)),
    )


def watched_fault(fault: Fault, seed: int, *, every: int | None, faulty: bool = True, looks: bool = False) -> Seen:
    """Run a fault, or its twin, under gradscope's eyes."""
    stops = (*LOOKS, *(fault.begins + step for step in LOOKS)) if looks else ()
    return watched(lambda watch: fault.train(watch, faulty), seed, every=every, looks=stops)


def timeline(run: RecordedRun, *, since: int = 0, until: int | None = None) -> Timeline:
    """What was recorded of the steps from ``since`` to before ``until``, and what the run is made of."""

    def kept(step: float) -> bool:
        return step >= since and (until is None or step < until)

    origin = run.info.origin if run.info.origin and kept(run.info.origin.step) else None
    info = replace(run.info, origin=origin, probes=tuple(probe for probe in run.info.probes if kept(probe.step)))
    pulses = [pulse for pulse in run.pulses if kept(pulse[0])]
    return Timeline(info, [frame for frame in run.frames if kept(frame.step)], np.array(pulses) if pulses else None)


def judged(run: RecordedRun, *, since: int = 0, until: int | None = None) -> RunReport:
    """The report on these steps of a run."""
    return diagnose(timeline(run, since=since, until=until), chosen(None, None), run=run.name)


def _seeded(train: Callable[[Watch], Outcome], watch: Watch, seed: int) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train(watch)
    finally:
        torch.set_num_threads(threads)
