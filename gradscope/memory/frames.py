"""The frames that are held: in large pieces of memory, and thinned where there is no room for more."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.memory.layout import HIGHS
from gradscope.memory.layout import LOWS
from gradscope.memory.layout import Layout
from gradscope.memory.layout import Row
from gradscope.memory.thinning import LATELY
from gradscope.memory.thinning import LEFT
from gradscope.memory.thinning import Marks
from gradscope.memory.thinning import highest
from gradscope.memory.thinning import lowest
from gradscope.memory.thinning import outgrowing
from gradscope.memory.thinning import thinned
from gradscope.records import Array

LEAST_FRAMES = 128  # that are held, however large the model
_BLOCK = 1 << 18  # numbers: 1 MiB, so that frames take no places of their own amid the training's memory

Histograms = Mapping[str, Array]


@dataclass(frozen=True)
class HeldFrame:
    step: int
    columns: Row
    histograms: Histograms


@dataclass
class _Entry:
    step: int
    layout: Layout
    row: int  # in its layout's table
    part: int  # of the record that it came with
    seen: int  # frames up to it, itself included
    histograms: Histograms


@final
class Frames:
    """Frames in the order in which they came, of one part of the record after the other."""

    def __init__(self, most: int, room: int) -> None:
        self._most, self._room = most, room
        self._entries: list[_Entry] = []
        self._tables: dict[Layout, _Table] = {}
        self._limit = most
        self._part = 0
        self._lowest: int | None = None  # step in this part
        self._in_order = True

    def begin(self) -> None:
        self._part += 1
        self._lowest = None

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._limit

    @property
    def seen(self) -> int:
        return self._entries[-1].seen if self._entries else 0

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        return np.array([entry.step for entry in self._entries], dtype=np.int64)

    def add(self, step: int, layout: Layout, numbers: Array, histograms: Histograms) -> None:
        if self._lowest is None or step < self._lowest:
            self._lowest = step
            if self._entries and self._entries[-1].step >= step:
                kept = [i for i, entry in enumerate(self._entries) if entry.part == self._part or entry.step < step]
                if len(kept) < len(self._entries):
                    self._keep(np.array(kept, dtype=np.intp))
        if layout not in self._tables:
            # Where every frame has a layout of its own, a piece for each would take gigabytes of address space.
            self._tables[layout] = _Table(layout, _BLOCK >> min(len(self._tables) // 8, 8))
            self._limit = min(self._limit, max(self._room // (4 * max(layout.width, 1)), min(LEAST_FRAMES, self._most)))
        self._in_order &= not self._entries or self._entries[-1].step < step
        row = self._tables[layout].append(numbers)
        self._entries.append(_Entry(step, layout, row, self._part, self.seen + 1, histograms))

    def stands_out(self, layout: Layout, numbers: Array) -> bool:
        recent = [entry.layout.extremes(self._row(entry)[None]) for entry in self._entries[-LATELY:]]
        table = np.concatenate([*recent, layout.extremes(numbers[None])])[:, : len(HIGHS)]
        return bool((outgrowing(table)[-1] > 0).any())

    def thin(self, alarming: npt.NDArray[np.int64]) -> None:
        """Let go of frames until there is room for more."""
        self._put_in_order()
        table = self._all_extremes()
        highs, lows = table[:, : len(HIGHS)], table[:, len(HIGHS) :]
        extremes = np.concatenate([highest(highs)[:5], lowest(lows), highest(highs)[5:]])
        captured = np.count_nonzero(~np.isnan(highs), axis=1)
        marks = Marks(highs, extremes, worth=captured, wanted=alarming, fixed=extremes[:0])
        self._keep(np.flatnonzero(thinned(self.steps, marks, places=int(LEFT * self._limit))))

    def held(self) -> Iterator[HeldFrame]:
        self._put_in_order()
        for entry in self._entries:
            yield HeldFrame(entry.step, Row(entry.layout, self._row(entry)), entry.histograms)

    def _row(self, entry: _Entry) -> Array:
        return self._tables[entry.layout].row(entry.row)

    def _all_extremes(self) -> Array:
        """The extremes of every entry, in their order."""
        table = np.empty((len(self._entries), len(HIGHS) + len(LOWS)), dtype=np.float32)
        for layout, own in self._by_layout().items():
            table[own] = self._tables[layout].extremes()[[self._entries[i].row for i in own]]
        return table

    def _by_layout(self) -> dict[Layout, list[int]]:
        """Where the entries of each layout stand. A record may have as many layouts as frames."""
        places: dict[Layout, list[int]] = {}
        for i, entry in enumerate(self._entries):
            places.setdefault(entry.layout, []).append(i)
        return places

    def _put_in_order(self) -> None:
        """Sort the entries by their steps; the later record of a step counts."""
        if not self._in_order:
            last = {entry.step: i for i, entry in enumerate(self._entries)}
            counts = [entry.seen for entry in self._entries]
            self._keep(np.array([last[step] for step in sorted(last)], dtype=np.intp))
            for entry, seen in zip(self._entries, sorted(counts), strict=False):
                entry.seen = seen
            self._in_order = True

    def _keep(self, places: npt.NDArray[np.intp]) -> None:
        self._entries = [self._entries[i] for i in places]
        by_layout = self._by_layout()
        for layout in list(self._tables):
            own = sorted((self._entries[i] for i in by_layout.get(layout, ())), key=lambda entry: entry.row)
            table = self._tables.pop(layout)
            if own:
                self._tables[layout] = table.keep([entry.row for entry in own])
                for row, entry in enumerate(own):
                    entry.row = row


@final
class _Table:
    """The rows of one layout, in large pieces of memory."""

    def __init__(self, layout: Layout, piece: int) -> None:
        """``piece``: how many numbers are given memory at once."""
        self._layout = layout
        self._piece = piece
        self._each = max(piece // max(layout.width, 1), 1)
        self._blocks: list[Array] = []
        self._count = 0
        self._extremes: list[Array] = []  # of the first rows, as far as they were worked out

    def append(self, numbers: Array) -> int:
        """Copy a row in; where it stands."""
        block, place = divmod(self._count, self._each)
        if block == len(self._blocks):
            self._blocks.append(np.empty((self._each, self._layout.width), dtype=np.float32))
        self._blocks[block][place] = numbers
        self._count += 1
        return self._count - 1

    def row(self, index: int) -> Array:
        block, place = divmod(index, self._each)
        row: Array = self._blocks[block][place]
        return row

    def extremes(self) -> Array:
        """The extremes of every row: worked out for many rows at once, and once for each."""
        done = sum(map(len, self._extremes))
        for block in range(done // self._each, len(self._blocks)):
            start = max(done - block * self._each, 0)
            rows = self._blocks[block][start : self._count - block * self._each]
            self._extremes.append(self._layout.extremes(rows))
        self._extremes = [np.concatenate(self._extremes)]
        return self._extremes[0]

    def keep(self, rising: Sequence[int]) -> _Table:
        """A table of these rows. This one is used up, piece by piece, so that never two stand whole side by side."""
        kept = _Table(self._layout, self._piece)
        known = self._extremes[0] if self._extremes else np.zeros((0, 0), dtype=np.float32)
        done = 0
        for index in rising:
            block, place = divmod(index, self._each)
            while done < block:
                self._blocks[done] = self._blocks[done][:0].copy()
                done += 1
            kept.append(self._blocks[block][place])
        if known.size:
            kept._extremes = [known[[index for index in rising if index < len(known)]]]
        return kept
