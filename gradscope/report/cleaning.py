"""Names and sentences of a run come from outside: what could steer a terminal is taken out before they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gradscope.legible import one_line
from gradscope.legible import several_lines
from gradscope.records import Finding
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport


def cleaned(run: RunReport) -> RunReport:
    """The same report with every string fit to be shown; a model's own empty path reads ``(model)``."""
    return replace(
        run,
        run=one_line(run.run),
        info=replace(run.info, name=one_line(run.info.name), model=one_line(run.info.model), notes=_lines(run.info.notes)),
        findings=tuple(_finding(finding) for finding in run.findings),
        skipped={one_line(rule): one_line(reason) for rule, reason in run.skipped.items()},
        profile=tuple(_row(row) for row in run.profile),
        damage=_lines(run.damage),
    )


def _lines(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(one_line(sentence) for sentence in sentences)


def _name(path: str) -> str:
    return one_line(path) or "(model)"


def _row(row: ProfileRow) -> ProfileRow:
    return replace(row, module=_name(row.module), type=one_line(row.type))


def _finding(finding: Finding) -> Finding:
    evidence = dict(finding.evidence)
    if "candidates" in evidence:
        evidence["candidates"] = [one_line(str(candidate)) for candidate in evidence["candidates"]]
    code = finding.remedy.code
    return replace(
        finding,
        modules=tuple(_name(module) for module in finding.modules),
        message=one_line(finding.message),
        remedy=replace(finding.remedy, text=one_line(finding.remedy.text), code=several_lines(code) if code else None),
        evidence=evidence,
    )
