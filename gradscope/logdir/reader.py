"""Reads event files record by record: goes on after damage, says what was lost, and reads on where a file has grown."""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.logdir.folders import Folder
from gradscope.logdir.folders import LocalFolder
from gradscope.logdir.folders import LocalSource
from gradscope.logdir.folders import Opened
from gradscope.logdir.folders import Source
from gradscope.logdir.framing import FOOTER_SIZE
from gradscope.logdir.framing import HEADER_SIZE
from gradscope.logdir.framing import checked_payload
from gradscope.logdir.framing import claimed_length
from gradscope.logdir.names import record_name

WINDOW = 2**22  # bytes read at once, unless a single record is longer


@final
class EventDirectory:
    """All event files of one directory, read in the order of their names. Each call of ``records`` gives what is new."""

    def __init__(self, directory: Path | Folder) -> None:
        self._folder = LocalFolder(directory) if isinstance(directory, Path) else directory
        self._files: dict[str, EventFile] = {}
        self._unreadable: dict[str, OSError] = {}

    def records(self) -> Iterator[tuple[str, bytes]]:
        """What every record not yet read stands in, by name, and its payload. Raises OSError where no file can be read.

        The pieces in which a store holds a file go by one name.
        """
        count = 0
        for source in self._folder.sources():
            count += 1
            file = self._files.setdefault(source.name, EventFile(source))
            self._unreadable.pop(source.name, None)
            try:
                for payload in file.records():
                    yield record_name(source.name), payload
            except OSError as error:
                self._unreadable[source.name] = error
        if self._unreadable and len(self._unreadable) == count:
            raise next(iter(self._unreadable.values()))

    @property
    def damage(self) -> tuple[str, ...]:
        """What could not be read, a sentence for each file concerned."""
        unreadable = (f"{name}: could not be read ({error.strerror or error})." for name, error in self._unreadable.items())
        return (*(file.damage for file in self._files.values() if file.damage is not None), *unreadable)


@final
class EventFile:
    """One event file, read from where the last reading stopped.

    A last record that is not whole yet is left for the next reading. Where a checksum fails, reading goes on at the next
    header whose checksum holds; the bytes between are counted as damage.
    """

    def __init__(self, source: Path | Source, *, window: int = WINDOW) -> None:
        self._source = LocalSource(source) if isinstance(source, Path) else source
        self._window = window
        self._offset = 0  # everything before it has been read or given up
        self._places = 0
        self._skipped = 0
        self._damaged_tail = 0

    @property
    def damage(self) -> str | None:
        """What of the file could not be read, as a sentence."""
        lost = self._skipped + self._damaged_tail
        if not lost:
            return None
        places = self._places + (self._damaged_tail > 0)
        where = "one place" if places == 1 else f"{places:,} places"
        return f"{self._source.name}: {lost:,} bytes in {where} are damaged and were left out."

    def records(self) -> Iterator[bytes]:
        """Payloads of the whole records from the last stop to the end as it is now. Raises OSError."""
        self._damaged_tail = 0
        with self._source.open() as file:
            size = file.size
            needed: int | None = HEADER_SIZE
            while True:
                if needed is not None and needed <= size - self._offset:
                    data = file.read(self._offset, min(max(self._window, needed), size - self._offset))
                    if len(data) < needed:
                        return  # its writer has just cut it back
                    needed = yield from self._whole_records(data)
                elif self._skip_to(_next_header(file, self._offset + 1, size, self._window)):
                    needed = HEADER_SIZE
                else:
                    self._damaged_tail = size - self._offset if needed is None else 0
                    return

    def _whole_records(self, data: bytes) -> Generator[bytes, None, int | None]:
        """Yields the payloads in ``data``; returns how many bytes the next record needs, or None where it is damaged."""
        base, at = self._offset, 0
        while len(data) - at >= HEADER_SIZE:
            length = claimed_length(data, at)
            if length is None:
                return None
            end = at + HEADER_SIZE + length + FOOTER_SIZE
            if end > len(data):
                return end - at
            payload = checked_payload(data, at, length)
            if payload is None:
                return None
            at = end
            self._offset = base + end
            yield payload
        return HEADER_SIZE

    def _skip_to(self, offset: int | None) -> bool:
        if offset is None:
            return False
        self._skipped += offset - self._offset
        self._places += 1
        self._offset = offset
        return True


def _next_header(file: Opened, start: int, size: int, window: int) -> int | None:
    """Where the next header whose checksum holds begins, at ``start`` or after it."""
    while size - start >= HEADER_SIZE:
        data = file.read(start, min(max(window, HEADER_SIZE), size - start))
        for at in _possible_headers(data):
            if claimed_length(data, int(at)) is not None:
                return start + int(at)
        if len(data) < HEADER_SIZE:
            return None
        start += len(data) - HEADER_SIZE + 1
    return None


def _possible_headers(data: bytes) -> npt.NDArray[np.intp]:
    # The upper half of a believable length is zero. A checksum of zero is ruled out, so that no time goes into regions
    # that the file system filled with zeros.
    zero = np.frombuffer(data, dtype=np.uint8) == 0
    count = max(0, len(data) - HEADER_SIZE + 1)
    upper = zero[4 : 4 + count] & zero[5 : 5 + count] & zero[6 : 6 + count] & zero[7 : 7 + count]
    checksum = zero[8 : 8 + count] & zero[9 : 9 + count] & zero[10 : 10 + count] & zero[11 : 11 + count]
    return np.flatnonzero(upper & ~checksum)
