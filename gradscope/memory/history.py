"""What a run has shown, as far as memory goes: all of a short run, and of a long one what the rules look back on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from gradscope.memory.frames import Frames
from gradscope.memory.frames import HeldFrame
from gradscope.memory.frames import Histograms
from gradscope.memory.layout import Layout
from gradscope.memory.pulses import Pulses
from gradscope.memory.pulses import Rows
from gradscope.records import Array

MOST_FRAMES = 2048
ROOM = 16 * 2**20  # bytes for frames: those of large models are fewer
MOST_PULSES = 16384


@final
class History:
    """Takes a run's frames and pulses in the order in which they are recorded, and holds on to a bounded number of them.

    What stays depends on nothing but that order. Frames: no more than ``most_frames``, and of a large model no more than fit
    into ``room`` bytes, but 128 in any case; fewer than that are all held.
    """

    def __init__(self, *, most_frames: int = MOST_FRAMES, room: int = ROOM, most_pulses: int = MOST_PULSES) -> None:
        self._frames = Frames(most_frames, room)
        self._pulses = Pulses(most_pulses)

    def begin(self) -> None:
        """Another part of the record begins: where it goes back to an earlier step, it replaces all from there on."""
        self._frames.begin()
        self._pulses.begin()

    def frame(self, step: int, layout: Layout, numbers: Array, *, histograms: Histograms | None = None) -> None:
        """Take a sampled step, whose ``numbers`` stand as ``layout`` says."""
        if self._frames.full:
            self._frames.thin(self._pulses.alarming)
        self._frames.add(step, layout, numbers, histograms or {})

    def pulses(self, rows: Rows) -> None:
        """Take the pulses of some steps in order; [steps, PULSE_FIELDS]."""
        while len(rows):
            if not self._pulses.free:
                self._pulses.thin(self._frames.steps)
            count = self._pulses.free
            self._pulses.add(rows[:count])
            rows = rows[count:]

    @property
    def sampled(self) -> int:
        """How many frames came, those that were let go included."""
        return self._frames.seen

    def held_frames(self) -> Iterator[HeldFrame]:
        """The frames that are held, in the order of their steps."""
        return self._frames.held()

    def held_pulses(self) -> Rows:
        """The pulses that are held, in the order of their steps; a copy."""
        return self._pulses.held()

    def stands_out(self, layout: Layout, numbers: Array) -> bool:
        """Whether a frame with these numbers shows what the last ones did not."""
        return self._frames.stands_out(layout, numbers)
