"""Reads event files record by record: goes on after damage, says what was lost, and reads on where a file has grown."""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Iterator
from pathlib import Path
from typing import final

import numpy as np

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
SEARCHED_FIRST = 2**12  # bytes behind damage in which the next record is looked for first
IN_VAIN = 8  # times each byte up to here, for checksums that did not hold
MOST_TOLD = 10  # files of one directory whose damage is told, each by itself


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
        """What could not be read, a sentence for each file concerned; of very many, how many more there are."""
        unreadable = (f"{name}: could not be read ({error.strerror or error})." for name, error in self._unreadable.items())
        told = (*(file.damage for file in self._files.values() if file.damage is not None), *unreadable)
        rest = len(told) - MOST_TOLD
        return told if rest <= 1 else (*told[:MOST_TOLD], f"{rest:,} more files are damaged or could not be read.")


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
        self._claimed = 0  # end of the last record whose payload was damaged, by its header
        self._in_vain = 0  # bytes of such records

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
            view = _View(file, self._window)
            size = file.size
            needed: int | None = HEADER_SIZE
            while True:
                if needed is not None and needed <= size - self._offset:
                    data, at = view.of(self._offset, needed)
                    if len(data) - at < needed:
                        return  # its writer has just cut it back
                    needed = yield from self._whole_records(data, at)
                elif self._skip_to(_next_header(view, self._beyond_damage(needed), size)):
                    needed = HEADER_SIZE
                else:
                    self._damaged_tail = max(size - self._offset, 0) if needed is None else 0
                    return

    def _whole_records(self, data: bytes, at: int) -> Generator[bytes, None, int | None]:
        """Yields the payloads in ``data`` from ``at`` on; returns how many bytes the next one needs, None if damaged."""
        base = self._offset - at
        while len(data) - at >= HEADER_SIZE:
            length = claimed_length(data, at)
            if length is None:
                return None
            end = at + HEADER_SIZE + length + FOOTER_SIZE
            if end > len(data):
                return end - at
            payload = checked_payload(data, at, length)
            if payload is None:
                self._in_vain += end - at
                self._claimed = base + end
                return None
            at = end
            self._offset = base + end
            yield payload
        return HEADER_SIZE

    def _beyond_damage(self, needed: int | None) -> int:
        """From where on to look for the next record: inside the damaged one, as a torn record claims what came after it.

        Headers whose claims overlap would have every byte checked as often as there are headers. Once that has been done in
        vain for as many bytes as the file has up to here, several times over, what a damaged record claims is left out whole.
        """
        if needed is None and self._claimed > self._offset and self._in_vain > IN_VAIN * self._claimed + self._window:
            return self._claimed
        return self._offset + 1

    def _skip_to(self, offset: int | None) -> bool:
        if offset is None:
            return False
        self._skipped += offset - self._offset
        self._places += 1
        self._offset = offset
        return True


@final
class _View:
    """What was read of an open file last, so that a step forward within it reads nothing again."""

    def __init__(self, file: Opened, window: int) -> None:
        self._file = file
        self._window = max(window, HEADER_SIZE)
        self._start = 0
        self._data = b""

    def of(self, offset: int, count: int) -> tuple[bytes, int]:
        """Bytes of the file, and where among them those from ``offset`` on begin: ``count`` at least, as far as it goes."""
        at = offset - self._start
        if at < 0 or len(self._data) - at < count:
            self._data = self._file.read(offset, max(min(max(self._window, count), self._file.size - offset), 0))
            self._start, at = offset, 0
        return self._data, at


def _next_header(view: _View, start: int, size: int) -> int | None:
    """Where the next header whose checksum holds begins, at ``start`` or after it."""
    while size - start >= HEADER_SIZE:
        data, at = view.of(start, HEADER_SIZE)
        if len(data) - at < HEADER_SIZE:
            return None
        for found in _possible_headers(data, at):
            if claimed_length(data, found) is not None:
                return start + found - at
        start += len(data) - at - HEADER_SIZE + 1
    return None


def _possible_headers(data: bytes, start: int) -> Iterator[int]:
    """Where from ``start`` on a header could stand. The next one is mostly near, so little is looked at first."""
    stretch = SEARCHED_FIRST
    while len(data) - start >= HEADER_SIZE:
        # The upper half of a believable length is zero. A checksum of zero is ruled out, so that no time goes into regions
        # that the file system filled with zeros.
        zero = np.frombuffer(data, dtype=np.uint8, count=min(stretch, len(data) - start), offset=start) == 0
        count = len(zero) - HEADER_SIZE + 1
        upper = zero[4 : 4 + count] & zero[5 : 5 + count] & zero[6 : 6 + count] & zero[7 : 7 + count]
        checksum = zero[8 : 8 + count] & zero[9 : 9 + count] & zero[10 : 10 + count] & zero[11 : 11 + count]
        yield from (start + int(at) for at in np.flatnonzero(upper & ~checksum))
        start += count
        stretch = min(4 * stretch, WINDOW)
