"""A live run's numbers: kept for the rules, and written to the disk as they come."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from functools import partial
from itertools import chain
from itertools import count
from pathlib import Path
from time import monotonic
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.curves import Curves
from gradscope.failures import warn
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import SUBRUN
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import RunInfo

FLUSH_SECONDS = 2.0  # what ``kill -9`` may cost at most, in pulses
_MOST_WAITING = 512


def run_directory(logdir: Path, name: str, *, explicit: bool, taken: Collection[Path]) -> Path:
    """Where a scope writes: ``<logdir>/gradscope``, or a directory of its own below it where models share a logdir.

    ``taken`` are the directories that other open scopes write to.
    """
    base = logdir.absolute() / SUBRUN
    candidates = [base / name] if explicit else [base, base / name]
    numbered = (base / f"{name}-{number}" for number in count(2))
    return next(path for path in chain(candidates, numbered) if path not in taken)


@final
class Archive:
    """Everything one scope has captured, in memory and on disk. A disk that takes no more costs a warning, not the run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._recorder: Recorder | None = Recorder(directory)
        self._numbers = array("d")  # the pulses, row after row
        self._written = 0  # rows on the disk
        self._flushed = monotonic()
        self._curves = Curves()
        self.frames: list[Frame] = []

    @property
    def logdir(self) -> Path:
        return self._directory.parent if self._directory.name == SUBRUN else self._directory.parent.parent

    @property
    def run(self) -> str:
        """What the run is called when the log directory is read."""
        return "." if self._directory.name == SUBRUN else self._directory.name

    @property
    def pulses(self) -> npt.NDArray[np.float64]:
        """All pulses, [steps, PULSE_FIELDS]; a copy."""
        return np.array(self._numbers, dtype=np.float64).reshape(-1, len(PULSE_FIELDS))

    def info(self, info: RunInfo) -> None:
        self._curves.learn(info)
        self._try(lambda recorder: recorder.info(info))

    def observe(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of the user's own, for TensorBoard beside ours."""
        points = {f"gradscope/observed/{name}": value for name, value in scalars.items()}
        self._try(lambda recorder: recorder.scalars(step, points))

    def frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._try(lambda recorder: recorder.frame(frame, self._curves.of_frame(frame)))

    def pulse(self, row: tuple[float, ...]) -> None:
        self._numbers.extend(row)
        waiting = len(self._numbers) // len(PULSE_FIELDS) - self._written
        if waiting >= _MOST_WAITING or monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def text(self, markdown: str, step: int) -> None:
        self._try(lambda recorder: recorder.text(markdown, step))

    def flush(self) -> None:
        """Write the pulses that are still only in memory, and the points of their curves."""
        rows = np.array(self._numbers[self._written * len(PULSE_FIELDS) :]).reshape(-1, len(PULSE_FIELDS))
        self._written += len(rows)
        self._flushed = monotonic()
        self._try(lambda recorder: recorder.pulses(rows))
        for step, points in self._curves.of_pulses(rows):
            self._try(partial(_write_points, step=step, points=points))

    def close(self) -> None:
        self.flush()
        self._try(lambda recorder: recorder.close())
        self._recorder = None

    def _try(self, write: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            write(self._recorder)
        except OSError as error:
            self._recorder = None
            why = error.strerror or str(error)
            warn(
                "logdir-unwritable",
                f"Expected to write to {self._directory}, found: {why}. Training and watching go on, but nothing more is "
                "recorded; give attach() a logdir on a disk with room that this user may write to.",
            )


def _write_points(recorder: Recorder, step: int, points: Mapping[str, float]) -> None:
    recorder.scalars(step, points)
