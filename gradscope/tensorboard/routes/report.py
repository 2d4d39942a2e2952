"""Verdict, findings and remedies."""

from __future__ import annotations

from typing import Any

from gradscope.legible import one_line
from gradscope.records import Finding
from gradscope.report import words
from gradscope.report.cleaning import cleaned
from gradscope.run_report import RunReport
from gradscope.tensorboard.judging import Judgement
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import as_json
from gradscope.tensorboard.view import View


def answer(view: View, judgement: Judgement | None) -> Reply:
    found = _written(view) if judgement is None else _judged(view, judgement)
    return Reply(as_json(found), "application/json")


def _judged(view: View, judgement: Judgement) -> dict[str, Any]:
    raw, run = judgement.report, cleaned(judgement.report)
    first = words.primary(run)
    looked = bool(run.checked or run.findings)
    return {
        **_head(view, judgement.etag, run.info.model, run.info.device),
        "verdict": run.verdict_label if looked else "unknown",
        "diagnosis": run.diagnosis,
        "headline": words.headline(run),
        "source": "diagnosis",
        "steps": run.steps,
        "sampled_steps": run.sampled_steps,
        "overhead": run.overhead,
        "first_loss": run.first_loss,
        "last_loss": _last_loss(run),
        "findings": [
            _finding(run, finding, before, primary=finding is first)
            for before, finding in zip(raw.findings, run.findings, strict=True)
        ],
        "skipped": dict(run.skipped),
        "checked": list(run.checked),
        "notes": [*filter(None, [words.probed(run)]), *run.info.notes],
        "damage": list(run.damage),
        "profile_step": run.profile_step,
    }


def _written(view: View) -> dict[str, Any]:
    return {
        **_head(view, view.etag, view.info.model, view.info.device),
        "verdict": "unknown",
        "diagnosis": None,
        "headline": "NOT CHECKED",
        "source": "written",
        "steps": 0,
        "sampled_steps": 0,
        "overhead": None,
        "first_loss": None,
        "last_loss": None,
        "findings": [],
        "skipped": {},
        "checked": [],
        "notes": [],
        "damage": [*map(one_line, view.damage), "Of this run there is nothing but the report that the training wrote."],
        "profile_step": None,
    }


def _head(view: View, etag: str, model: str, device: str) -> dict[str, Any]:
    return {
        "etag": etag,
        "run": view.run,
        "name": one_line(view.name),
        "model": one_line(model) if view.described else None,
        "device": one_line(device),
    }


def _last_loss(run: RunReport) -> float | None:
    """NaN stands for a last loss that is not finite, where there were losses at all."""
    broken = run.last_loss != run.last_loss and run.first_loss == run.first_loss
    return float("inf") if broken else run.last_loss


def _finding(run: RunReport, finding: Finding, before: Finding, *, primary: bool) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "title": finding.rule,
        "kind": finding.kind,
        "severity": finding.severity.label,
        "confidence": finding.confidence,
        "modules": list(before.modules),  # paths as they are in the schema
        "first_step": finding.first_step,
        "last_step": finding.last_step,
        "when": words.when(finding),
        "sure": words.sure(finding),
        "explains": list(finding.explains),
        "explained": words.explained(run, finding),
        "primary": primary,
        "evidence": dict(finding.evidence),
        "message": finding.message,
        "remedy": {"text": finding.remedy.text, "code": finding.remedy.code},
        "candidates": words.candidates(finding),
    }
