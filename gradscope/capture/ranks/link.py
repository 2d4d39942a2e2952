"""The wire between the ranks that train together: a gloo group of gradscope's own, on which nothing waits unasked.

It is no group of ``torch.distributed``'s registry: nobody else's collectives run on it, and nothing of the program's groups
changes by it. A collective that a rank has begun goes on in gloo's own threads, whatever the training does meanwhile.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from threading import Thread
from time import monotonic
from typing import Any
from typing import Protocol
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from gradscope.capture.ranks.company import Company
from gradscope.capture.ranks.company import common_store
from gradscope.capture.ranks.packing import Packed

MEETING_SECONDS = 30  # that the ranks have to make the group
PATIENCE_SECONDS = 1800  # that a collective goes on in the background at most; torch's own default


class LinkBroken(Exception):
    """A rank is gone, or does not come."""


class Pending(Protocol):
    """Numbers on their way to all ranks and back."""

    def is_done(self) -> bool:
        """Whether they are back. Raises LinkBroken."""

    def wait(self, seconds: float) -> None:
        """Raises LinkBroken where they are not back by then."""

    @property
    def found(self) -> Packed:
        """What all ranks came to, once it is done."""


class Link(Protocol):
    def start(self, given: Packed) -> Pending:
        """Begin to sum up over all ranks: every rank begins the same, in the same order. Waits for nothing."""

    def close(self) -> None:
        """Leave: what the others begin from now on fails at once. Waits for nothing."""


@final
class _OnGloo:
    def __init__(self, works: Sequence[Any], found: Packed) -> None:
        self._works = works
        self.found = found  # the memory of the host that gloo works in

    def is_done(self) -> bool:
        if not all(work.is_completed() for work in self._works):
            return False
        self.wait(1.0)  # raises what went wrong, if anything
        return True

    def wait(self, seconds: float) -> None:
        until = monotonic() + seconds
        try:
            for work in self._works:
                work.wait(datetime.timedelta(seconds=max(until - monotonic(), 0.001)))
        except RuntimeError as error:
            raise LinkBroken(str(error).partition("\n")[0]) from None


@final
class GlooLink:
    """Made by all ranks at the same place in their programs: that waits for the others. Raises LinkBroken."""

    def __init__(self, company: Company, name: str) -> None:
        store = distributed.distributed_c10d.PrefixStore(f"{name}/gloo", common_store())
        try:
            self._group: Any = distributed.ProcessGroupGloo(
                store, company.place, company.size, datetime.timedelta(seconds=MEETING_SECONDS)
            )
        except RuntimeError as error:
            raise LinkBroken(str(error).partition("\n")[0]) from None
        self._under_way: list[Any] = []

    def start(self, given: Packed) -> Pending:
        found = Packed(given.sums.copy(), given.tops.copy())
        pairs = ((found.sums, distributed.ReduceOp.SUM), (found.tops, distributed.ReduceOp.MAX))
        try:
            works = [self._reduce(torch.from_numpy(values), way) for values, way in pairs if values.size]
        except RuntimeError as error:
            raise LinkBroken(str(error).partition("\n")[0]) from None
        self._under_way = [work for work in self._under_way if not work.is_completed()] + works
        return _OnGloo(works, found)

    def _reduce(self, tensor: torch.Tensor, way: Any) -> Any:
        options = distributed.AllreduceOptions()
        options.reduceOp = way
        options.timeout = datetime.timedelta(seconds=PATIENCE_SECONDS)
        return self._group.allreduce([tensor], options)

    def close(self) -> None:
        group, self._group = self._group, None
        under_way = [work for work in self._under_way if not work.is_completed()]
        if under_way and group is not None:
            # To let go of a group waits for what it has under way. A daemon may wait; at exit it is just not there any more.
            Thread(target=_outlast, args=(group, under_way), daemon=True, name="gradscope-leaving").start()


def _outlast(group: Any, works: Sequence[Any]) -> None:
    """Hold a group until nothing is under way on it any more."""
    with contextlib.suppress(RuntimeError):
        for work in works:
            work.wait(datetime.timedelta(seconds=PATIENCE_SECONDS))
    del group


def numbers(given: npt.ArrayLike) -> Packed:
    """Whole numbers of which the maximum over the ranks is wanted."""
    return Packed(np.zeros(0), np.asarray(given, dtype=np.int64))
