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
from gradscope.records import Finding
from gradscope.records import RunReport
from gradscope.records import Severity
from tests.zoo.program import Outcome
from tests.zoo.program import Watch

CALIBRATION = (0, 1, 2)  # seeds that thresholds may be looked at with
JUDGING = (100, 101, 102)  # seeds that only judge


@dataclass(frozen=True)
class Seen:
    """One program's run as gradscope reported it, model by model."""

    outcome: Outcome
    runs: tuple[RunReport, ...]
    detected: int | None  # the step by which the first finding at warning or above was known; None where there was none

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings at warning or above."""
        return tuple(finding for run in self.runs for finding in run.findings if finding.severity >= Severity.WARNING)

    @property
    def diagnoses(self) -> tuple[str, ...]:
        return tuple(run.diagnosis for run in self.runs if run.diagnosis)


def alone(train: Callable[[Watch], Outcome], seed: int) -> Outcome:
    """Run a program as it is."""
    return _seeded(train, lambda model, **options: None, seed)


def watched(train: Callable[[Watch], Outcome], seed: int, *, every: int | None) -> Seen:
    """Run a program with each of its models attached, and take the reports at its end."""
    scopes: list[gradscope.Scope] = []
    steps: list[int] = []

    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_scopes:

        def watch(model: nn.Module, **options: Any) -> None:
            scopes.append(gradscope.attach(model, Path(folder), every=every, on_finding=found, **options))
            open_scopes.enter_context(scopes[-1])

        def found(finding: Finding) -> None:
            if finding.severity >= Severity.WARNING:
                steps.append(scopes[0].report().runs[0].steps)

        outcome = _seeded(train, watch, seed)
        runs = tuple(run for scope in scopes for run in scope.report().runs)
    return Seen(outcome, runs, min(steps, default=None))


def _seeded(train: Callable[[Watch], Outcome], watch: Watch, seed: int) -> Outcome:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train(watch)
    finally:
        torch.set_num_threads(threads)
