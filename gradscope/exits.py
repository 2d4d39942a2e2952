"""What was captured is on disk when the process ends: at exit, after an exception, and on SIGTERM."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Protocol
from typing import final


class Closable(Protocol):
    def close(self) -> None:
        """Write what is left and stop."""

    def save(self) -> None:
        """Write what is left, within seconds: the process is about to end."""


@final
class Exits:
    """The scopes that are open in this process. One instance, in this module."""

    def __init__(self) -> None:
        self._open: dict[Closable, Path] = {}
        self._process = os.getpid()

    def directories(self) -> frozenset[Path]:
        """Where the open scopes write."""
        return frozenset(self._open.values())

    def opened(self) -> tuple[tuple[Closable, Path], ...]:
        """The scopes that this process has opened, and where they write."""
        return tuple(self._open.items()) if os.getpid() == self._process else ()

    def register(self, scope: Closable, directory: Path) -> None:
        if os.getpid() != self._process:
            self._open.clear()  # a forked child has its parent's scopes, which are not its own to close
        if not self._open:
            self._process = os.getpid()
            atexit.register(self._close_all)
            self._handle_termination()
        self._open[scope] = directory

    def unregister(self, scope: Closable) -> None:
        if self._open.pop(scope, None) is not None and not self._open:
            atexit.unregister(self._close_all)
            self._leave_termination()

    def _close_all(self) -> None:
        if os.getpid() == self._process:
            for scope in list(self._open):
                scope.close()

    def _handle_termination(self) -> None:
        """Only where nobody else has: a handler of the user's own stays, and ends in ``atexit`` or not as it likes."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_termination)

    def _leave_termination(self) -> None:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == self._on_termination:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_termination(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            for scope in list(self._open):
                with contextlib.suppress(Exception):  # the process was told to end, and has to
                    scope.save()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # end as the sender of the signal expects, by the signal


EXITS = Exits()
