"""Protocol buffers as bytes: fields and numbers, without making messages of them; and how much a record would become."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Final

MOST_PARTS = 2**17  # fields of one record: a frame of all statistics with histograms has about a thousand

_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}

# Which fields of event.proto, summary.proto and tensor.proto hold messages, by what leads to them from the event.
_EVENT, _SUMMARY, _VALUE, _TENSOR, _SHAPE = range(5)
_WITHIN: Final[Mapping[tuple[int, int], int]] = {
    (_EVENT, 5): _SUMMARY,
    (_SUMMARY, 1): _VALUE,
    (_VALUE, 8): _TENSOR,
    (_TENSOR, 2): _SHAPE,
}
# Fields of a tensor whose every byte may become a number or a message: packed integers, handles and variants.
_GROWING = frozenset((7, 10, 11, 13, 14, 15, 16, 17))


def has_too_many_parts(record: bytes) -> bool:
    """Whether parsing the record would make more of it than its size says: a field of two bytes becomes a hundred in memory.

    Raises ValueError where the record is no message, or one with groups, which no event has.
    """
    if len(record) <= MOST_PARTS:
        return False
    parts = 0
    waiting = [(_EVENT, 0, len(record))]
    while waiting:
        kind, start, stop = waiting.pop()
        for number, first, last in fields_of(record, start, stop):
            within = _WITHIN.get((kind, number))
            if within is not None:
                waiting.append((within, first, last))
            parts += last - first if kind == _TENSOR and number in _GROWING else 1
            if parts > MOST_PARTS:
                return True
    return False


def fields_of(data: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Number and range of each field of a message. Raises ValueError where it is none."""
    while at < stop:
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            first, (_, at) = at, varint(data, at)
        elif wire == _LENGTH_DELIMITED:
            length, first = varint(data, at)
            at = first + length
        elif wire in _FIXED_SIZES:
            first, at = at, at + _FIXED_SIZES[wire]
        else:
            raise ValueError
        if at > stop:
            raise ValueError
        yield key >> 3, first, at


def as_varint(number: int) -> bytes:
    """A number as messages have it."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at ``at``, and where the next thing begins."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError
