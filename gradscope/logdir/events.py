"""Writes event files that TensorBoard reads: each record is in the file when the call returns, whatever happens next."""

from __future__ import annotations

import errno
import os
import re
import time
from io import FileIO
from pathlib import Path
from threading import RLock
from typing import final

from tensorboard.compat.proto.event_pb2 import Event

from gradscope.logdir.framing import framed
from gradscope.logdir.names import file_name

ROTATE_AT = 64 * 2**20  # bytes after which a new file is begun
LAST_STAMP = 10**10 - 1  # of ten digits, by which names sort
_STAMP = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


@final
class EventWriter:
    """Appends events to a file of its own in ``directory``, which is made with the first record.

    Never appends to a file that it did not open: TensorBoard gives up a file at the first damaged record, but goes on with
    the next file. Silent in a forked child. Safe to call from several threads and from a signal handler.
    """

    def __init__(self, directory: Path, *, rotate_at: int = ROTATE_AT) -> None:
        self._directory = directory
        self._rotate_at = rotate_at
        self._lock = RLock()
        self._owner = os.getpid()
        self._file: FileIO | None = None
        self._size = 0
        self._files = 0
        self._written = 0

    @property
    def silent(self) -> bool:
        """Whether this is a forked child of the process that made the writer: then nothing is written."""
        return os.getpid() != self._owner

    @property
    def at_start(self) -> bool:
        """Whether the next record begins a new file."""
        return self._file is None or self._size == 0 or self._size >= self._rotate_at

    @property
    def written(self) -> int:
        """Bytes written so far, to all files."""
        return self._written

    def write(self, event: bytes) -> None:
        """Append one ``Event``, as its bytes. Raises OSError where the file cannot take it whole; what was written before stays
        readable.
        """
        if self.silent:
            return
        with self._lock:
            if self._size >= self._rotate_at:
                self.close()
            file = self._file or self._open()
            if self._size == 0:
                self._append(file, Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
            self._append(file, event)

    def close(self) -> None:
        """Close the file; a later record begins a new one."""
        if self.silent:
            return
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._size = 0

    def _open(self) -> FileIO:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / file_name(self._stamp(), self._owner, self._files)
        self._file = FileIO(path, "xb")
        self._files += 1
        return self._file

    def _stamp(self) -> int:
        # Files are read in the order of their names, so a new one must come last also within the same second, or after
        # the clock was set back.
        taken = (_STAMP.match(name) for name in os.listdir(self._directory))
        return min(max([int(time.time()), *(int(match[1]) + 1 for match in taken if match)]), LAST_STAMP)

    def _append(self, file: FileIO, event: bytes) -> None:
        record = framed(event)
        written = 0
        try:
            written = file.write(record) or 0
        finally:
            if written != len(record):
                file.truncate(self._size)
                file.seek(self._size)
        if written != len(record):
            # A full disk shows as a short count, not as an error.
            raise OSError(errno.ENOSPC, f"wrote {written} of {len(record)} bytes of a record", str(file.name))
        self._size += written
        self._written += written
