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
Form = tuple[str, tuple[str, ...], tuple[str, ...]]


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
        # A frame's event is filled with the next one's numbers of its form: making a new one takes four times as long.
        self._events: dict[Form, Event] = {}
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
        """One sampled step, as one record; ``scalars`` are points of TensorBoard's scalar charts, tag by tag."""
        if self._writer.silent:
            return
        with self._lock:
            self._begin_file()
            self._announce(frame.schema)
            event = self._filled(frame, scalars)
            event.step = frame.step
            event.wall_time = time.time()
            tags = (f"{STATS}{self._digest}/{name}" for name in frame.columns)
            if frame.histograms or not self._described.issuperset((*tags, *scalars)):
                event = self._completed(event, frame, frozenset(scalars))
            self._send(event)

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Points of TensorBoard's scalar charts that belong to no frame."""
        if self._writer.silent:
            return
        with self._lock:
            self._begin_file()
            if self._described.issuperset(scalars):
                event = self._filled_points(scalars)
                event.step = step
                event.wall_time = time.time()
                self._send(event)
            else:
                self._write(step, [(scalar_value(tag, number), scalar_metadata) for tag, number in scalars.items()])

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

    def _filled_points(self, scalars: Mapping[str, float]) -> Event:
        """The event that is kept for points of these charts, with their numbers."""
        form = ("", (), tuple(scalars))
        if form not in self._events:
            self._keep(form, Event(summary=Summary(value=[scalar_value(tag, number) for tag, number in scalars.items()])))
        event = self._events[form]
        for value, number in zip(event.summary.value, scalars.values(), strict=True):
            value.tensor.float_val[0] = number
        return event

    def _keep(self, form: Form, event: Event) -> None:
        if len(self._events) >= FORMS_KEPT:
            self._events.clear()
        self._events[form] = event

    def _filled(self, frame: Frame, scalars: Mapping[str, float]) -> Event:
        """The event that is kept for frames of this form, with the frame's numbers."""
        form = (self._digest, tuple(frame.columns), tuple(scalars))
        event = self._events.get(form)
        if event is None:
            event = self._made(frame, scalars)
            self._keep(form, event)
            return event
        values = iter(event.summary.value)
        for column in frame.columns.values():
            next(values).tensor.tensor_content = _float32(column).tobytes()
        for number in scalars.values():
            next(values).tensor.float_val[0] = number
        return event

    def _made(self, frame: Frame, scalars: Mapping[str, float]) -> Event:
        columns = [array_value(f"{STATS}{self._digest}/{name}", _float32(column)) for name, column in frame.columns.items()]
        points = [scalar_value(tag, number) for tag, number in scalars.items()]
        event = Event()
        event.summary.value.extend([*columns, *points])
        return event

    def _completed(self, filled: Event, frame: Frame, scalars: frozenset[str]) -> Event:
        """A frame's event with its histograms, and with the metadata of what the file holds for the first time."""
        event = Event()
        event.CopyFrom(filled)
        described: list[Described] = [
            (value, scalar_metadata if value.tag in scalars else own_metadata) for value in event.summary.value
        ]
        bins = partial(own_metadata, bins=HISTOGRAM_BINS, lowest=HISTOGRAM_LOWEST)
        for kind, shares in frame.histograms.items():
            described.append((array_value(f"{HISTOGRAMS}{self._digest}/{kind}", shares.astype(np.float16)), bins))
        described += [(value, partial(histogram_metadata, kind)) for kind, value in self._histograms.values(frame)]
        del event.summary.value[:]
        event.summary.value.extend(self._describe(described))
        return event

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
        self._send(event)

    def _send(self, event: Event) -> None:
        try:
            self._writer.write(event)
        except BaseException:
            # Nobody knows now which metadata the file holds; writing it again is harmless.
            self._described.clear()
            self._schema = None
            raise


def _float32(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(column, dtype="<f4")
