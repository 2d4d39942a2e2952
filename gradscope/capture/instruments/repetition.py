"""Whether the model was given on this sampled step what it was given on the one before."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import Arena
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.modules import ModuleProbe
from gradscope.records import Array
from gradscope.records import Site


@dataclass(frozen=True)
class _Copy:
    """The rows of an arena of inputs as a sampled step left them."""

    rows: torch.Tensor  # int32 [rows, elements], the bits of float32: NaN equals nothing
    filled: tuple[bool, ...]


@final
class Repetition(Instrument):
    """Fills ``input.repeated`` from a copy of the last sampled step's rows."""

    def __init__(self, modules: ModuleProbe) -> None:
        self._modules = modules
        self._last: dict[Arena, _Copy] = {}
        self._was_read = False  # whether the copy is of the last sampled step

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def start_step(self, samples: int) -> None:
        if not self._was_read:
            self._last = {}
        self._was_read = False

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        inputs = [slot.forward for slot in self._modules.inputs]
        now = {arena: _copied(arena) for arena in dict.fromkeys(row.arena for row in inputs if row is not None)}
        both = [arena for arena in now if arena in self._last]
        tensors = tuple(_same(now[arena].rows, self._last[arena].rows) for arena in both)
        filled = [[a and b for a, b in zip(now[arena].filled, self._last[arena].filled, strict=False)] for arena in both]
        places = [[row.index if row is not None and row.arena is arena else -1 for row in inputs] for arena in both]
        self._last, self._was_read = now, True

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            repeated = np.full(len(inputs), np.nan, dtype=np.float32)
            for same, there, rows in zip(arrays, filled, places, strict=True):
                for site, row in enumerate(rows):
                    if 0 <= row < len(there) and there[row]:
                        repeated[site] = same[row]
            return {"input.repeated": repeated}

        return Reading(tensors, columns)


def _copied(arena: Arena) -> _Copy:
    """The rows at the place that was filled last."""
    return _Copy(arena.held(arena.place).view(torch.int32).clone(), tuple(arena.filled_at(arena.place)[0]))


def _same(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Which rows are bit for bit as they were."""
    rows = min(len(now), len(before))
    return torch.eq(now[:rows], before[:rows]).all(1)
