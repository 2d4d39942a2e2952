"""The table of docs/integrations.md: every stack by what was seen to hold there."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from tests.stacks import proving
from tests.stacks.running import Trace
from tests.stacks.running import bare_and_watched
from tests.stacks.running import run
from tests.stacks.stack import RUN
from tests.stacks.stack import Stack

BEGIN, END = "<!-- from here on scripts/stacks writes -->", "<!-- up to here -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
HEAD = ("way to train", "one line suffices", "bit-identical", "right step count", "right loss", "faults named", "cost")


@dataclass(frozen=True)
class Row:
    """What one stack showed, a cell each."""

    section: str
    title: str
    one_line: str
    identical: str
    steps: str
    loss: str
    faults: str
    cost: str

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.title, self.one_line, self.identical, self.steps, self.loss, self.faults, self.cost)


def row(stack: Stack, *, pairs: int, seconds: float) -> Row:
    """Run a stack in every way that the table tells of; ``seconds`` is what one bare run for its cost takes, about."""
    with tempfile.TemporaryDirectory() as room:
        bare, watched = bare_and_watched(stack, Path(room), every=1)
        report = proving.report_of(Path(room))
        recorded = proving.recorded_losses(Path(room))
    return Row(
        section=stack.section,
        title=stack.title,
        one_line=_one_line(watched[0], proving.alarms(report)),
        identical=_identical(stack, bare, watched),
        steps=_steps(sorted(proving.step_counts(report).values()), proving.counted(watched[0])),
        loss=_loss(watched[0], recorded, stack.tolerance),
        faults=", ".join(_fault(stack, fault) for fault in stack.faults),
        cost=_cost(stack, bare[0], pairs, seconds),
    )


def _one_line(trace: Trace, alarms: Sequence[str]) -> str:
    if alarms:
        return f"NO: {alarms}"
    more = sorted(set(trace.asked) - {"attach", "callback"})
    warned = "".join(f"; warns `{slug}`" for slug in sorted(set(trace.slugs)))
    line = "a callback" if "callback" in trace.asked else "yes"
    return (line if not more else f"and {' and '.join(f'`{name}`' for name in more)}") + warned


def _identical(stack: Stack, bare: Sequence[Trace], watched: Sequence[Trace]) -> str:
    same = all(a.losses == b.losses and a.state == b.state for a, b in zip(bare, watched, strict=True))
    if stack.differs:
        return f"no: {stack.differs}"
    return "yes" if same else "NO"


def _steps(found: list[int], counted: list[int]) -> str:
    return " and ".join(map(str, counted)) if found == counted else f"NO: {found} for {counted}"


def _loss(trace: Trace, recorded: dict[str, tuple[float, ...]], tolerance: float) -> str:
    pairs = [(losses, recorded[own] if own != RUN else next(iter(recorded.values()))) for own, losses in trace.losses.items()]
    if not all(proving.nearly_equal(seen, losses, tolerance) for losses, seen in pairs):
        return "NO"
    off = max(
        (abs(a - b) / max(abs(a), 1e-7) for x, y in pairs for a, b in zip(x, y, strict=True) if math.isfinite(a)), default=0
    )
    return "exact" if off == 0 else f"to {off:.0e}"


def _fault(stack: Stack, fault: str) -> str:
    with tempfile.TemporaryDirectory() as room:
        run(stack, Path(room), fault=fault, every=1)
        found = proving.diagnoses(proving.report_of(Path(room)))
    wanted = stack.faults[fault]
    return wanted if wanted in found else f"NO: {wanted}, found {sorted(found)}"


def _cost(stack: Stack, bare: Trace, pairs: int, seconds: float) -> str:
    """The median step of a run's second half on the default budget over a bare run's; the median of the pairs, in turns."""
    steps = max(stack.steps, round(seconds / _median_step(bare)))
    ratios = []
    for _ in range(pairs):
        alone = run(stack, None, steps=steps)
        with tempfile.TemporaryDirectory() as room:
            seen = run(stack, Path(room), steps=steps)
        ratios.append(_median_step(seen[0]) / _median_step(alone[0]))
    return f"{median(ratios):.2f}"


def _median_step(trace: Trace) -> float:
    taken = [after - before for before, after in pairwise(trace.ends)]
    return median(taken[len(taken) // 2 :])


def table(rows: Iterable[Row]) -> str:
    """In Markdown, a table for each section, in the order in which these first come."""
    found = list(rows)
    parts = []
    for section in dict.fromkeys(row.section for row in found):
        lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in found if row.section == section)]
        parts.append(f"### {section}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts)


def write(rows: Iterable[Row]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")


def titles() -> list[str]:
    """What the page has a row for."""
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in written.splitlines() if line.startswith("| ")]
    return [line.split(" | ")[0].removeprefix("| ") for line in lines if not line.startswith(("| ---", f"| {HEAD[0]}"))]
