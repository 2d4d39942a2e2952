"""The pulses of a run, as they were written: some steps at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt
from tensorboard.data import provider as data

from gradscope.logdir.replay import arranged
from gradscope.logdir.replay import pulse_fields
from gradscope.records import PULSE_FIELDS
from gradscope.tensorboard.blocks import MOST_STEPS
from gradscope.tensorboard.blocks import surviving

Rows = npt.NDArray[np.float64]  # [steps, PULSE_FIELDS]

_STEP, _FOREIGN = PULSE_FIELDS.index("step"), PULSE_FIELDS.index("foreign")


@final
@dataclass(frozen=True)
class PulseBlock:
    """One record's pulses that nothing later has replaced."""

    wall: float  # when it was written
    rows: Rows


def pulse_blocks(datums: Sequence[data.TensorDatum], content: bytes) -> tuple[PulseBlock, ...]:
    """The records that are pulses; ``content``, of the tag's metadata, names the columns."""
    fields = pulse_fields(content)
    own = [datum for datum in datums if _are_pulses(datum.numpy, fields)]
    tables = [_sound(arranged(datum.numpy, fields)) for datum in own]
    steps = np.concatenate([np.zeros(0), *(rows[:, _STEP] for rows in tables)]).astype(np.int64)
    stands = surviving(steps, tied=True)  # another optimizer's step has the model's own number
    ends = np.cumsum([0, *map(len, tables)])
    return tuple(
        PulseBlock(datum.wall_time, rows[stands[start:end]])
        for datum, rows, start, end in zip(own, tables, ends[:-1], ends[1:], strict=True)
    )


def own_rows(blocks: Sequence[PulseBlock]) -> Rows:
    """The pulses of the model's own steps, in the order of their steps, the last of each."""
    rows = np.concatenate([np.zeros((0, len(PULSE_FIELDS))), *(block.rows for block in blocks)])
    rows = rows[~(rows[:, _FOREIGN] > 0)]
    _, last = np.unique(rows[::-1, _STEP], return_index=True)
    own: Rows = rows[len(rows) - 1 - last]
    return own


def _sound(rows: Rows) -> Rows:
    return rows[(rows[:, _STEP] >= 0) & (rows[:, _STEP] < MOST_STEPS)]


def _are_pulses(rows: npt.NDArray[Any], fields: tuple[str, ...]) -> bool:
    return rows.dtype == np.dtype("<f8") and rows.ndim == 2 and rows.shape[1] == len(fields)
