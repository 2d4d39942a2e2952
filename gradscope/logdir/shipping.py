"""The process that ships a record to a store while the training goes on in another: nothing that happens here can reach it.

It is told what to do in one line of JSON on its standard input, finds out by itself what is new on the disk, and says on its
standard output when the store fails. It ends by itself once the training's process has.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import final

from gradscope.logdir.address import Address
from gradscope.logdir.pieces import PIECE
from gradscope.logdir.pieces import Courier
from gradscope.logdir.pieces import Journal
from gradscope.logdir.pieces import by_anyone
from gradscope.logdir.pieces import written_by
from gradscope.logdir.store import Store
from gradscope.logdir.store import why

SHIPPED, UNSHIPPED = 0, 3  # how the process exits
ORPHANED_SECONDS = 60.0  # how long it goes on trying once the training's process is gone
_NICENESS = 10
_LOOK_SECONDS = 0.25
_LAST_LOOK_SECONDS = 0.05  # the same, once the training is over
_LAST_PAUSE = 1.0  # at most, between tries once the training is over


@dataclass(frozen=True)
class Pace:
    """How often a piece is shipped and a store that fails is tried again, in seconds.

    A run that has lasted for t is at most the larger of ``first`` and ``share`` x t behind, and never more than ``most``:
    the number of pieces grows with the logarithm of its length, and then by 12 an hour.
    """

    first: float = 10.0
    share: float = 0.02
    most: float = 300.0
    retry: float = 1.0
    retry_most: float = 60.0

    def after(self, age: float) -> float:
        """How long the next piece may wait in a run of this age."""
        return min(max(self.first, self.share * age), self.most)

    def pause(self, failures: int) -> float:
        """How long to wait after so many tries that failed in a row."""
        return float(min(self.retry * 2.0 ** min(failures - 1, 30), self.retry_most))


@dataclass(frozen=True)
class Order:
    """What is to be shipped where."""

    directory: str
    address: str
    process: int  # the training's
    pace: Pace

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def of_line(line: str) -> Order:
        given = json.loads(line)
        return Order(given["directory"], given["address"], given["process"], Pace(**given["pace"]))


@final
class Round:
    """Ships when it is time, and tries again later where that fails."""

    def __init__(self, courier: Courier, pace: Pace, say: Callable[[str], None]) -> None:
        self._courier = courier
        self._pace = pace
        self._say = say
        self._began = monotonic()
        self._due = self._began  # at once: whether the store takes anything should show early
        self._failures = 0
        self._said = ""

    def go(self, *, last: bool) -> bool:
        """Ship what is due; whether all is in the store."""
        now = monotonic()
        if now < self._due and (self._failures or (not last and self._courier.waiting() < PIECE)):
            return False
        try:
            self._courier.ship(last=last)
        except Exception as error:
            self._failures += 1
            pause = self._pace.pause(self._failures)
            self._due = monotonic() + (min(pause, _LAST_PAUSE) if last else pause)
            self._tell(why(error))
            return False
        self._failures = 0
        self._tell("")
        self._due = now + self._pace.after(now - self._began)
        return self._courier.waiting() == 0

    def hasten(self) -> None:
        """The training is over: do not wait for the next turn."""
        self._due = monotonic()

    def _tell(self, failure: str) -> None:
        if failure != self._said:
            self._said = failure
            self._say(failure)


def ship_all(directory: Path, address: Address) -> int:
    """Ship all that a directory holds and the store does not; returns how many bytes. Raises what the store raises."""
    store = Store(address)
    courier = Courier(directory, Journal(directory, str(address)), store.put, ours=by_anyone)
    courier.begin_anew(store.names())
    return courier.ship(last=True)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a whole group, it means the training, and its end shows
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    os.set_blocking(1, False)  # where nobody listens, shipping goes on
    order = Order.of_line(_line(None) or "")
    directory = Path(order.directory)
    address = Address(order.address)
    journal = Journal(directory, str(address))
    courier = Courier(directory, journal, _Door(address).put, ours=written_by(order.process))
    sys.exit(SHIPPED if _ship_on(Round(courier, order.pace, _say), order.process) else UNSHIPPED)


@final
class _Door:
    """The store, opened with the first piece: that may fail as anything else may, and is tried again."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._store: Store | None = None

    def put(self, name: str, data: bytes) -> None:
        if self._store is None:
            self._store = Store(self._address)
        self._store.put(name, data)


def _ship_on(turns: Round, parent: int) -> bool:
    """Ship until the training is over, and then what is left; whether all of it has gone."""
    deadline: float | None = None
    while True:
        done = turns.go(last=deadline is not None)
        if deadline is not None and (done or monotonic() > deadline):
            return done
        told = _line(_LOOK_SECONDS if deadline is None else _LAST_LOOK_SECONDS)
        if deadline is None and (told is not None or os.getppid() != parent):
            deadline = monotonic() + (float(told) if told else ORPHANED_SECONDS)
            turns.hasten()


def _line(within: float | None) -> str | None:
    """The next line of standard input, empty at its end; None where none came ``within`` so many seconds."""
    ready, _, _ = select.select([0], [], [], within)
    if not ready:
        return None
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps({"failing": text}).encode() + b"\n")
