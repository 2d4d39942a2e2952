"""What a watch hands on, and to whom."""

from __future__ import annotations

from typing import Protocol

from gradscope.records import Frame
from gradscope.records import RunInfo


class Sink(Protocol):
    """Who takes what the watch sees."""

    def frame(self, frame: Frame) -> None:
        """A sampled step's numbers have arrived."""

    def pulse(self, row: tuple[float, ...]) -> None:
        """A step's cheap scalars have arrived, in the order of PULSE_FIELDS."""

    def info(self, info: RunInfo) -> None:
        """More is known of the run."""

    def step_done(self) -> None:
        """A step has ended; what it showed may still be on its way."""

    def flush(self) -> None:
        """Settle the watch, and put all that is known on the disk."""
