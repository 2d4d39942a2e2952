"""Cuts event files into pieces of whole records for a store, and keeps account of what has gone there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gradscope.logdir.address import Address
from gradscope.logdir.framing import FOOTER_SIZE
from gradscope.logdir.framing import HEADER_SIZE
from gradscope.logdir.framing import claimed_length
from gradscope.logdir.names import Origin
from gradscope.logdir.names import host
from gradscope.logdir.names import origin
from gradscope.logdir.names import piece_name

PIECE = 8 * 2**20  # bytes of a piece at most, unless a single record is longer
JOURNAL = "shipped.jsonl"


@dataclass(frozen=True)
class Progress:
    """How much of a file has gone to the store."""

    bytes: int = 0
    pieces: int = 0


@final
class Journal:
    """What of a directory's files has gone to one address; a file beside them, to which a line is added for each piece."""

    def __init__(self, directory: Path, address: str) -> None:
        self._path = directory / JOURNAL
        self._address = address
        self._progress: dict[str, Progress] = {}
        for line in self._lines():
            self._take(line)

    def of(self, name: str) -> Progress:
        return self._progress.get(name, Progress())

    def note(self, name: str, progress: Progress) -> None:
        """So much of the file is in the store now."""
        self._progress[name] = progress
        entry = {"address": self._address, "file": name, "bytes": progress.bytes, "pieces": progress.pieces}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry["address"] == self._address:
                self._progress[str(entry["file"])] = Progress(int(entry["bytes"]), int(entry["pieces"]))
        except (ValueError, TypeError, KeyError):
            pass  # the last line of a process that was killed; the piece goes again, under the same name


@final
class Courier:
    """Takes what is new in the event files of a directory to a store, in order, piece by piece.

    ``put`` is given a piece's name and its bytes; what it raises ends the round, and the next one begins with the same piece.
    """

    def __init__(
        self, directory: Path, journal: Journal, put: Callable[[str, bytes], None], *, ours: Callable[[Origin], bool]
    ) -> None:
        self._directory = directory
        self._journal = journal
        self._put = put
        self._ours = ours

    def waiting(self) -> int:
        """Bytes that have not gone to the store yet."""
        return _waiting(self._directory, self._journal, self._ours)

    def ship(self, *, last: bool) -> int:
        """Ship the whole records that are there; returns how many bytes that were. ``last``: nothing more will be written."""
        shipped = 0
        for name, size in _files(self._directory, self._ours):
            while self._journal.of(name).bytes < size:
                count = self._ship_piece(name, size, last=last)
                if not count:
                    break
                shipped += count
        return shipped

    def begin_anew(self, there: frozenset[str]) -> None:
        """Forget what is said to have gone to the store of files of which ``there``, the names in it, shows nothing."""
        for name, _ in _files(self._directory, self._ours):
            pieces = {piece_name(name, number) for number in range(self._journal.of(name).pieces)}
            if pieces and pieces.isdisjoint(there):
                self._journal.note(name, Progress())

    def _ship_piece(self, name: str, size: int, *, last: bool) -> int:
        before = self._journal.of(name)
        piece = _next_piece(self._directory / name, before.bytes, size)
        if piece:
            self._put(piece_name(name, before.pieces), piece)
            self._journal.note(name, Progress(before.bytes + len(piece), before.pieces + 1))
        elif last:
            # The beginning of a record that was never finished: nobody could read it.
            self._journal.note(name, Progress(size, before.pieces))
        return len(piece)


def _files(directory: Path, ours: Callable[[Origin], bool]) -> Iterator[tuple[str, int]]:
    """The event files that are ours and how large they are, in the order of their names."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return  # not made yet
    for name in names:
        whose = origin(name)
        if whose is not None and ours(whose):
            yield name, (directory / name).stat().st_size


def _waiting(directory: Path, journal: Journal, ours: Callable[[Origin], bool]) -> int:
    return sum(max(size - journal.of(name).bytes, 0) for name, size in _files(directory, ours))


def _next_piece(path: Path, start: int, end: int) -> bytes:
    """The whole records from ``start`` on, as many as a piece may hold; none where none is whole yet.

    Where no record begins, what is there as it is: whoever reads it goes on behind the damage.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(min(PIECE, end - start))
        whole, needed = _whole_records(data)
        if whole == 0 and needed is not None and len(data) < needed <= end - start:
            data += file.read(needed - len(data))
            whole = needed if len(data) == needed else 0
    return data if needed is None and whole == 0 else data[:whole]


def _whole_records(data: bytes) -> tuple[int, int | None]:
    """Bytes of the whole records that ``data`` begins with; and of the next one, None where none begins there."""
    at = 0
    while len(data) - at >= HEADER_SIZE:
        length = claimed_length(data, at)
        if length is None:
            return at, None
        needed = HEADER_SIZE + length + FOOTER_SIZE
        if at + needed > len(data):
            return at, needed
        at += needed
    return at, HEADER_SIZE


def written_by(process: int) -> Callable[[Origin], bool]:
    """Files of this process, and those that a process of this machine has left which is no more."""
    here = host()
    return lambda whose: whose.host == here and (whose.process == process or not _alive(whose.process))


def by_anyone(whose: Origin) -> bool:
    """Any process, on any machine."""
    return True


def recorded_below(logdir: Path) -> list[tuple[Path, str]]:
    """The directories in ``logdir`` and below it that hold gradscope's files, and their paths relative to it."""
    found = (Path(top) for top, _, names in os.walk(logdir) if any(origin(name) for name in names))
    return sorted((directory, directory.relative_to(logdir).as_posix()) for directory in found)


def left_behind(address: Address) -> str | None:
    """A sentence where some of what was to go to ``address`` lies in its mirror on this disk, and nobody ships it any more."""
    waiting = sum(
        _waiting(directory, Journal(directory, str(address / below)), _is_orphan)
        for directory, below in recorded_below(address.mirror)
    )
    if not waiting:
        return None
    command = f"gradscope ship {shlex.quote(str(address.mirror))} {shlex.quote(str(address))}"
    return f"{waiting:,} bytes that were to go to {address} lie in {address.mirror.absolute()}: `{command}` ships them."


def _is_orphan(whose: Origin) -> bool:
    return whose.host != host() or not _alive(whose.process)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
