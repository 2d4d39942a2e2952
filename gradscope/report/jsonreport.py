"""The report as JSON, for programs: docs/report.schema.json describes it. (A module named json would hide Python's.)"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradscope.records import Finding
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
        "evidence": {key: _value(value) for key, value in finding.evidence.items()},
        "message": finding.message,
        "remedy": {"text": finding.remedy.text, "code": finding.remedy.code},
    }


def _value(value: Any) -> Any:
    """What JSON can hold: NaN becomes null, an infinity the string ``inf`` or ``-inf``, anything unknown its ``str``."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else (None if math.isnan(value) else str(value))
    if isinstance(value, Sequence | set | frozenset):
        return [_value(item) for item in value]
    if isinstance(value, Mapping):
        return [[str(key), _value(item)] for key, item in value.items()]
    return str(value)
