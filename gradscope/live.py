"""A live run's numbers: kept for the rules, and written to the disk as they come."""

from __future__ import annotations

import os
import re
from array import array
from collections import deque
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from itertools import count
from pathlib import Path
from socket import gethostname
from time import monotonic
from time import strftime
from typing import cast
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.curves import Curves
from gradscope.failures import warn
from gradscope.logdir.address import Address
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import SUBRUN
from gradscope.logdir.shipment import CLOSING_SECONDS
from gradscope.logdir.shipment import Shipment
from gradscope.memory.history import History
from gradscope.memory.layout import Layout
from gradscope.memory.pulses import fewer_pulses
from gradscope.ration import Ration
from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Schema

FLUSH_SECONDS = 2.0  # what ``kill -9`` may cost at most, in pulses
_MOST_WAITING = 512
_MOST_UNWRITTEN = 8192  # where pulses are rationed

# What a process may write, see docs/record.md: bytes at once, and bytes for each day.
FRAMES_AT_ONCE, FRAMES_A_DAY = 256 * 2.0**20, 1024 * 2.0**20
PULSES_AT_ONCE, PULSES_A_DAY = 64 * 2.0**20, 256 * 2.0**20
RESERVE = 64 * 2.0**20  # beyond it, for frames that stand out
STRETCH = 6  # frames from one that stands out that are written in any case
_BEFORE = 2  # frames that were left out, and are written after all when the next one stands out
_MOST_LAYOUTS = 64  # remembered: a model whose sites change all the time has many
_UNUSABLE = re.compile(r"[^\w.-]")
_TAG = 64  # bytes that a column takes beside its numbers, about


def default_logdir(parent: Path) -> Path:
    """TensorBoard's habit, ``runs/<time>_<host>`` below ``parent``; numbered where another run began in the same second."""
    first = parent / "runs" / f"{strftime('%b%d_%H-%M-%S')}_{gethostname()}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(path for path in chain([first], numbered) if not path.exists())


def run_directory(logdir: Path, name: str, *, explicit: bool, taken: Collection[Path]) -> Path:
    """Where a scope writes: ``<logdir>/gradscope``, or a directory of its own below it where models share a logdir.

    ``taken`` are the directories that other open scopes write to. A ``name`` that is a path, as a class's may be that was made
    at run time, does not lead out of it.
    """
    base = logdir.absolute() / SUBRUN
    name = name if usable_name(name) else _UNUSABLE.sub("_", name) + "_"
    candidates = [base / name] if explicit else [base, base / name]
    numbered = (base / f"{name}-{number}" for number in count(2))
    return next(path for path in chain(candidates, numbered) if path not in taken)


def usable_name(name: str) -> bool:
    """Whether a directory can be called so: text of one line without a path."""
    return name.isprintable() and name not in ("", ".", "..") and "/" not in name and os.sep not in name


