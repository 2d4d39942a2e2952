"""Reads and writes frames of a known form as bytes: all frames of one schema differ only in their numbers.

A form is learnt from a frame that was parsed. It holds the bytes between the numbers; where those of another record are the
same, its numbers stand in the same places. Where they are not, the record is parsed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from itertools import pairwise
from itertools import zip_longest
from typing import final

import numpy as np

from gradscope.logdir.tags import HISTOGRAMS
from gradscope.logdir.tags import META
from gradscope.logdir.tags import PULSE
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.wire import as_varint
from gradscope.logdir.wire import fields_of
from gradscope.logdir.wire import varint
from gradscope.memory.layout import Layout
from gradscope.memory.layout import Row

_OWN = tuple(tag.encode() for tag in (HISTOGRAMS, STATS, PULSE, META, SCHEMA))

# Field numbers and wire types of event.proto, summary.proto and tensor.proto.
_WALL_TIME_KEY = 0x09
_STEP_KEY = 0x10
_SUMMARY_KEY = 0x2A
_VALUE = _TAG = 1
_TENSOR = 8
_CONTENT = 4


@final
class FrameForm:
    """Where the vectors of one schema's frames stand in a record."""

    def __init__(self, body: bytes, vectors: list[tuple[str, int, int]], end: int) -> None:
        """``vectors``: tag, first byte and byte after the last in ``body``, in their order; ``end``: of the last's value."""
        edges = [0, *(edge for _, first, stop in vectors for edge in (first, stop)), end]
        lengths = [right - left for left, right in pairwise(edges)]
        self._pieces = struct.Struct("<" + "".join(f"{length}s" for length in lengths))
        self._between = self._pieces.unpack_from(body)[0::2]
        self._columns = struct.Struct("<" + "".join(f"{length}s" for length in lengths[1::2]))
        names = [tag.split("/", 3)[3] for tag, _, _ in vectors]
        self._layout = Layout(vectors[0][0].split("/")[2], names, [length // 4 for length in lengths[1::2]])

    def written(self, step: int, wall_time: float, numbers: bytes) -> bytes:
        """A frame of this form, of nothing but these numbers: column after column, float32."""
        head = struct.pack("<Bd", _WALL_TIME_KEY, wall_time)
        at = bytes((_STEP_KEY,)) + as_varint(step) if step else b""
        body = b"".join(chain.from_iterable(zip_longest(self._between, self._columns.unpack(numbers), fillvalue=b"")))
        return b"".join((head, at, bytes((_SUMMARY_KEY,)), as_varint(len(body)), body))

    def read(self, payload: bytes, *, histograms: bool = True) -> tuple[int, Row] | None:
        """Step and columns of a frame of this form, or None where ``payload`` is anything else.

        Where no ``histograms`` are wanted, a frame that has some is read without them.
        """
        head = _head(payload)
        if head is None or len(payload) - head[1] < self._pieces.size:
            return None
        step, start = head
        pieces = self._pieces.unpack_from(payload, start)
        if pieces[0::2] != self._between:
            return None
        end = start + self._pieces.size
        if any(payload.find(tag, end) >= 0 for tag in (_OWN if histograms else _OWN[1:])):
            return None
        return step, Row(self._layout, np.frombuffer(b"".join(pieces[1::2]), dtype="<f4"))


def learn(payload: bytes) -> FrameForm | None:
    """The form of a frame that has been parsed and found sound; None where its vectors do not come first, one schema's."""
    head = _head(payload)
    if head is None:
        return None
    body = payload[head[1] :]
    vectors: list[tuple[str, int, int]] = []
    end = 0
    try:
        for tag, first, stop, value_end in _values(body):
            if not tag.startswith(STATS.encode()):
                break
            vectors.append((tag.decode(), first, stop))
            end = value_end
    except ValueError:
        return None
    digests = {tag.split("/")[2] for tag, _, _ in vectors}
    distinct = len({tag for tag, _, _ in vectors}) == len(vectors)
    sound = len(digests) == 1 and distinct and all(tag.count("/") == 3 for tag, _, _ in vectors)
    return FrameForm(body, vectors, end) if sound else None


def _head(payload: bytes) -> tuple[int, int] | None:
    """Step, and where the summary begins that fills the rest of the event."""
    if len(payload) < 12 or payload[0] != _WALL_TIME_KEY:
        return None
    try:
        at, step = 9, 0
        if payload[at] == _STEP_KEY:
            step, at = varint(payload, at + 1)
        if payload[at] != _SUMMARY_KEY:
            return None
        length, at = varint(payload, at + 1)
    except (ValueError, IndexError):
        return None
    return (step, at) if length == len(payload) - at and step < 2**63 else None


def _values(body: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Tag, range of the tensor's content and end of each value of a summary. Raises ValueError where it is no summary."""
    for number, start, stop in fields_of(body, 0, len(body)):
        if number != _VALUE:
            raise ValueError
        parts = {part: (first, last) for part, first, last in fields_of(body, start, stop)}
        tag = parts.get(_TAG, (0, 0))
        tensor = parts.get(_TENSOR, (0, 0))
        content = {part: (first, last) for part, first, last in fields_of(body, *tensor)}.get(_CONTENT, (stop, stop))
        yield body[slice(*tag)], *content, stop
