"""What the ranks tell one another of the steps since the last time, and what the first one makes of it.

An exchange is two collectives, each of which every rank begins when it is ready and collects when it is done: first a few whole
numbers that say what is there to be told, so that all agree on it, then the numbers themselves. Nothing but their order
matters: the first rank may be steps ahead of another, and neither waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from time import monotonic
from typing import Protocol
from typing import final

import numpy as np

from gradscope.capture.ranks import apart
from gradscope.capture.ranks import pooling
from gradscope.capture.ranks.link import Link
from gradscope.capture.ranks.link import LinkBroken
from gradscope.capture.ranks.link import Pending
from gradscope.capture.ranks.link import numbers
from gradscope.capture.ranks.packing import Packed
from gradscope.capture.ranks.packing import Packer
from gradscope.capture.ranks.packing import Unpacker
from gradscope.capture.ranks.pooling import Form
from gradscope.capture.ranks.timetable import is_meeting
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame

Row = tuple[float, ...]
CATCH_UP_SECONDS = 60  # that a rank waits before a step for what must be known of it: others may load data or evaluate
_STEP, _LOSS, _NORM, _SAMPLED = (PULSE_FIELDS.index(name) for name in ("step", "loss", "gradient_norm", "sampled"))
_AGREED = ("step", "count", "sampled", "last")  # of what a header says: the same on all ranks, or they have parted


@dataclass(frozen=True)
class Block:
    """The steps since the last exchange, and the frame of the last of them if that was sampled."""

    rows: tuple[Row, ...]
    frame: Frame | None
    last: bool = False  # the watching ends


class Listener(Protocol):
    """Who hears what came of the exchanges."""

    def form(self, frame: Frame) -> Form:
        """What of a frame travels."""

    def cadence(self) -> int:
        """Every how many steps the first rank could sample one; 0: as before."""

    def raised(self) -> bool:
        """Whether something looked wrong here since the last exchange."""

    def learned(self, step: int, cadence: int, *, alarm: bool) -> None:
        """What all ranks know after the exchange of a step."""

    def told(self, frame: Frame | None, rows: Sequence[Row]) -> None:
        """The numbers of all ranks, on the first of them."""

    def parted(self, why: str, left: Sequence[Block], *, quietly: bool) -> None:
        """The ranks exchange nothing more; what is left is this rank's own."""


