"""The arena: one preallocated buffer per device that hooks gather samples into, and the batched reduction of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import final

import numpy as np
import torch

from gradscope.capture.sampling import MOST_BATCH
from gradscope.capture.sampling import UNITS
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import grid_shape
from gradscope.capture.turns import Turn
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import HISTOGRAM_LOWEST

_ONE = (1,)
_index_select = torch.index_select  # bound once: between two operations every name that is looked up misses the caches
_float32 = torch.float32
_SMALLEST = 1e-38  # keeps a row of zeros from dividing by zero
_TAME = (1e-15, 1e17)  # magnitudes whose squares neither vanish nor overflow in a row's sum
_CHUNK_ON_CPU = 2**17  # elements: 512 KiB, which stay in the second cache while they are reduced
_CHUNK_ELSEWHERE = 2**20
_FIRST = range(1)

TENSOR_STATISTICS = ("mean", "rms", "absmax", "signal", "nonfinite", "zero", "saturated", "active_low", "active_high")


@final
class Cell:
    """What one row holds at one place."""

    __slots__ = ("batch", "stamp", "view")

    def __init__(self, view: torch.Tensor) -> None:
        self.view = view  # float32 [elements]
        self.stamp = -1  # of the turn at which it was filled
        self.batch = MOST_BATCH


@final
class Row:
    """One row of an arena. Its cells are the same for as long as it lives."""

    __slots__ = ("_turn", "arena", "cells", "index")

    def __init__(self, arena: Arena, index: int, cells: list[Cell], turn: Turn) -> None:
        self.arena = arena
        self.index = index
        self.cells = cells  # by place
        self._turn = turn

    @property
    def is_filled(self) -> bool:
        """At the place that is being filled."""
        return self.cells[self._turn.place].stamp == self._turn.stamp

    def gather(self, tensor: torch.Tensor, block: Block) -> None:
        """Copy the block's elements of a detached strided tensor here: two or three operations, no layout copied."""
        self.select(tensor.as_strided(block.flat, _ONE), block)

    def select(self, flat: torch.Tensor, block: Block) -> None:
        """Copy the block's elements of a tensor's flat view here."""
        turn = self._turn
        cell = self.cells[turn.place]
        if flat.dtype is _float32:
            _index_select(flat, 0, block.index, out=cell.view)
        else:
            cell.view.copy_(_index_select(flat, 0, block.index))
        cell.batch = block.batch
        cell.stamp = turn.stamp


