"""Gathers what the records of a run's event files say: frames, pulses and facts; of other tools' files, their scalars."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gradscope.logdir.codec import MOST_BYTES
from gradscope.logdir.codec import CodecError
from gradscope.logdir.codec import loads
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.foreign import field_of
from gradscope.logdir.forms import FrameForm
from gradscope.logdir.forms import learn
from gradscope.logdir.tags import HISTOGRAMS
from gradscope.logdir.tags import META
from gradscope.logdir.tags import PLUGIN
from gradscope.logdir.tags import PULSE
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.tags import VERSION
from gradscope.logdir.tags import digest8
from gradscope.logdir.values import array_of
from gradscope.logdir.values import scalar_of
from gradscope.logdir.values import text_of
from gradscope.logdir.wire import has_too_many_parts
from gradscope.memory.history import History
from gradscope.memory.layout import Layout
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from gradscope.records import Array
from gradscope.records import RunInfo
from gradscope.records import Schema

FORMS_KEPT = 8
LAYOUTS_KEPT = 256
OTHER_TAGS_KEPT = 20
LONGEST_TAG = 1000  # characters
LONGEST_FACTS = 2**16  # bytes of a value's metadata
ROOM_FOR_SITES = 2 * MOST_BYTES  # bytes of all lists of sites together
_OWN = (STATS, HISTOGRAMS, SCHEMA)


@dataclass
class _Columns:
    """A frame whose schema is known by its digest only."""

    columns: dict[str, Array] = field(default_factory=dict)
    histograms: dict[str, Array] = field(default_factory=dict)


@dataclass
class FileContent:
    """What one event file holds beside frames and pulses."""

    pulse_fields: tuple[str, ...] = PULSE_FIELDS
    scalars: dict[str, dict[int, float]] = field(default_factory=dict)


@final
class Replay:
    """Takes the records of a run in the order in which they were written. Raises LogdirError at one of a newer version."""

    def __init__(self, *, histograms: bool = False) -> None:
        self._with_histograms = histograms
        self.history = History()
        self.files: dict[str, FileContent] = {}
        self.schemas: dict[str, Schema] = {}
        self.info: RunInfo | None = None
        self.own = False  # whether any record was gradscope's
        self.other_tags: dict[str, None] = {}  # some scalars of other tools that were not recognised
        self.faults: Counter[str] = Counter()  # what was wrong with records whose checksum held
        self._forms: list[FrameForm] = []
        self._layouts: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Layout] = {}
        self._recognised: dict[str, str | None] = {}
        self._room_for_sites = ROOM_FOR_SITES

    @property
    def usable(self) -> bool:
        """Whether anything has come so far that a report can go by."""
        return self.own or any(content.scalars for content in self.files.values())

    def take(self, name: str, payload: bytes) -> None:
        """One record of the file ``name``."""
        content = self.files.get(name)
        if content is None:
            content = self.files[name] = FileContent()
            self.history.begin()
        for form in self._forms:
            known = form.read(payload, histograms=self._with_histograms)
            if known is not None:
                step, row = known
                self.history.frame(step, row.layout, row.numbers)
                return
        event = self._parsed(payload)
        if event is not None:
            self._take_event(content, event, payload)

    def _parsed(self, payload: bytes) -> Event | None:
        try:
            if not has_too_many_parts(payload):
                return Event.FromString(payload)
            self.faults["a record of more parts than any run's"] += 1
        except (DecodeError, ValueError):
            self.faults["a record that is no event"] += 1
        return None

    def _take_event(self, content: FileContent, event: Event, payload: bytes) -> None:
        frames: dict[str, _Columns] = {}
        learnable = event.step >= 0
        for value in event.summary.value:
            if len(value.tag) > LONGEST_TAG:
                if value.tag.startswith(_OWN):
                    self.faults["a name longer than any column's"] += 1
                learnable = False
                continue
            if value.metadata.plugin_data.plugin_name == PLUGIN:
                check_version(value.metadata.plugin_data.content)
                learnable = False
            if value.tag.startswith(STATS) or (value.tag.startswith(HISTOGRAMS) and self._with_histograms):
                learnable &= self._take_column(frames, event.step, value)
            elif value.tag == PULSE:
                self._take_pulses(content, value)
            elif value.tag == META:
                self._take_info(value)
            elif value.tag.startswith(SCHEMA):
                self._take_schema(value)
            elif not value.tag.startswith("gradscope"):
                self._take_scalar(content, event.step, value)
        for digest, frame in frames.items():
            self._take_frame(event.step, digest, frame)
        self.own |= bool(frames)
        if frames and learnable and len(self._forms) < FORMS_KEPT and (form := learn(payload)) is not None:
            self._forms.append(form)

    def _take_frame(self, step: int, digest: str, frame: _Columns) -> None:
        names, sizes = tuple(frame.columns), tuple(map(len, frame.columns.values()))
        layout = self._layouts.get((digest, names, sizes))
        if layout is None:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            layout = self._layouts[digest, names, sizes] = Layout(digest, names, sizes)
        numbers = np.concatenate([np.zeros(0, dtype=np.float32), *frame.columns.values()])
        self.history.frame(step, layout, numbers, histograms=frame.histograms)

    def _take_column(self, frames: dict[str, _Columns], step: int, value: Summary.Value) -> bool:
        """Put one column into its frame; whether it was a sound vector."""
        parts = value.tag.split("/")
        array = array_of(value.tensor)
        kind = parts[-1].partition(".")[0]
        if len(parts) != 4 or array is None or kind not in STATISTICS or step < 0:
            self.faults["a column that is not what its tag says"] += 1
            return False
        frame = frames.setdefault(parts[2], _Columns())
        if value.tag.startswith(STATS) and array.ndim == 1 and array.dtype == np.dtype("<f4"):
            frame.columns[parts[3]] = array
            return True
        if value.tag.startswith(HISTOGRAMS) and array.ndim == 2 and array.shape[1] == HISTOGRAM_BINS:
            frame.histograms[parts[3]] = array.astype(np.float32)
        else:
            self.faults["a column that is not what its tag says"] += 1
        return False

    def _take_pulses(self, content: FileContent, value: Summary.Value) -> None:
        self.own = True
        if value.metadata.plugin_data.plugin_name == PLUGIN:
            content.pulse_fields = pulse_fields(value.metadata.plugin_data.content)
        rows = array_of(value.tensor)
        if rows is None or rows.ndim != 2 or rows.shape[1] != len(content.pulse_fields) or rows.dtype != np.dtype("<f8"):
            self.faults["pulses that are not what their tag says"] += 1
            return
        rows = arranged(rows, content.pulse_fields)
        sound = (rows[:, 0] >= 0) & (rows[:, 0] < 2**53)
        if not sound.all():
            self.faults["a pulse without a step"] += int((~sound).sum())
        self.history.pulses(rows[sound])

    def _take_info(self, value: Summary.Value) -> None:
        self.own = True
        try:
            self.info = loads(RunInfo, text_of(value.tensor) or b"")
        except CodecError:
            self.faults["a description of the run that is no JSON of one"] += 1

    def _take_schema(self, value: Summary.Value) -> None:
        self.own = True
        digest = value.tag[len(SCHEMA) :]
        if digest in self.schemas:
            return
        text = text_of(value.tensor) or b""
        if len(text) > self._room_for_sites:
            self.faults["a list of sites that there is no room for"] += 1
            return
        try:
            schema = loads(Schema, text)
        except CodecError:
            schema = None
        if schema is None or digest8(text) != digest:
            self.faults["a list of sites that is not the one its tag says"] += 1
        else:
            self._room_for_sites -= len(text)
            self.schemas[digest] = schema

    def _take_scalar(self, content: FileContent, step: int, value: Summary.Value) -> None:
        if value.tag not in self._recognised:
            self._recognised[value.tag] = field_of(value.tag)
        known = self._recognised[value.tag] is not None
        if not known and len(self.other_tags) >= OTHER_TAGS_KEPT:
            return
        number = scalar_of(value)
        if number is None:
            return
        if known:
            content.scalars.setdefault(value.tag, {})[step] = number
        else:
            self.other_tags[value.tag] = None


def _facts(content: bytes) -> dict[str, Any]:
    if len(content) > LONGEST_FACTS:
        return {}
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def check_version(content: bytes) -> None:
    version = _facts(content).get("version")
    if isinstance(version, int) and version > VERSION:
        raise LogdirError(
            f"the records are of format {version}, written by a newer gradscope, and this one reads formats up to {VERSION}: "
            "update gradscope."
        )


def pulse_fields(content: bytes) -> tuple[str, ...]:
    fields = _facts(content).get("fields")
    if not isinstance(fields, list) or "step" not in fields or not all(isinstance(name, str) for name in fields):
        return PULSE_FIELDS
    return tuple(fields)


def arranged(rows: npt.NDArray[np.float64], fields: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """The columns as PULSE_FIELDS has them; NaN where the record lacks one."""
    if fields == PULSE_FIELDS:
        return rows
    placed = np.full((len(rows), len(PULSE_FIELDS)), np.nan)
    for place, name in enumerate(fields):
        if name in PULSE_FIELDS:
            placed[:, PULSE_FIELDS.index(name)] = rows[:, place]
    return placed