@final
class Exchanges:
    """One rank's side of all exchanges."""

    def __init__(self, link: Link, listener: Listener, *, place: int, ranks: int) -> None:
        self._link = link
        self._listener = listener
        self._place = place
        self._ranks = ranks
        self._rows: list[Row] = []
        self._frames: dict[int, Frame] = {}
        self._ready: deque[Block] = deque()
        self._pending: Pending | None = None
        self._collect: Callable[[Packed], None] = self._collect_header
        self._form: Form | None = None  # of the frame that is under way
        self.open = True

    # -- what this rank has seen

    def frame(self, frame: Frame) -> None:
        if self.open:
            self._frames[frame.step] = frame
            self._cut()

    def pulse(self, row: Row) -> None:
        if self.open:
            self._rows.append(row)
            self._cut()

    def _cut(self) -> None:
        """Put together what belongs to one exchange, where all of it is there."""
        start = 0
        for i, row in enumerate(self._rows):
            step, sampled = int(row[_STEP]), bool(row[_SAMPLED])
            if not is_meeting(step, sampled=sampled):
                continue
            if sampled and step not in self._frames:
                break
            self._ready.append(Block(tuple(self._rows[start : i + 1]), self._frames.pop(step, None)))
            start = i + 1
        del self._rows[:start]

    # -- exchanging

    def advance(self) -> None:
        """Collect what is done, and begin what is ready. Waits for nothing."""
        try:
            while self.open and self._move():
                pass
        except LinkBroken as error:
            self._part(str(error))

    def catch_up(self, seconds: float, *, until: Callable[[], bool]) -> None:
        """Go on, if need be by waiting for the others, until that is so, or nothing is ready."""
        end = monotonic() + seconds
        try:
            while self.open and not until():
                if not self._move():
                    if self._pending is None:
                        return
                    self._pending.wait(max(end - monotonic(), 0.001))
        except LinkBroken as error:
            self._part(str(error))

    def finish(self, seconds: float) -> None:
        """The watching ends here, and as a rule on all ranks."""
        self._ready.append(Block(tuple(self._rows), None, last=True))
        self._rows = []
        self.catch_up(seconds, until=lambda: False)

    def leave(self) -> None:
        """Exchange nothing more, and let the others notice."""
        self.open = False
        self._link.close()

    def _move(self) -> bool:
        if self._pending is None:
            if not self._ready:
                return False
            self._begin(self._header(self._ready[0]), self._collect_header)
            return True
        if not self._pending.is_done():
            return False
        found, self._pending = self._pending.found, None
        self._collect(found)
        return True

    def _begin(self, given: Packed, collect: Callable[[Packed], None]) -> None:
        self._pending, self._collect = self._link.start(given), collect

    def _header(self, block: Block) -> Packed:
        self._form = self._listener.form(block.frame) if block.frame is not None else None
        step = int(block.rows[-1][_STEP]) if block.rows else -1
        said = {"step": step, "count": len(block.rows), "sampled": block.frame is not None, "last": block.last}
        form = (self._form.digest, self._form.histograms) if self._form is not None else (0, 0)
        agreed = [*(int(said[name]) for name in _AGREED), *map(int, form)]
        cadence = self._listener.cadence() if self._place == 0 else 0
        return numbers([*agreed, *(-value for value in agreed), cadence, int(self._listener.raised())])

    def _collect_header(self, found: Packed) -> None:
        block = self._ready[0]
        count = len(_AGREED) + 2
        highest, lowest = found.tops[:count], -found.tops[count : 2 * count]
        cadence, alarm = (int(value) for value in found.tops[2 * count :])
        agree = highest == lowest
        if not agree[: len(_AGREED)].all():
            self._disagree(int(lowest[0]), int(highest[0]), ended=bool(highest[_AGREED.index("last")]))
            return
        if block.rows:
            self._listener.learned(int(block.rows[-1][_STEP]), cadence, alarm=bool(alarm))
        form = self._form
        if form is not None and not agree[len(_AGREED)]:
            form = None  # ranks that see different sites: the first one's frame stands for itself
        elif form is not None and not agree[-1]:
            form = replace(form, histograms=False)
        self._form = form
        self._begin(self._body(block, form), self._collect_body)

    def _disagree(self, low: int, high: int, *, ended: bool) -> None:
        if ended:
            self._part("the watching has ended on some of them", quietly=True)
        else:
            self._part(f"expected all of them to make the same steps; found one at step {low} where another was at step {high}")

    def _body(self, block: Block, form: Form | None) -> Packed:
        packer = Packer(self._place)
        losses = np.array([row[_LOSS] for row in block.rows], dtype=np.float64)
        packer.total(losses)
        packer.mean(np.square(np.array([row[_NORM] for row in block.rows], dtype=np.float64)))
        apart.pack(packer, np.array([losses.mean() if len(losses) else np.nan]))
        if form is not None and block.frame is not None:
            pooling.pack(packer, block.frame, form)
        return packer.done()

    def _collect_body(self, found: Packed) -> None:
        block, form = self._ready.popleft(), self._form
        if self._place == 0:
            self._tell(block, form, found)
        if block.last:
            self.leave()

    def _tell(self, block: Block, form: Form | None, found: Packed) -> None:
        unpacker = Unpacker(found)
        count = len(block.rows)
        losses, norms = unpacker.total(count) / self._ranks, np.sqrt(unpacker.mean(count))
        loss_apart = apart.unpack(unpacker, 1)
        frame = block.frame
        if frame is not None and form is not None:
            frame = pooling.unpack(unpacker, frame, form, self._ranks)
            frame = pooling.with_loss_apart(frame, loss_apart)
        rows = [_with(row, loss, norm) for row, loss, norm in zip(block.rows, losses.tolist(), norms.tolist(), strict=True)]
        self._listener.told(frame, rows)

    def _part(self, why: str, *, quietly: bool = False) -> None:
        self.leave()
        left = [*self._ready]
        if self._rows:
            left.append(Block(tuple(self._rows), None))
        self._ready.clear()
        self._rows = []
        self._listener.parted(why, left, quietly=quietly)


def _with(row: Row, loss: float, norm: float) -> Row:
    changed = list(row)
    changed[_LOSS] = loss
    changed[_NORM] = norm
    return tuple(changed)
