"""The report for the terminal: styled where there is one, else plain text of at most 100 columns (code is never wrapped)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from gradscope.records import Finding
from gradscope.records import Severity
from gradscope.report import words
from gradscope.report.cleaning import cleaned
from gradscope.report.glyphs import UNICODE
from gradscope.report.glyphs import Glyphs
from gradscope.report.profile import Gap
from gradscope.report.profile import Scale
from gradscope.report.profile import shown
from gradscope.report.rich_parts import Text
from gradscope.report.rich_parts import cell_len
from gradscope.report.rich_parts import set_cell_size
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport

WIDTH = 100
LEAST_WIDTH = 60
NUMBER_CELLS = 7
MOST_OTHERS = 8  # findings listed beside the primary one
MOST_TOLD = 3  # of these, how many that nothing explains are told in full

_HEADLINE = {"HEALTHY": "bold black on green", "WARNING": "bold black on yellow", "CRITICAL": "bold white on red"}
_OVERVIEW = {"HEALTHY": "green", "WARNING": "yellow", "CRITICAL": "bold red"}
_SEVERITY = {Severity.INFO: "cyan", Severity.WARNING: "yellow", Severity.CRITICAL: "bold red"}


class Span(NamedTuple):
    """A piece of a line in one style, as rich names styles."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def render(runs: Sequence[RunReport], *, glyphs: Glyphs = UNICODE) -> str:
    """The plain text report, without escape codes, the same wherever it is printed."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in _report(runs, WIDTH, glyphs))


def styled(runs: Sequence[RunReport], *, width: int) -> Text:
    """The same report for a rich console of this width; print it with ``soft_wrap=True``, so that code stays whole."""
    lines = _report(runs, max(LEAST_WIDTH, min(width, WIDTH)), UNICODE)
    return Text("\n").join(Text.assemble(*line) for line in lines)


def _report(runs: Sequence[RunReport], width: int, glyphs: Glyphs) -> Iterator[Line]:
    shown_runs = [cleaned(run) for run in runs]
    if len(runs) != 1:
        yield from _overview(shown_runs, width, glyphs)
    for run in shown_runs:
        if len(runs) > 1:
            yield from ((), (Span(glyphs.line * width, "dim"),), ())
        yield from _run(run, width, glyphs)


def _overview(runs: Sequence[RunReport], width: int, glyphs: Glyphs) -> Iterator[Line]:
    yield (Span(words.counted(len(runs), "run"), "bold"),)
    names = max((min(cell_len(run.run), width // 2) for run in runs), default=0)
    for run in runs:
        head = words.headline(run)
        name = Span(fitted(run.run, names, glyphs))
        yield (Span("  "), Span(head.ljust(12), _OVERVIEW.get(head, "bold")), name, Span(f"  {run.diagnosis or ''}"))


def _run(run: RunReport, width: int, glyphs: Glyphs) -> Iterator[Line]:
    yield _title(run, width, glyphs)
    first = words.primary(run)
    yield _headline(run, first)
    if first is not None:
        yield from _primary(run, first, width)
    yield from _others(run, width, glyphs)
    if first is not None and run.profile:
        yield from _profile(run, width, glyphs)
    yield ()
    yield from _footer(run, width)


def _title(run: RunReport, width: int, glyphs: Glyphs) -> Line:
    facts = words.facts(run, arrow=glyphs.arrow)
    name, rest = (facts[0], facts[1:]) if run.run == "." else (run.run, facts)
    shown_rest = "".join(f"   {fact}" for fact in rest)
    room = max(12, width - cell_len(shown_rest))
    return (Span(fitted(name, min(room, cell_len(name)), glyphs), "bold"), Span(shown_rest))


def _headline(run: RunReport, first: Finding | None) -> Line:
    head = words.headline(run)
    badge = Span(f" {head} ", _HEADLINE.get(head, "bold reverse"))
    if first is None:
        return (badge, Span("  no rule could look at this run" if head == "NOT CHECKED" else "  no fault found"))
    return (badge, Span(f"  {first.rule}", "bold"), Span(f"   {words.sure(first)}, {words.when(first)}", "dim"))


def _primary(run: RunReport, finding: Finding, width: int) -> Iterator[Line]:
    yield ()
    yield from _paragraph(finding.message, width)
    if finding.explains:
        yield from _paragraph(f"Explains: {', '.join(finding.explains)}.", width, style="dim")
    candidates = words.candidates(finding)
    if candidates:
        yield from _paragraph(candidates, width)
    yield ()
    yield from _paragraph(f"To do: {finding.remedy.text}", width, style="bold")
    if finding.remedy.code:
        yield ()
        yield from ((Span(line, "cyan"),) for line in finding.remedy.code.splitlines())


def _others(run: RunReport, width: int, glyphs: Glyphs) -> Iterator[Line]:
    found = words.others(run)
    if not found:
        return
    yield ()
    yield (Span("Also found" if words.primary(run) else "Worth knowing", "bold"),)
    listed = found[:MOST_OTHERS]
    names = max(len(finding.rule) for finding in listed)
    told = [finding for finding in listed if not words.explained(run, finding)][:MOST_TOLD]
    for finding in listed:
        yield _other(finding, names, width, glyphs)
        if finding in told:
            yield from _paragraph(finding.message, width, indent="    ", style="dim")
    if len(found) > MOST_OTHERS:
        yield (Span(f"  {glyphs.ellipsis} {len(found) - MOST_OTHERS} more", "dim"),)


def _other(finding: Finding, names: int, width: int, glyphs: Glyphs) -> Line:
    step = f"step {finding.first_step}"
    head = f"  {finding.severity.label:<8}  {step:<9}  {finding.rule:<{names}}  "
    return (
        Span(head[:10], _SEVERITY[finding.severity]),
        Span(head[10:]),
        Span(_modules(finding.modules, width - len(head), glyphs), "dim"),
    )


def _modules(modules: Sequence[str], room: int, glyphs: Glyphs) -> str:
    """As many names as there is room for."""
    for most in range(min(4, len(modules)), 0, -1):
        named = words.listed(modules, most=most)
        if cell_len(named) <= room:
            return named
    rest = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    return fitted(modules[0], room - len(rest), glyphs).rstrip() + rest if modules else ""


def _profile(run: RunReport, width: int, glyphs: Glyphs) -> Iterator[Line]:
    rows = shown(run.profile)
    layers = [row for row in rows if isinstance(row, ProfileRow)]
    numbers, bar = NUMBER_CELLS, 12 if width >= 90 else 6
    types = min(12, max(cell_len(row.type) for row in layers)) if width >= 80 else 0
    names = min(width - 2 * (bar + numbers + 4) - types - numbers - 6, max(5, *(cell_len(row.module) for row in layers)))
    legend = "rms of each layer's output and of its gradient" if width >= 90 else "rms"
    at = f" at step {run.profile_step}" if run.profile_step is not None else ""
    yield ()
    yield (Span(f"Depth profile{at}", "bold"), Span(f"   {legend}, log scale", "dim"))
    kinds = f"{'type':<{types}}  " if types else ""
    columns = f"{'output':<{bar + numbers + 1}}  {'gradient':<{bar + numbers + 1}}  {'update':>{numbers}}"
    yield (Span(f"  {'layer':<{names}}  {kinds}{columns}", "dim"),)
    forward, back = Scale.over(row.activation for row in run.profile), Scale.over(row.gradient for row in run.profile)
    for row in rows:
        if isinstance(row, Gap):
            yield (Span(f"  {glyphs.ellipsis} {words.counted(row.layers, 'more layer')}", "dim"),)
            continue
        yield (
            Span(f"{glyphs.mark if row.marked else ' '} ", "bold red"),
            Span(fitted(row.module, names, glyphs) + "  ", "bold" if row.marked else ""),
            Span(set_cell_size(row.type, types) + "  " if types else "", "dim"),
            Span(forward.bar(row.activation, width=bar, glyphs=glyphs).ljust(bar), "blue"),
            Span(f" {words.number(row.activation):>{numbers}}  "),
            Span(back.bar(row.gradient, width=bar, glyphs=glyphs).ljust(bar), "magenta"),
            Span(f" {words.number(row.gradient):>{numbers}}  {words.number(row.update):>{numbers}}"),
        )


def _footer(run: RunReport, width: int) -> Iterator[Line]:
    for sentence in run.damage:
        yield from _paragraph(f"Damage: {sentence}", width, style="yellow")
    yield from _paragraph(f"{words.looked_at(run)} {words.cost(run)}", width)
    groups = words.not_checked(run)
    if groups:
        reasons = "; ".join(f"{', '.join(rules)} ({reason})" for reason, rules in groups)
        yield from _paragraph(f"Not checked: {reasons}.", width, style="dim")
    probed = words.probed(run)
    for note in (*((probed,) if probed else ()), *run.info.notes):
        yield from _paragraph(note, width, style="dim")


def _paragraph(text: str, width: int, *, indent: str = "", style: str = "") -> Iterable[Line]:
    wrapped = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return ((Span(line, style),) for line in wrapped)


def fitted(text: str, width: int, glyphs: Glyphs) -> str:
    """``text`` in exactly ``width`` cells: filled up, or with its middle left out."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    room = max(0, width - len(glyphs.ellipsis))
    tail = room * 2 // 3
    while tail and cell_len(text[-tail:]) > room * 2 // 3:
        tail -= 1
    end = text[-tail:] if tail else ""
    return set_cell_size(set_cell_size(text, room - cell_len(end)) + glyphs.ellipsis + end, width)