@final
class Arena:
    """Rows of UNITS x ``samples`` float32 on one device, each with a cell for every place, so that steps can be held back.

    A cell stays as it is until it is filled again.
    """

    def __init__(self, device: torch.device, turn: Turn, *, samples: int, room: int) -> None:
        self.device = device
        self._elements = samples * UNITS
        self._turn = turn
        # Has room for more rows than are used: memory that nobody wrote to costs nothing, and growing leaves holes behind.
        self._memory = _zeros((len(turn.began), room, self._elements), device)
        self._rows: list[Row] = []
        self._grids: dict[tuple[int, tuple[int, ...]], tuple[list[Cell], list[torch.Tensor]]] = {}  # by place and rows
        self._at_once = rows_at_once(device, self._elements)
        self._work = torch.empty(0, self._elements, dtype=torch.float32, device="cpu")  # on the CPU alone

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def place(self) -> range:
        """The place that is being filled."""
        return range(self._turn.place, self._turn.place + 1)

    def add_row(self) -> Row:
        """Make room for one more row."""
        if self.rows == self._memory.shape[1]:
            self._resize(2 * self.rows)
        cells = [Cell(of_place[self.rows]) for of_place in self._memory]
        self._rows.append(Row(self, self.rows, cells, self._turn))
        return self._rows[-1]

    def _resize(self, room: int) -> None:
        old, used = self._memory, self.rows
        self._grids = {}
        self._memory = _zeros((len(old), room, self._elements), self.device)
        self._memory[:, :used] = old[:, :used]
        for row in self._rows:
            for place, cell in enumerate(row.cells):
                cell.view = self._memory[place, row.index]

    def select(self, row: int, flat: torch.Tensor, block: Block) -> None:
        """Copy the block's elements of a tensor's flat view into a row."""
        self._rows[row].select(flat, block)

    def copy(self, rows: tuple[int, ...], views: tuple[torch.Tensor, ...]) -> None:
        """Copy views of the shape of a grid into rows, all in one call."""
        cells, grids = self._grids.get((self._turn.place, rows)) or self._grids_of(rows)
        torch._foreach_copy_(grids, views)
        stamp = self._turn.stamp
        for cell in cells:
            cell.stamp = stamp

    def _grids_of(self, rows: tuple[int, ...]) -> tuple[list[Cell], list[torch.Tensor]]:
        """The cells of these rows at the place that is being filled, and views of them of the shape of a grid."""
        cells = [self._rows[row].cells[self._turn.place] for row in rows]
        for cell in cells:
            cell.batch = 1
        found = self._grids[self._turn.place, rows] = (
            cells,
            [cell.view.view(grid_shape(self._elements // UNITS)) for cell in cells],
        )
        return found

    def move(self, place: int, to: int) -> None:
        """Bring what one place of the rows holds to another."""
        self._memory[to].copy_(self._memory[place])
        for row in self._rows:
            row.cells[to].stamp, row.cells[to].batch = row.cells[place].stamp, row.cells[place].batch

    def adopt(self, other: Arena, place: int) -> None:
        """Take what another arena of as many rows holds at one place for what this one does; it may hold nothing there."""
        self._memory[place, : self.rows].copy_(other._memory[place, : self.rows])
        began, stamp = other._turn.began[place], self._turn.began[place]
        for row, taken in zip(self._rows, other._rows, strict=True):
            there = taken.cells[place].stamp == began
            row.cells[place].stamp = stamp if there else -1

    def filled_at(self, places: range) -> list[list[bool]]:
        """Which rows are filled; [places][rows]."""
        began = self._turn.began
        return [[row.cells[place].stamp == began[place] for row in self._rows] for place in places]

    def held(self, places: range) -> torch.Tensor:
        """The rows at some places that follow one another, place after place: [places x rows, elements]."""
        if self.rows < self._memory.shape[1] and len(self._memory) > 1:
            self._resize(self.rows)  # else the rows of several places would have to be copied together each time
        return self._memory[places.start : places.stop, : self.rows].reshape(-1, self._elements)

    def statistics(self, names: Sequence[str], limits: torch.Tensor | None, places: range = _FIRST) -> torch.Tensor:
        """These of TENSOR_STATISTICS of every row, float32 [names, places x rows], on the device. Waits for nothing.

        ``limits`` is [2, rows]: centre and half-width outside of which a value counts as saturated; None where none can.
        """
        held = self.held(places)
        batch = [row.cells[place].batch for place in places for row in self._rows]
        repeated = None if limits is None else limits.repeat(1, len(places))
        parts = []
        for start in range(0, len(held), self._at_once):
            stop = start + self._at_once
            part = None if repeated is None else repeated[:, start:stop]
            parts.append(self._reduce(names, held[start:stop], tuple(batch[start:stop]), part))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _reduce(
        self, names: Sequence[str], x: torch.Tensor, batch: tuple[int, ...], limits: torch.Tensor | None
    ) -> torch.Tensor:
        if x.device.type != "cpu":  # to ask whether the numbers are tame would wait for the device
            return _picked(names, _statistics(x, batch, limits))
        if len(self._work) < len(x):
            self._work = torch.empty(len(x), self._elements, dtype=torch.float32, device="cpu")
        work = self._work[: len(x)]
        tops = x.view(-1, x.shape[1] // UNITS, UNITS).amax(1)
        absmax = torch.maximum(tops.amax(1), x.amin(1).neg_())
        if not _is_tame(absmax):
            return _picked(names, _statistics(x, batch, limits))
        found = _tame_statistics(names, x, tops, absmax, batch, limits, work)
        return torch.stack([found[name] for name in names])

    def histograms(self, place: int = 0) -> torch.Tensor:
        """Share of each row's elements at one place by magnitude, float32 [rows, HISTOGRAM_BINS], on the device."""
        held = self.held(range(place, place + 1))
        return torch.cat([_histogram(held[start : start + self._at_once]) for start in range(0, len(held), self._at_once)])


def rows_at_once(device: torch.device, elements: int) -> int:
    """How many rows of so many elements are reduced together."""
    return (_CHUNK_ON_CPU if device.type == "cpu" else _CHUNK_ELSEWHERE) // elements


def _zeros(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Zeros of float32, on the host ones that take no memory before they are written to: torch writes its own."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=torch.float32, device=device)


def flat_view(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """The storage that a tensor's elements lie in, in which the block's offsets count."""
    return tensor.as_strided(block.flat, _ONE)


def _picked(names: Sequence[str], table: torch.Tensor) -> torch.Tensor:
    return torch.stack([table[TENSOR_STATISTICS.index(name)] for name in names])


def _is_tame(absmax: torch.Tensor) -> bool:
    """Whether every row is finite, and either all zeros or far from the ends of float32. Of rows on the host."""
    held = absmax.numpy()
    return bool((((held > _TAME[0]) & (held < _TAME[1])) | (held == 0)).all())


def _tame_statistics(
    names: Sequence[str],
    x: torch.Tensor,
    tops: torch.Tensor,
    absmax: torch.Tensor,
    batch: tuple[int, ...],
    limits: torch.Tensor | None,
    work: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Those of TENSOR_STATISTICS that are wanted, of tame rows: half the operations of ``_statistics``, with the same results.

    ``tops`` [rows, UNITS] is the largest value of each unit, ``work`` is like ``x``.
    """
    none = torch.zeros_like(absmax)
    found = {"absmax": absmax, "nonfinite": none, "saturated": none}
    found["rms"] = torch.linalg.vector_norm(x, 2, 1).mul_(x.shape[1] ** -0.5)
    if "mean" in names:
        found["mean"] = x.mean(1)
    if "zero" in names:
        found["zero"] = torch.eq(x, 0, out=work).mean(1)
    if "saturated" in names and limits is not None:
        torch.sub(x, limits[0, :, None], out=work).abs_()
        found["saturated"] = torch.gt(work, limits[1, :, None], out=work).mean(1)
    if "active_low" in names:
        active = torch.gt(tops, 0, out=torch.empty_like(tops))
        bits = (active.view(-1, 2, UNITS // 2) * _powers(x.device)).sum(2)
        found.update(active_low=bits[:, 0], active_high=bits[:, 1])
    if "signal" in names:
        found["signal"] = _signal(x, batch, work)
    return found


def _statistics(x: torch.Tensor, batch: tuple[int, ...], limits: torch.Tensor | None) -> torch.Tensor:
    magnitude = x.abs()
    absmax = torch.nan_to_num(magnitude.amax(1), nan=float("inf"))
    finite = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    # Scaled by the largest magnitude, squares can neither overflow nor vanish.
    scale = finite.abs().amax(1).clamp_min_(_SMALLEST)
    scaled = finite / scale[:, None]
    rms = torch.linalg.vector_norm(scaled, 2, 1) * scale / x.shape[1] ** 0.5
    work = torch.empty_like(x)
    nonfinite = torch.eq(torch.sub(x, x), 0, out=work).mean(1).neg_().add_(1)  # x - x is NaN where x is not finite
    zero = torch.eq(x, 0, out=work).mean(1)
    if limits is None:
        saturated = torch.zeros_like(rms)
    else:
        saturated = torch.gt((x - limits[0, :, None]).abs_(), limits[1, :, None], out=work).mean(1)
    active = torch.gt(x.view(-1, x.shape[1] // UNITS, UNITS).amax(1), 0, out=x.new_empty(len(x), UNITS))
    bits = (active.view(-1, 2, UNITS // 2) * _powers(x.device)).sum(2)
    signal = _signal(scaled, batch, work) * scale
    return torch.stack([finite.mean(1), rms, absmax, signal, nonfinite, zero, saturated, bits[:, 0], bits[:, 1]])


def _powers(device: torch.device) -> torch.Tensor:
    return torch.exp2(torch.arange(UNITS // 2, device=device, dtype=torch.float32))


def _signal(x: torch.Tensor, batch: tuple[int, ...], work: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the batch at a fixed unit and position, rms over both; NaN for a batch of one. [rows]

    sig = sqrt(mean over units and positions of Var over the batch), Var with n - 1. ``work`` is like ``x`` and overwritten.
    """
    runs: list[torch.Tensor] = []  # of rows with one batch: slices, as an index list would have to be copied
    start = 0
    for size, rows in groupby(batch):
        stop = start + sum(1 for _ in rows)
        runs.append(_signal_of(x[start:stop], size, work[start:stop]))
        start = stop
    return runs[0] if len(runs) == 1 else torch.cat(runs)


def _signal_of(x: torch.Tensor, batch: int, work: torch.Tensor) -> torch.Tensor:
    if batch == 1:
        return x.new_full((len(x),), float("nan"))
    groups = x.view(-1, batch, x.shape[1] // batch)
    torch.sub(groups, groups.mean(1, keepdim=True), out=work.view(groups.shape))
    scale: float = (batch / (batch - 1) / x.shape[1]) ** 0.5
    norms: torch.Tensor = torch.linalg.vector_norm(work, 2, 1)
    return norms.mul_(scale)


def _histogram(x: torch.Tensor) -> torch.Tensor:
    # The exponent field of an IEEE 754 float32 is floor(log2 |x|) + 127.
    exponent = (x.view(torch.int32) >> 23) & 255
    bins = (exponent - (127 + HISTOGRAM_LOWEST)).clamp_(0, HISTOGRAM_BINS - 1)
    rows = torch.arange(len(x), device=x.device, dtype=torch.int32)[:, None] * HISTOGRAM_BINS
    places = (bins + rows).view(-1)
    size = len(x) * HISTOGRAM_BINS
    if x.device.type == "cpu":
        counts = torch.bincount(places, minlength=size).float()
    else:  # bincount would wait for the device to learn the largest place
        counts = torch.zeros(size, device=x.device).scatter_add_(0, places.long(), torch.ones(x.numel(), device=x.device))
    return counts.view(len(x), HISTOGRAM_BINS) / x.shape[1]


def row_spread(x: torch.Tensor) -> torch.Tensor:
    """The variance between a matrix's rows over its mean square, of blocks of parameters: 0 where all rows are equal. [rows]

    Or between its columns, where these are more alike: a matrix that a product takes from the right has its units there.
    """
    finite = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
    absmax = finite.abs().amax(1)
    scaled = (finite / absmax.clamp_min(_SMALLEST)[:, None]).view(-1, x.shape[1] // UNITS, UNITS)
    squares = scaled.flatten(1).square().sum(1)
    rows, columns = ((scaled - scaled.mean(place, keepdim=True)).square_().sum((1, 2)) for place in (2, 1))
    return torch.minimum(rows, columns) / squares.clamp_min_(_SMALLEST)
