"""Reads event files from a store: many small ones at once, a large one in parts, never more in memory than one such batch."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import PurePath
from pathlib import PurePosixPath
from types import TracebackType
from typing import final

from gradscope.logdir.address import Address
from gradscope.logdir.address import missing
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.folders import Folder
from gradscope.logdir.folders import Opened
from gradscope.logdir.folders import Source
from gradscope.logdir.folders import is_event_file
from gradscope.logdir.store import Store
from gradscope.logdir.store import Stored
from gradscope.logdir.store import why

BATCH = 32 * 2**20  # bytes that are asked for at once
MOST_AT_ONCE = 64  # files


@final
class RemoteFolder(Folder):
    """A directory of a store, with the event files that were there when the store was listed.

    As text it is what messages call it.
    """

    def __init__(self, address: Address, store: Store, path: PurePosixPath, files: list[Stored]) -> None:
        self._address = address
        self._store = store
        self._path = path
        self._files = files

    @property
    def path(self) -> PurePath:
        """Where it lies in the store."""
        return self._store.path / self._path

    @property
    def below(self) -> PurePath:
        """Its path below the address that was listed."""
        return self._path

    @property
    def names(self) -> list[str]:
        """What its event files are called."""
        return [file.path.name for file in self._files]

    def sources(self) -> Iterator[Source]:
        for batch in _batches(self._files):
            held = _Batch(self._store, batch)
            yield from (_RemoteSource(self._store, file, held, str(self)) for file in batch)

    def __str__(self) -> str:
        return str(self._address / str(self._path))


def remote_folders(address: Address) -> list[RemoteFolder]:
    """Every directory with event files at the address and below it. Raises LogdirError."""
    lacking = missing(address)
    if lacking is not None:
        raise LogdirError(f"{address} cannot be read: {lacking}.")
    try:
        store = Store(address)
        files = store.files()
        gone = not files and store.missing()
    except Exception as error:
        raise LogdirError(f"{address} cannot be read: {why(error)}.") from None
    if gone:
        raise LogdirError(
            f"{address} does not exist: expected a log directory, as given to attach() or to tensorboard --logdir."
        )
    if any(file.path.name == "" for file in files):
        raise LogdirError(f"{address} is a file: expected the log directory that holds it.")
    events = sorted(
        (file for file in files if is_event_file(file.path.name)), key=lambda file: (file.path.parent, file.path.name)
    )
    return [RemoteFolder(address, store, path, list(held)) for path, held in groupby(events, key=lambda file: file.path.parent)]


@final
class _Batch:
    """Files that are asked for together, when the first of them is opened."""

    def __init__(self, store: Store, files: list[Stored]) -> None:
        self._store = store
        self._files = files
        self._held: dict[PurePosixPath, bytes | Exception] | None = None

    def take(self, path: PurePosixPath) -> bytes:
        if self._held is None:
            self._held = dict(self._store.read_whole([file.path for file in self._files]))
        found = self._held.pop(path)  # each is read once
        if isinstance(found, Exception):
            raise found
        return found


@final
class _RemoteSource(Source):
    def __init__(self, store: Store, file: Stored, batch: _Batch, folder: str) -> None:
        self._store = store
        self._file = file
        self._batch = batch
        self._folder = folder

    @property
    def name(self) -> str:
        return self._file.path.name

    def open(self) -> AbstractContextManager[Opened]:
        if self._file.size > BATCH:
            return _InParts(self._store, self._file, self._folder)
        try:
            return _AtOnce(self._batch.take(self._file.path))
        except Exception as error:
            raise _told(error, f"{self._folder}/{self.name}") from None


class _Read(Opened, AbstractContextManager[Opened]):
    """There is nothing to close."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


@final
class _AtOnce(_Read):
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


@final
class _InParts(_Read):
    def __init__(self, store: Store, file: Stored, folder: str) -> None:
        self._store = store
        self._file = file
        self._folder = folder

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, offset: int, count: int) -> bytes:
        try:
            return self._store.read(self._file.path, offset, offset + count)
        except Exception as error:
            raise _told(error, f"{self._folder}/{self._file.path.name}") from None


def _told(error: Exception, name: str) -> OSError | LogdirError:
    """One file that has gone is damage; a store that fails would fail for all that is left."""
    if isinstance(error, FileNotFoundError):
        return OSError(errno.ENOENT, "it was removed while the store was read")
    return LogdirError(f"reading {name} failed: {why(error)}.")


def _batches(files: list[Stored]) -> Iterator[list[Stored]]:
    """Consecutive files, as many as are asked for at once; a large one alone."""
    batch: list[Stored] = []
    size = 0
    for file in files:
        if batch and (size + file.size > BATCH or len(batch) >= MOST_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch
