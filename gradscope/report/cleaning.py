"""Names and sentences of a run come from outside: what could steer a terminal is taken out before they are shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from gradscope.records import Finding
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport

# Control, format (also those that turn the direction of writing), surrogate, and separators of lines and paragraphs.
_UNWANTED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


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


def one_line(text: str) -> str:
    """``text`` on one line, without control characters."""
    return " ".join("".join(c for c in _spaced(text) if unicodedata.category(c) not in _UNWANTED).split())


def several_lines(text: str) -> str:
    """``text`` with its line breaks, without other control characters."""
    kept = (c for c in text.expandtabs(4) if c == "\n" or unicodedata.category(c) not in _UNWANTED)
    return "".join(kept).strip("\n")


def _spaced(text: str) -> str:
    return text.translate({9: " ", 10: " ", 13: " "})


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
