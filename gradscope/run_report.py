"""What is known of one run once it is judged: the value that every report format writes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gradscope.records import Finding
from gradscope.records import RunInfo
from gradscope.records import Severity


@dataclass(frozen=True)
class ProfileRow:
    """One layer in the depth profile: its scale going forward and its gradient's going back."""

    module: str
    type: str
    activation: float  # rms of the output; NaN where not captured
    gradient: float  # rms of dL/d(output)
    update: float  # update ratio of its largest weight
    marked: bool  # a finding names it


@dataclass(frozen=True)
class RunReport:
    """Everything a report says about one run."""

    run: str  # path of the run relative to the log directory, "." for the directory itself
    info: RunInfo
    steps: int
    sampled_steps: int
    overhead: float  # the share of the bare step that watching cost; NaN where it could not be measured
    verdict: Severity  # INFO reads "healthy"
    diagnosis: str | None
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]  # rules that looked
    skipped: Mapping[str, str]  # rule -> why it could not look
    profile: tuple[ProfileRow, ...]
    profile_step: int | None
    first_loss: float
    last_loss: float
    overhead_later: float = math.nan  # as ``overhead``, from step ``records.CLOSE_STEPS`` on; NaN in a run without such steps
    damage: tuple[str, ...] = ()  # what was wrong with the files it was read from

    @property
    def verdict_label(self) -> str:
        return "healthy" if self.verdict is Severity.INFO else self.verdict.label
