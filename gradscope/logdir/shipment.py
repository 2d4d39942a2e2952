"""A record on its way to a store, as the training's process sees it: a process is started, asked now and then, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import IO
from typing import final

from gradscope.failures import warn
from gradscope.logdir.address import Address
from gradscope.logdir.shipping import SHIPPED
from gradscope.logdir.shipping import Order
from gradscope.logdir.shipping import Pace

CLOSING_SECONDS = 20.0  # how long the end of a training waits for what is still to be shipped
FAILING_SECONDS = 5.0  # and where the store has failed up to then
_GRACE = 0.5
_LISTEN_SECONDS = 0.1
# The path before anything else is imported: what lies in the working directory must not stand in for a module.
_PROGRAM = "import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); from gradscope.logdir.shipping import main; main()"


@final
class Shipment:
    """Ships what is written to ``directory`` to ``address``, in a process of its own. Never raises, and only ``finish`` waits.

    Does nothing in a forked child. ``logdir`` and ``remote`` are the log directories that messages name.
    """

    def __init__(self, directory: Path, address: Address, *, logdir: Path, remote: Address, pace: Pace | None = None) -> None:
        self._owner = os.getpid()
        self._logdir = logdir
        self._remote = remote
        self._failing = ""  # what the store said last, while it fails
        self._heard = b""
        self._told = False
        self._process = self._started(Order(str(directory), address.text, self._owner, pace or Pace()))

    @property
    def pid(self) -> int | None:
        """The shipping process; None where there is none any more."""
        return None if self._process is None else self._process.pid

    def look(self) -> None:
        """Say so, once, where the store fails. Waits for nothing."""
        if self._process is None or os.getpid() != self._owner:
            return
        self._hear(self._process)
        if self._failing and not self._told:
            self._told = True
            warn(
                "remote-failing",
                f"Expected to ship the record to {self._remote}, found: {self._failing}. It is tried again and again; the "
                f"training goes on, and nothing is lost: all of it lies in {self._logdir}.",
            )

    def finish(self, within: float = CLOSING_SECONDS) -> None:
        """Ship what is left, and wait for it for so many seconds at most; 0: let it be shipped without waiting."""
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        self._process = None
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(f"{within or CLOSING_SECONDS}\n".encode())
        if within and self._ended(process, within) != SHIPPED:
            self._hear(process)
            self._say_unshipped(within)
        for pipe in (process.stdin, process.stdout):
            _close(pipe)

    def _started(self, order: Order) -> subprocess.Popen[bytes] | None:
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # an interrupt typed in the terminal is the training's alone
            )
            assert process.stdin is not None
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            process.stdin.write(order.line().encode())
        except (OSError, ValueError) as error:
            self._failing = f"no process for it could be started ({error})"
            self._say_unshipped(0)
            return None
        return process

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        ended = False
        with contextlib.suppress(OSError):  # nothing to read for now
            while not ended:
                heard = os.read(process.stdout.fileno(), 65536)
                self._heard += heard
                ended = not heard
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._failing = str(json.loads(line)["failing"])
        if ended and not self._failing:
            self._failing = "the process that ships it has ended"

    def _ended(self, process: subprocess.Popen[bytes], within: float) -> int | None:
        """How the process has exited; None where it had to be ended."""
        began = monotonic()
        while monotonic() - began < (min(within, FAILING_SECONDS) if self._failing else within) + _GRACE:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LISTEN_SECONDS)
            self._hear(process)
        process.kill()
        process.wait()
        return None

    def _say_unshipped(self, within: float) -> None:
        found = self._failing or f"the store had not taken all of it within {within:g} seconds"
        command = f"gradscope ship {shlex.quote(str(self._logdir))} {shlex.quote(str(self._remote))}"
        warn(
            "remote-unshipped",
            f"Expected to ship the whole record to {self._remote}, found: {found}. Nothing is lost: all of it lies in "
            f"{self._logdir}, which `gradscope report` reads, and `{command}` ships what is missing.",
        )


def _close(pipe: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        if pipe is not None:
            pipe.close()
