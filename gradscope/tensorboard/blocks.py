"""One tag's records as one table, and which of them a run that went back to an earlier step has replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt
from tensorboard.data import provider as data

Steps = npt.NDArray[np.int64]
Walls = npt.NDArray[np.float64]

MOST_STEPS = 2**53  # beyond it, a browser cannot count


@final
@dataclass(frozen=True)
class Block:
    """The records of one tag that are what the tag says, in the order in which they were written."""

    steps: Steps
    walls: Walls  # when each was written, seconds since the epoch
    table: npt.NDArray[Any]  # [records, …]
    records: int  # all that TensorBoard holds
    fault: str | None = None  # what is wrong with those that are left out

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + self.steps.nbytes + self.walls.nbytes + 256

    def chosen(self, which: npt.NDArray[Any]) -> Block:
        return Block(self.steps[which], self.walls[which], self.table[which], self.records, self.fault)


def block_of(tag: str, datums: Sequence[data.TensorDatum], dtype: str, shape: tuple[int, ...]) -> Block:
    """The block of the records whose tensors have this type and shape and whose step can be one."""
    kept = [
        datum
        for datum in datums
        if datum.numpy.dtype == np.dtype(dtype) and datum.numpy.shape == shape and 0 <= datum.step < MOST_STEPS
    ]
    lost = len(datums) - len(kept)
    table = np.stack([datum.numpy for datum in kept]) if kept else np.zeros((0, *shape), dtype=dtype)
    return Block(
        np.array([datum.step for datum in kept], dtype=np.int64),
        np.array([datum.wall_time for datum in kept], dtype=np.float64),
        table,
        len(datums),
        f"{tag}: {lost:,} of {len(datums):,} records are not what their tag says and were left out." if lost else None,
    )


def broken_block(dtype: str, shape: tuple[int, ...], fault: str) -> Block:
    """The block of a tag whose records cannot be read."""
    return Block(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, *shape), dtype=dtype), 0, fault)


def surviving(steps: Steps, *, tied: bool = False) -> npt.NDArray[np.bool_]:
    """Which records stand when each takes the place of all before it that have its step or a later one.

    TensorBoard's data server goes by the same rule; its Python loader gives every record. Where ``tied``, those of the
    same step stand side by side.
    """
    if not len(steps):
        return np.zeros(0, dtype=bool)
    least_after = np.concatenate([np.minimum.accumulate(steps[::-1])[::-1][1:], [np.iinfo(np.int64).max]])
    stands: npt.NDArray[np.bool_] = (steps <= least_after) if tied else (steps < least_after)
    return stands


@final
@dataclass(frozen=True)
class Anchor:
    """The sampled steps of a run as they stand at the end, with the part of the run that each is of."""

    steps: Steps  # rising
    walls: Walls
    parts: npt.NDArray[np.int64]

    @staticmethod
    def of(blocks: Sequence[Block]) -> Anchor:
        """From one tag of each part: a part is what has one list of sites."""
        steps, walls = (
            np.concatenate([np.zeros(0), *(pick(block) for block in blocks)]) for pick in (_block_steps, _block_walls)
        )
        parts = np.repeat(np.arange(len(blocks)), [len(block.steps) for block in blocks])
        # One part's records are in their order; of several, the clock tells which came first.
        order = np.argsort(walls, kind="stable") if len(blocks) > 1 else np.arange(len(steps))
        order = order[surviving(steps[order].astype(np.int64))]
        return Anchor(steps[order].astype(np.int64), walls[order], parts[order])

    def standing(self, block: Block) -> Block:
        """The block's records that nothing later has replaced."""
        own = block.chosen(surviving(block.steps))
        if not len(self.steps):
            return own
        before = np.searchsorted(self.steps, own.steps, side="right") - 1
        return own.chosen((before < 0) | ~(self.walls[before] > own.walls))


def _block_steps(block: Block) -> npt.NDArray[np.float64]:
    return block.steps.astype(np.float64)  # exact: all are below 2^53


def _block_walls(block: Block) -> npt.NDArray[np.float64]:
    return block.walls
