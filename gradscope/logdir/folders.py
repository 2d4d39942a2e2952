"""Where event files are read from: a directory of this machine, or of a store."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import final


class Opened(ABC):
    """A file that is open for reading. All of it raises OSError."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes in it when it was opened."""

    @abstractmethod
    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset`` on; fewer where it has become shorter."""


class Source(ABC):
    """An event file."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @abstractmethod
    def open(self) -> AbstractContextManager[Opened]:
        """Open it for reading. Raises OSError."""


class Folder(ABC):
    """A directory with event files."""

    @abstractmethod
    def sources(self) -> Iterable[Source]:
        """The event files directly in it, in the order in which TensorBoard reads them: by name. Raises OSError."""


@final
class LocalFolder(Folder):
    """A directory of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sources(self) -> list[Source]:
        paths = sorted(path for path in self._path.iterdir() if is_event_file(path.name) and not path.is_dir())
        return [LocalSource(path) for path in paths]


@final
class LocalSource(Source):
    """A file of this machine, which may be growing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return self._path.name

    def open(self) -> AbstractContextManager[Opened]:
        return _LocalFile(self._path)


@final
class _LocalFile(Opened, AbstractContextManager[Opened]):
    def __init__(self, path: Path) -> None:
        _check_regular(path.stat())  # first: to open a device may set it going
        self._file = FileIO(path, opener=_opened_at_once)
        try:
            status = os.fstat(self._file.fileno())
            _check_regular(status)
        except OSError:
            self._file.close()
            raise
        self._size = status.st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file")


def _opened_at_once(path: str, flags: int) -> int:
    # A pipe that nobody writes to would keep an ordinary open() waiting for ever.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def is_event_file(name: str) -> bool:
    """Whether TensorBoard would read a file of this name."""
    return "tfevents" in name
