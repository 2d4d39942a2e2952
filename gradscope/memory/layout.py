"""How frames are held: one row of numbers each, and what stands out in it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.records import STATISTICS
from gradscope.records import Array

_COLUMNS = {f"{kind}.{name}": None for kind, names in STATISTICS.items() for name in names}
# What matters most comes first: of large models only the extremes of some columns stay.
HIGHS = tuple(
    dict.fromkeys(
        ("weight_gradient.norm", "update.ratio", "activation.rms", "activation_gradient.rms", "attention.logit_max", *_COLUMNS)
    )
)
LOWS = ("activation_gradient.rms", "activation.signal", "activation.rms", "attention.entropy", "update.ratio")


@final
class Layout:
    """How the numbers of frames of one form stand in a row: column after column, over the sites of one schema."""

    def __init__(self, schema: object, names: Sequence[str], sizes: Sequence[int]) -> None:
        """``schema`` says which sites the columns are over; what it is, is the maker's business."""
        ends = np.cumsum([0, *sizes]).tolist()
        self.schema = schema
        self.slices = {name: slice(start, end) for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)}
        self.width: int = ends[-1]
        filled = [name for name, place in self.slices.items() if place.stop > place.start]
        self._starts = np.array([self.slices[name].start for name in filled], dtype=np.intp)
        place = {name: i for i, name in enumerate(filled)}
        self._highs = _places(HIGHS, place)
        self._lows = _places(LOWS, place)

    def extremes(self, rows: Array) -> Array:
        """Row by row the largest number over the sites of each column, then the smallest of some; NaN where there is none."""
        found = np.full((len(rows), len(HIGHS) + len(LOWS)), np.nan, dtype=np.float32)
        if len(self._starts):
            found[:, self._highs[0]] = np.fmax.reduceat(rows, self._starts, axis=1)[:, self._highs[1]]
            found[:, len(HIGHS) + self._lows[0]] = np.fmin.reduceat(rows, self._starts, axis=1)[:, self._lows[1]]
        return found


def _places(names: Sequence[str], there: Mapping[str, int]) -> npt.NDArray[np.intp]:
    """Where each name that is there stands among the names, and where among what is there."""
    found = [(i, there[name]) for i, name in enumerate(names) if name in there]
    pairs: npt.NDArray[np.intp] = np.array(found, dtype=np.intp).reshape(-1, 2).T
    return pairs


@final
class Row(Mapping[str, Array]):
    """The columns of one frame, in one row of numbers."""

    def __init__(self, layout: Layout, numbers: Array) -> None:
        self.layout = layout
        self.numbers = numbers

    def __getitem__(self, name: str) -> Array:
        return self.numbers[self.layout.slices[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.slices)

    def __len__(self) -> int:
        return len(self.layout.slices)
