"""Running a program of the zoo, under gradscope's eyes or alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradscope
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.logdir.runs import RecordedRun
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.records import Finding
from gradscope.records import RunReport
from gradscope.records import Severity
from gradscope.timeline import Timeline
from tests.zoo.program import Outcome
from tests.zoo.program import Watch

CALIBRATION = (0, 1, 2)  # seeds that thresholds may be looked at with
JUDGING = (100, 101, 102)  # seeds that only judge
LOOKS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 130, 200, 300, 450)  # steps after which a user might ask for a report


@dataclass(frozen=True)
class Seen:
    """One program's run as gradscope reports it, model by model."""

    outcome: Outcome
    runs: tuple[RunReport, ...]  # at the end
    looks: tuple[RunReport, ...]  # of all models, after each number of steps in LOOKS

    @property
    def alarms(self) -> tuple[tuple[RunReport, Finding], ...]:
        """Findings at warning or above, at the end or at any look before."""
        reports = (*self.looks, *self.runs)
        return tuple((run, finding) for run in reports for finding in run.findings if finding.severity >= Severity.WARNING)

    @property
    def diagnoses(self) -> tuple[str, ...]:
        """What each model's report names at the end."""
        return tuple(run.diagnosis for run in self.runs if run.diagnosis)

    def named_by(self, rules: tuple[str, ...]) -> int | None:
        """Steps after which one of ``rules`` was the diagnosis for the first time, as far as LOOKS tells."""
        return min((run.steps for run in (*self.looks, *self.runs) if run.diagnosis in rules), default=None)


def alone(train: Callable[[Watch], Outcome], seed: int) -> Outcome:
    """Run a program as it is."""
    return _seeded(train, lambda model, **options: None, seed)


def watched(train: Callable[[Watch], Outcome], seed: int, *, every: int | None) -> Seen:
    """Run a program with each of its models attached, and judge what was recorded, at the end and on the way."""
    with tempfile.TemporaryDirectory() as folder:
        with ExitStack() as scopes:

            def watch(model: nn.Module, **options: Any) -> None:
                scopes.enter_context(gradscope.attach(model, Path(folder), every=every, **options))

            outcome = _seeded(train, watch, seed)
        recorded = [read_run(run) for run in find_runs(Path(folder))]
    runs = tuple(_judged(run, None) for run in recorded)
    looks = tuple(_judged(run, steps) for run in recorded for steps in LOOKS if steps < len(run.pulses))
    return Seen(outcome, runs, looks)


def _judged(run: RecordedRun, steps: int | None) -> RunReport:
    """The report as it was after so many steps."""
    frames = [frame for frame in run.frames if steps is None or frame.step < steps]
    return diagnose(Timeline(run.info, frames, run.pulses[:steps]), chosen(None, None), run=run.name)


def _seeded(train: Callable[[Watch], Outcome], watch: Watch, seed: int) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train(watch)
    finally:
        torch.set_num_threads(threads)