@final
class Archive:
    """What one scope has captured, on disk and, as far as memory goes, in memory: the same that the record gives when read.

    A disk that takes no more costs a warning, not the run.
    """

    def __init__(self, directory: Path, *, opened: bool = True) -> None:
        """One that is not ``opened`` writes nothing, and makes no directory, before it is."""
        self._directory = directory
        self._recorder: Recorder | None = Recorder(directory) if opened else None
        self._shipment: Shipment | None = None
        self._history = History()
        self._layouts: dict[tuple[int, tuple[str, ...]], tuple[Schema, Layout]] = {}
        self._numbers = array("d")  # the pulses that are not on the disk, row after row
        self._flushed = monotonic()
        self._curves = Curves()
        self._frame_ration = Ration(start=FRAMES_AT_ONCE, a_day=FRAMES_A_DAY)
        self._pulse_ration = Ration(start=PULSES_AT_ONCE, a_day=PULSES_A_DAY)
        self._left_out: deque[Frame] = deque(maxlen=_BEFORE)
        self._stretch = 0  # frames that are still to be written in any case

    def open(self, directory: Path) -> None:
        """Write from now on, there."""
        self._directory = directory
        self._recorder = Recorder(directory)

    @property
    def logdir(self) -> Path:
        return self._directory.parent if self._directory.name == SUBRUN else self._directory.parent.parent

    @property
    def run(self) -> str:
        """What the run is called when the log directory is read."""
        return "." if self._directory.name == SUBRUN else self._directory.name

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames in memory, in the order of their steps, without histograms. Good until the next one comes."""
        held = self._history.held_frames()
        return tuple(Frame(frame.step, cast("Schema", frame.columns.layout.schema), frame.columns) for frame in held)

    @property
    def sampled(self) -> int:
        """How many frames were recorded."""
        return self._history.sampled

    @property
    def pulses(self) -> npt.NDArray[np.float64]:
        """The pulses in memory and those that are not on the disk yet, [steps, PULSE_FIELDS]; a copy."""
        return np.concatenate([self._history.held_pulses(), self._waiting()])

    def ship_to(self, remote: Address) -> None:
        """Ship what is recorded to a store from now on; ``remote`` is the log directory there."""
        below = self._directory.relative_to(self.logdir).as_posix()
        self._shipment = Shipment(self._directory, remote / below, logdir=self.logdir, remote=remote)

    def shipped(self, within: float) -> None:
        """Ship what is left, and wait for it for so many seconds at most; 0: do not wait."""
        if self._shipment is not None:
            self._shipment.finish(within)

    def info(self, info: RunInfo) -> None:
        self._curves.learn(info)
        self._try(lambda recorder: recorder.info(info), self._frame_ration)

    def observe(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of the user's own, for TensorBoard beside ours."""
        points = {f"gradscope/observed/{name}": value for name, value in scalars.items()}
        self._try(lambda recorder: recorder.scalars(step, points))

    def frame(self, frame: Frame, *, alarming: bool = False) -> None:
        """Take a sampled step, unless the disk's ration is used up; one that is ``alarming`` or stands out is always taken."""
        layout = self._layout_of(frame)
        numbers = np.concatenate(list(frame.columns.values()))
        room = self._frame_ration.room
        if room < numbers.nbytes + _TAG * len(frame.columns):
            self._stretch = STRETCH if alarming or self._history.stands_out(layout, numbers) else self._stretch - 1
            if self._stretch <= 0 or room < -RESERVE:
                self._left_out.append(frame)
                return
            while self._left_out:
                before = self._left_out.popleft()
                self._keep(before, self._layout_of(before), np.concatenate(list(before.columns.values())))
        self._left_out.clear()
        # Histograms are most of a record, and no rule looks at them: they go first.
        self._keep(frame if room > self._frame_ration.start / 2 else replace(frame, histograms={}), layout, numbers)

    def _keep(self, frame: Frame, layout: Layout, numbers: Array) -> None:
        self._history.frame(frame.step, layout, numbers)
        self._try(lambda recorder: recorder.frame(frame, self._curves.of_frame(frame)), self._frame_ration)

    def _layout_of(self, frame: Frame) -> Layout:
        # By identity, as frames share their schema; it is held with the layout, so that no other takes its id.
        key = (id(frame.schema), tuple(frame.columns))
        if key not in self._layouts:
            if len(self._layouts) >= _MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = (frame.schema, Layout(frame.schema, key[1], [len(held) for held in frame.columns.values()]))
        return self._layouts[key][1]

    def pulse(self, row: tuple[float, ...]) -> None:
        self._numbers.extend(row)
        waiting = len(self._numbers) // len(PULSE_FIELDS)
        enough = waiting >= _MOST_WAITING and (self._numbers.itemsize * len(self._numbers) < self._pulse_ration.room)
        if enough or waiting >= _MOST_UNWRITTEN or monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def text(self, markdown: str, step: int) -> None:
        self._try(lambda recorder: recorder.text(markdown, step), self._frame_ration)

    def flush(self) -> None:
        """Write the pulses that are still only in memory, and the points of their curves."""
        rows = self._waiting()
        del self._numbers[:]
        self._flushed = monotonic()
        most = int(max(self._pulse_ration.room, 0)) // (rows.itemsize * len(PULSE_FIELDS))
        kept = fewer_pulses(rows, most) if len(rows) > most else rows
        self._history.pulses(kept)
        self._try(lambda recorder: recorder.pulses(kept), self._pulse_ration)
        for step, points in self._curves.of_pulses(rows):
            self._try(partial(_write_points, step=step, points=points), self._frame_ration)
        if self._shipment is not None:
            self._shipment.look()

    def close(self, *, within: float = CLOSING_SECONDS) -> None:
        """Write what is left. Waits for a store that it is shipped to, ``within`` so many seconds; 0: not at all."""
        self.flush()
        self._try(lambda recorder: recorder.close())
        self._recorder = None
        self.shipped(within)

    def _waiting(self) -> npt.NDArray[np.float64]:
        return np.array(self._numbers, dtype=np.float64).reshape(-1, len(PULSE_FIELDS))

    def _try(self, write: Callable[[Recorder], None], ration: Ration | None = None) -> None:
        if self._recorder is None:
            return
        try:
            before = self._recorder.written
            write(self._recorder)
            if ration is not None:
                ration.spend(self._recorder.written - before)
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
