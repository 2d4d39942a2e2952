"""The report as JSON, for programs: docs/report.schema.json describes it. (A module named json would hide Python's.)"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from gradscope.records import Finding
from gradscope.report.plain import plain
from gradscope.run_report import RunReport

SCHEMA = "gradscope.report/1"


def render(runs: Sequence[RunReport]) -> str:
    """One document; names stand in it as the model has them."""
    document = {"schema": SCHEMA, "runs": [_run(run) for run in runs]}
    return json.dumps(document, indent=2, allow_nan=False)


def _run(run: RunReport) -> dict[str, Any]:
    return {
        "run": run.run,
        "steps": int(run.steps),
        "sampled_steps": int(run.sampled_steps),
        "overhead": float(run.overhead) if math.isfinite(run.overhead) else 0.0,
        "verdict": run.verdict_label,
        "diagnosis": run.diagnosis,
        "findings": [_finding(finding) for finding in run.findings],
        "skipped": dict(run.skipped),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "kind": finding.kind,
        "severity": finding.severity.label,
        "confidence": float(finding.confidence),
        "modules": list(finding.modules),
        "first_step": int(finding.first_step),
        "last_step": int(finding.last_step),
        "explains": list(finding.explains),
        "evidence": {key: plain(value, list) for key, value in finding.evidence.items()},
        "message": finding.message,
        "remedy": {"text": finding.remedy.text, "code": finding.remedy.code},
    }
