"""Writes what a run showed: gradscope's packed records, and beside them TensorBoard's own formats for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from threading import RLock
from typing import final

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

from gradscope.logdir.codec import dumps
from gradscope.logdir.events import ROTATE_AT
from gradscope.logdir.events import EventWriter
from gradscope.logdir.forms import FrameForm
from gradscope.logdir.forms import learn
from gradscope.logdir.summaries import HistogramSummaries
from gradscope.logdir.summaries import histogram_metadata
from gradscope.logdir.summaries import layout_metadata
from gradscope.logdir.summaries import layout_value
from gradscope.logdir.summaries import scalar_metadata
from gradscope.logdir.summaries import scalar_value
from gradscope.logdir.summaries import text_metadata
from gradscope.logdir.tags import HISTOGRAMS
from gradscope.logdir.tags import META
from gradscope.logdir.tags import PULSE
from gradscope.logdir.tags import REPORT
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.tags import digest8
from gradscope.logdir.values import array_value
from gradscope.logdir.values import own_metadata
from gradscope.logdir.values import text_value
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import HISTOGRAM_LOWEST
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Schema

FORMS_KEPT = 8
SCHEMA_EVERY = 256  # frames after which the schema is written again, lest one damaged record take the rest with it

Described = tuple[Summary.Value, Callable[[], SummaryMetadata]]


@final
class Recorder:
    """Writes one run to ``directory``. What a call was given is on disk when it returns; OSError where the disk takes no more.

    Silent in a forked child. Safe to call from several threads.
    """

    def __init__(self, directory: Path, *, rotate_at: int = ROTATE_AT) -> None:
        self._writer = EventWriter(directory, rotate_at=rotate_at)
        self._lock = RLock()
        self._info: str | None = None
        self._described: set[str] = set()  # tags whose metadata the current file holds
        self._schema: Schema | None = None
        self._schema_text = ""
        self._digest = ""
        self._frames_to_schema = 0
        # By schema and columns, once the current file describes them: making an event takes ten times as long.
        self._forms: dict[tuple[str, tuple[str, ...]], FrameForm] = {}
        self._histograms = HistogramSummaries()

    @property
    def written(self) -> int:
        """Bytes written so far."""
        return self._writer.written

    def info(self, info: RunInfo) -> None:
        """What does not change from step to step. Written only where it differs from what was given last."""
        if self._writer.silent:
            return
        text = dumps(info)
        with self._lock:
            if text == self._info:
                return
            self._info = text
            if not self._begin_file():
                self._write(0, [(text_value(META, text), own_metadata)])

    def frame(self, frame: Frame, scalars: Mapping[str, float]) -> None:
        """One sampled step, as one record; ``scalars`` are points of TensorBoard's scalar charts, tag by tag, in another."""
        if self._writer.silent:
            return
        with self._lock:
            self._begin_file()
            self._announce(frame.schema)
            form = self._forms.get((self._digest, tuple(frame.columns)))
            if form is not None and not frame.histograms:
                numbers = np.concatenate(list(frame.columns.values()), dtype="<f4").tobytes()
                self._send(form.written(frame.step, time.time(), numbers))
            else:
                self._frame_in_full(frame)
            if scalars:
                self._points(frame.step, scalars)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Points of TensorBoard's scalar charts that belong to no frame."""
        if self._writer.silent:
            return
        with self._lock:
            self._points(step, scalars)

    def pulses(self, rows: npt.NDArray[np.float64]) -> None:
        """The pulses of some steps in order; [steps, len(PULSE_FIELDS)]."""
        if self._writer.silent or not len(rows):
            return
        with self._lock:
            self._begin_file()
            value = array_value(PULSE, np.asarray(rows, dtype=np.float64))
            self._write(int(rows[-1, 0]), [(value, partial(own_metadata, fields=PULSE_FIELDS))])

    def text(self, markdown: str, step: int) -> None:
        """The report so far, for TensorBoard's Text dashboard."""
        if self._writer.silent:
            return
        with self._lock:
            self._begin_file()
            self._write(step, [(text_value(REPORT, markdown), text_metadata)])

    def close(self) -> None:
        """Close the file. Nothing waits to be written."""
        if self._writer.silent:
            return
        with self._lock:
            self._writer.close()

    def _begin_file(self) -> bool:
        """Write what every file begins with; whether a new one was begun."""
        if not self._writer.at_start:
            return False
        self._described.clear()
        self._forms.clear()
        self._schema = None
        first: list[Described] = [(layout_value(), layout_metadata)]
        if self._info is not None:
            first.append((text_value(META, self._info), own_metadata))
        self._write(0, first)
        return True

    def _announce(self, schema: Schema) -> None:
        # By identity first: comparing two schemas costs as much as writing a frame.
        if self._schema is not schema and self._schema != schema:
            self._schema_text = dumps(schema)
            self._digest = digest8(self._schema_text.encode())
            self._frames_to_schema = 0
        self._schema = schema
        if self._frames_to_schema == 0:
            self._write(0, [(text_value(SCHEMA + self._digest, self._schema_text), own_metadata)])
            self._frames_to_schema = SCHEMA_EVERY
        self._frames_to_schema -= 1

    def _frame_in_full(self, frame: Frame) -> None:
        """With its histograms, and with the metadata of what the file holds for the first time."""
        values = [array_value(f"{STATS}{self._digest}/{name}", _float32(column)) for name, column in frame.columns.items()]
        bare = Event(step=frame.step, wall_time=time.time())
        bare.summary.value.extend(values)
        described: list[Described] = [(value, own_metadata) for value in values]
        bins = partial(own_metadata, bins=HISTOGRAM_BINS, lowest=HISTOGRAM_LOWEST)
        for kind, shares in frame.histograms.items():
            described.append((array_value(f"{HISTOGRAMS}{self._digest}/{kind}", shares.astype(np.float16)), bins))
        described += [(value, partial(histogram_metadata, kind)) for kind, value in self._histograms.values(frame)]
        self._write(frame.step, described)
        self._keep((self._digest, tuple(frame.columns)), bare)

    def _keep(self, key: tuple[str, tuple[str, ...]], bare: Event) -> None:
        """Remember the form of frames that need no description any more."""
        form = learn(bare.SerializeToString()) if key not in self._forms else None
        if form is not None:
            if len(self._forms) >= FORMS_KEPT:
                self._forms.clear()
            self._forms[key] = form

    def _points(self, step: int, scalars: Mapping[str, float]) -> None:
        self._begin_file()
        self._write(step, [(scalar_value(tag, number), scalar_metadata) for tag, number in scalars.items()])

    def _describe(self, described: Iterable[Described]) -> list[Summary.Value]:
        values = []
        for value, metadata in described:
            if value.tag not in self._described:
                value.metadata.CopyFrom(metadata())
                self._described.add(value.tag)
            values.append(value)
        return values

    def _write(self, step: int, described: Iterable[Described]) -> None:
        event = Event(wall_time=time.time(), step=step)
        event.summary.value.extend(self._describe(described))
        self._send(event.SerializeToString())

    def _send(self, event: bytes) -> None:
        try:
            self._writer.write(event)
        except BaseException:
            # Nobody knows now which metadata the file holds; writing it again is harmless.
            self._described.clear()
            self._forms.clear()
            self._schema = None
            raise


def _float32(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(column, dtype="<f4")
