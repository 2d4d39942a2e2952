"""Which elements of a tensor stand for it: a block of 32 units by a few samples, worked out once per shape and layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gradscope.capture.transfer import to_device

UNITS = 32
SAMPLES = 32
ELEMENTS = UNITS * SAMPLES
VECTOR_SAMPLES = 8  # of UNITS of a parameter that is a vector: most have fewer elements than a matrix' sample
MOST_BATCH = 8  # elements of the batch at one feature and position, whose variance is the signal
MOST_SAMPLES = 2**14  # of a unit each, in all outputs or parameters: 2 MiB, above which each is sampled more sparsely
_RUNS = 4  # of neighbours, which share a line of the cache
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Block:
    """The sampled elements of one shape and layout, in the order [batch][position][unit]."""

    index: torch.Tensor  # int64 [units x samples], offsets in storage order from the tensor's first element
    flat: tuple[int]  # shape of the flat view that the offsets lie in
    batch: int  # how many batch elements share a position: 1, 2, 4 or 8; positions are samples / batch


@dataclass(frozen=True)
class Grid:
    """A view of UNITS x samples of a matrix, for ``as_strided``; [runs of columns][columns][rows]."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Axes:
    """What the dimensions of a tensor mean; None where it has no such dimension."""

    unit: int | None
    batch: int | None


def block(shape: tuple[int, ...], strides: tuple[int, ...], axes: Axes, samples: int, device: torch.device) -> Block:
    """The block of UNITS units by ``samples`` of a tensor of that layout. Copies the offsets to ``device`` once."""
    units = _count(shape, axes.unit)
    batch = _count(shape, axes.batch)
    together = next(size for size in (MOST_BATCH, 4, 2, 1) if size <= batch)
    groups = samples // together
    rest = [d for d in range(len(shape)) if d not in (axes.unit, axes.batch)]
    places = math.prod(shape[d] for d in rest)

    unit_offset = spread(units, UNITS) * (strides[axes.unit] if axes.unit is not None else 0)
    # Each group of samples stands at one position and takes the next few elements of the batch.
    in_batch = spread(batch, samples).reshape(groups, together).T
    batch_offset = in_batch * (strides[axes.batch] if axes.batch is not None else 0)
    position_offset = _offsets(spread(places, groups), [shape[d] for d in rest], [strides[d] for d in rest])
    offsets = (batch_offset + position_offset)[:, :, None] + unit_offset[None, None, :]
    index = to_device(torch.from_numpy(offsets.reshape(-1).astype(np.int64)), device)
    return Block(index, (_extent(shape, strides),), together)


def samples_for(tensors: int) -> int:
    """How many samples of each unit stand for an output or a matrix: fewer where these are many, lest they fill the caches."""
    affordable = (samples for samples in (SAMPLES, SAMPLES // 2) if samples * tensors <= MOST_SAMPLES)
    return next(affordable, SAMPLES // 4)


def grid_shape(samples: int) -> tuple[int, int, int]:
    """Of a row that holds a grid."""
    return (_RUNS, samples // _RUNS, UNITS)


def parameter_grid(shape: tuple[int, ...], strides: tuple[int, ...], samples: int) -> Grid | None:
    """Like ``parameter_block``, as a view that takes no offsets; None for one that is small, or not laid out row by row.

    A copy of a view reads a matrix in one operation, and several matrices in one call.
    """
    rows, columns = shape[0] if shape else 0, math.prod(shape[1:])
    row_by_row = all(stride == math.prod(shape[d + 1 :]) for d, stride in enumerate(strides[1:], start=1))
    if len(shape) < 2 or rows < UNITS or columns < samples or not row_by_row:
        return None
    between_runs = (columns - samples // _RUNS) // (_RUNS - 1)
    return Grid(grid_shape(samples), (between_runs, 1, (rows - 1) // (UNITS - 1) * strides[0]))


def parameter_block(shape: tuple[int, ...], strides: tuple[int, ...], samples: int, device: torch.device) -> Block:
    """The block of a parameter: rows of a matrix are its units, so that equal rows show; vectors are spread over whole."""
    if 0 in shape:
        return Block(to_device(torch.zeros(0, dtype=torch.int64, device="cpu"), device), (0,), 1)
    if len(shape) >= 2:
        columns = _offsets(runs(math.prod(shape[1:]), samples), shape[1:], strides[1:])
        offsets = columns[:, None] + spread(shape[0], UNITS)[None, :] * strides[0]
    else:
        offsets = spread(shape[0] if shape else 1, VECTOR_SAMPLES * UNITS) * (strides[0] if strides else 1)
    return Block(to_device(torch.from_numpy(offsets.reshape(-1)), device), (_extent(shape, strides),), 1)


def spread(size: int, count: int) -> npt.NDArray[np.int64]:
    """``count`` indices below ``size``, all different where there are enough, far from any regular pattern in the data.

    Multiples of the golden ratio fill an interval evenly and share no period with it (Weyl's sequence); the step is made
    coprime to ``size`` so that none comes twice.
    """
    if size <= count:
        return np.arange(count, dtype=np.int64) % size
    step = round(size * _GOLDEN)
    while math.gcd(step, size) != 1:
        step += 1
    return (np.arange(count, dtype=np.int64) * step) % size


def runs(size: int, count: int) -> npt.NDArray[np.int64]:
    """Like ``spread``, but in a few runs of neighbours, which share a line of the cache."""
    if size < count:
        return spread(size, count)
    run = count // _RUNS
    starts = spread(size // run, _RUNS) * run
    return (starts[:, None] + np.arange(run, dtype=np.int64)).reshape(-1)


def _offsets(index: npt.NDArray[np.int64], shape: Sequence[int], strides: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where the elements of these indices, counted row by row, lie in storage."""
    where = np.unravel_index(index, tuple(shape) or (1,))
    start = np.zeros(len(index), dtype=np.int64)
    return sum((w * stride for w, stride in zip(where, strides, strict=False)), start=start)


def _count(shape: tuple[int, ...], axis: int | None) -> int:
    return shape[axis] if axis is not None else 1


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
