"""The report as Markdown, for TensorBoard's Text dashboard and for pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Sequence

from gradscope.records import Finding
from gradscope.report import words
from gradscope.report.cleaning import cleaned
from gradscope.report.glyphs import UNICODE
from gradscope.report.profile import Gap
from gradscope.report.profile import Scale
from gradscope.report.profile import shown
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport

BAR_CELLS = 8

_PLAIN_NAME = re.compile(r"[\w.#()\[\]/=:, +-]+")
_LINKS = re.compile(r"://|www\.|@", re.IGNORECASE)  # what becomes a link without any markup
_SPECIAL = re.compile(r"([\\`*_{}\[\]#|])")


def render(runs: Sequence[RunReport]) -> str:
    """One section a run."""
    sections = ["\n\n".join(_run(cleaned(run))) for run in runs]
    return "\n\n---\n\n".join(sections) if sections else "No runs."


def prose(text: str) -> str:
    """A sentence with nothing in it that Markdown or HTML would take for markup, but pairs of backticks kept as code.

    Where backticks stand side by side Markdown pairs them in another way, so then none of them is kept.
    """
    parts = text.split("`")
    if len(parts) % 2 == 0 or "``" in text:
        return _escaped(text)
    return "`".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def name(text: str) -> str:
    """A name as code, where its characters allow that also inside a table; else escaped."""
    return f"`{text}`" if _PLAIN_NAME.fullmatch(text) else _escaped(text)


def _escaped(text: str) -> str:
    entities = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    marked = _SPECIAL.sub(r"\\\1", entities).replace("~", "&#126;")
    return _LINKS.sub(lambda match: "".join(f"&#{ord(c)};" if c in ":.@" else c for c in match[0]), marked)


def _run(run: RunReport) -> Iterator[str]:
    first = words.primary(run)
    found = f": {name(first.rule)}" if first else ""
    yield f"## {words.headline(run).capitalize()}{found}"
    names = [] if run.run == "." else [name(run.run)]
    yield " · ".join([*names, *(prose(fact) for fact in words.facts(run, arrow=UNICODE.arrow))])
    if first is not None:
        yield from _primary(first)
    if words.others(run):
        yield from _others(run)
    if first is not None and run.profile:
        yield from _profile(run)
    yield from _footer(run)


def _primary(finding: Finding) -> Iterator[str]:
    yield f"**{prose(finding.message)}** ({words.sure(finding)}, {words.when(finding)})"
    if finding.explains:
        yield f"Explains {', '.join(name(rule) for rule in finding.explains)}."
    candidates = words.candidates(finding)
    if candidates:
        yield prose(candidates)
    yield f"**To do:** {prose(finding.remedy.text)}"
    if finding.remedy.code:
        yield fenced(finding.remedy.code)


def fenced(code: str) -> str:
    """A code block whose fence is longer than any row of backticks inside."""
    longest = max((len(row) for row in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code}\n{fence}"


def _others(run: RunReport) -> Iterator[str]:
    yield "### Also found" if words.primary(run) else "### Worth knowing"
    rows = ["| finding | severity | from step | modules | |", "| --- | --- | ---: | --- | --- |"]
    for finding in words.others(run):
        modules = words.listed([name(module) for module in finding.modules])
        told = "explained above" if words.explained(run, finding) else _cell(finding.message)
        rows.append(f"| {name(finding.rule)} | {finding.severity.label} | {finding.first_step} | {modules} | {told} |")
    yield "\n".join(rows)


def _cell(text: str) -> str:
    return _escaped(text) if "|" in text else prose(text)


def _profile(run: RunReport) -> Iterator[str]:
    at = f" at step {run.profile_step}" if run.profile_step is not None else ""
    yield f"### Depth profile{at}"
    yield "Rms of each layer's output and of its gradient, bars on a logarithmic scale, and the update ratio."
    forward, back = Scale.over(row.activation for row in run.profile), Scale.over(row.gradient for row in run.profile)
    lines = ["| layer | type | output | | gradient | | update |", "| --- | --- | ---: | --- | ---: | --- | ---: |"]
    yield "\n".join((*lines, *(_row(row, forward, back) for row in shown(run.profile))))


def _row(row: ProfileRow | Gap, forward: Scale, back: Scale) -> str:
    if isinstance(row, Gap):
        return f"| … {words.counted(row.layers, 'more layer')} | | | | | | |"
    layer = f"**{name(row.module)}**" if row.marked else name(row.module)
    output = f"{words.number(row.activation)} | {forward.bar(row.activation, width=BAR_CELLS, glyphs=UNICODE)}"
    gradient = f"{words.number(row.gradient)} | {back.bar(row.gradient, width=BAR_CELLS, glyphs=UNICODE)}"
    return f"| {layer} | {name(row.type)} | {output} | {gradient} | {words.number(row.update)} |"


def _footer(run: RunReport) -> Iterator[str]:
    if run.damage:
        yield "\n".join(f"- Damage: {prose(sentence)}" for sentence in run.damage)
    yield f"{words.looked_at(run)} {words.cost(run)}"
    groups = words.not_checked(run)
    if groups:
        yield "Not checked:"
        yield "\n".join(f"- {', '.join(name(rule) for rule in rules)}: {prose(reason)}" for reason, rules in groups)
    probed = words.probed(run)
    notes = (*((probed,) if probed else ()), *run.info.notes)
    if notes:
        yield "\n".join(f"- {prose(note)}" for note in notes)
