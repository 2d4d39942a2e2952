"""What a user reads: one report over one run or several, in each format one module."""

from __future__ import annotations

from dataclasses import dataclass

from gradscope.legible import one_line
from gradscope.records import Finding
from gradscope.records import Severity
from gradscope.report import text
from gradscope.report import words
from gradscope.run_report import RunReport

MOST_TOLD = 20  # runs that could not be read, each by itself


@dataclass(frozen=True, repr=False)
class Report:
    """What gradscope has to say about the runs of a log directory; ``str()`` gives the text report."""

    runs: tuple[RunReport, ...]
    unread: tuple[str, ...] = ()  # why other runs beside these could not be read, a sentence each

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All runs' findings, run by run, each run's most important first."""
        return tuple(finding for run in self.runs for finding in run.findings)

    @property
    def severity(self) -> Severity:
        """The worst that any run has shown."""
        return max((run.verdict for run in self.runs), default=Severity.INFO)

    @property
    def verdict(self) -> str:
        """``"healthy"``, ``"warning"`` or ``"critical"``: that of the worst run."""
        return max(self.runs, key=lambda run: run.verdict).verdict_label if self.runs else "healthy"

    def __str__(self) -> str:
        return "\n".join((text.render(self.runs), *(f"Not read: {reason}" for reason in self.not_read)))

    @property
    def not_read(self) -> tuple[str, ...]:
        """``unread`` as it is shown: fit for a terminal, and of very many the first, and how many more there are."""
        rest = len(self.unread) - MOST_TOLD
        told = tuple(one_line(reason) for reason in (self.unread[:MOST_TOLD] if rest > 1 else self.unread))
        return (*told, f"{rest:,} more runs could not be read.") if rest > 1 else told

    def __repr__(self) -> str:
        named = [f"{one_line(run.run)}: {one_line(run.diagnosis or run.verdict_label)}" for run in self.runs]
        return f"<Report {self.verdict} ({words.listed(named, most=MOST_TOLD)})>"
