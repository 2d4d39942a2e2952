"""Where frames keep their numbers: many in one piece of memory.

A small array that is kept for the whole run would hold a place of its own in the midst of the memory that the training takes
and gives back at every step; a hundred of them scatter it, and the training gets slower for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import numpy as np

from gradscope.records import Array

PIECE = 1 << 18  # numbers: 1 MiB


@final
class Shelf:
    """Copies arrays into large pieces of memory. A piece lives as long as any array in it."""

    def __init__(self) -> None:
        self._piece: Array = np.empty(0, dtype=np.float32)
        self._used = 0

    def put(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The same float32 arrays, in another place."""
        size = sum(array.size for array in arrays.values())
        if self._used + size > len(self._piece):
            self._piece, self._used = np.empty(max(PIECE, size), dtype=np.float32), 0
        placed: dict[str, Array] = {}
        for name, array in arrays.items():
            end = self._used + array.size
            placed[name] = self._piece[self._used : end].reshape(array.shape)
            placed[name][...] = array
            self._used = end
        return placed
