"""The verdict on a run that TensorBoard holds: by the same rules as the report, and no more often than there is time for."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import final

import numpy as np

from gradscope.diagnosis import UnknownRule
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.memory.history import History
from gradscope.memory.layout import Layout
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.rule import Rule
from gradscope.run_report import RunReport
from gradscope.tensorboard.parts import Part
from gradscope.tensorboard.shelf import Shelf
from gradscope.tensorboard.view import View
from gradscope.timeline import Timeline

ROOM = 128 * 2**20  # bytes of numbers that one judgement looks at
REST = 10.0  # times as long as judging a growing run took, until it is judged again
MOST_REST = 60.0  # seconds
MOST_JUDGED = 64  # runs whose verdict is kept


@final
@dataclass(frozen=True)
class Judgement:
    report: RunReport
    etag: str
    due: float  # when it may be made anew, by the clock


@final
class Judge:
    """Judges one run at a time."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._judged: Shelf[Judgement] = Shelf(MOST_JUDGED, lambda _: 1)

    def known(self, key: Hashable) -> Judgement | None:
        """What was said of the run last."""
        return self._judged.held(key)

    def judged(self, key: Hashable, view: View) -> Judgement:
        """What is to be said of the run: of the view, or where it grows faster than there is time for, of an earlier one."""
        last = self._fresh(key, view)
        if last is not None:
            return last
        with self._lock:
            last = self._fresh(key, view)
            if last is not None:
                return last
            began = self._clock()
            report = judge(view)
            spent = self._clock() - began
            made = Judgement(report, view.etag, began + spent + min(REST * spent, MOST_REST))
            return self._judged.get(key, lambda: made, version=view.etag)

    def _fresh(self, key: Hashable, view: View) -> Judgement | None:
        """The last judgement, where it is of this view or it is too early for another one."""
        last = self._judged.held(key)
        return last if last is not None and (last.etag == view.etag or self._clock() < last.due) else None


def judge(view: View) -> RunReport:
    """As ``gradscope report`` does, of what TensorBoard holds."""
    timeline, left_out = _timeline(view)
    rules, unknown = _rules(timeline)
    notes = () if view.complete else (_thinned(len(view.steps)),)
    damage = (*view.damage, *notes, *left_out, *unknown)
    return diagnose(timeline, rules, run=view.name, damage=damage)


def _rules(timeline: Timeline) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    try:
        return chosen(timeline.info.select, timeline.info.ignore), ()
    except UnknownRule as error:
        return chosen(None, None), (f"The run's own choice of rules does not hold here: {error}",)


def _timeline(view: View) -> tuple[Timeline, tuple[str, ...]]:
    """What was recorded, in the order in which it was, put through the same memory as the report's."""
    history = History()
    schemas = {part.digest: part.sites.schema for part in view.parts}
    total = 0
    pulses = list(view.pulses)
    rows = sorted((row for part in view.parts for row in _rows(view, part, ROOM // len(view.parts))), key=lambda row: row.step)
    for row in rows:
        while pulses and pulses[0].wall < row.wall:
            history.pulses(pulses.pop(0).rows)
        history.frame(row.step, row.layout, row.numbers)
        total += 1
    for block in pulses:
        history.pulses(block.rows)
    frames = [Frame(held.step, schemas[str(held.columns.layout.schema)], held.columns) for held in history.held_frames()]
    there = len(view.steps)
    left_out = () if total == there else (f"Judged by {total:,} of the {there:,} sampled steps that TensorBoard holds.",)
    return Timeline(view.info, frames, history.held_pulses(), sampled=max(there, history.sampled)), left_out


@dataclass(frozen=True)
class _Row:
    """One sampled step as it goes into memory."""

    step: int
    wall: float
    layout: Layout
    numbers: Array


def _rows(view: View, part: Part, room: int) -> Iterator[_Row]:
    view.fetch(part)
    names = sorted(part.tags)
    sizes = [len(part.sites.schema.sites(name.partition(".")[0])) for name in names]
    layout = Layout(part.digest, names, sizes)
    steps, walls = view.steps_of(part), view.walls_of(part)
    most = max(room // (4 * max(layout.width, 1)), 1)
    places = np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).astype(np.intp))
    steps, walls = steps[places], walls[places]
    table = np.full((len(steps), layout.width), np.nan, dtype=np.float32)
    for name in names:
        block = view.block(part, name)
        there = np.isin(block.steps, steps)
        table[np.searchsorted(steps, block.steps[there]), layout.slices[name]] = block.table[there]
    for step, wall, numbers in zip(steps.tolist(), walls.tolist(), table, strict=True):
        yield _Row(step, wall, layout, numbers)


def _thinned(held: int) -> str:
    return (
        f"TensorBoard holds {held:,} of this run's sampled steps, chosen at random: the verdict and the pictures go by these. "
        "Start it with --samples_per_plugin gradscope=0 to have all of them, or use `gradscope report`."
    )
