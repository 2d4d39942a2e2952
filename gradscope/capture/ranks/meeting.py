"""Whether all ranks that train together watch, found out without ever waiting for one that does not.

``if rank == 0: gradscope.attach(model)`` is common. So a rank that attaches leaves a mark in the group's store, and asks for
nobody's. When the first step is over, every rank that will attach has done so, as that step's gradients came from all of them:
the first rank looks, and writes down whether all marks are there. When the second is over, that is written, and all read it.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal
from typing import final

from gradscope.capture.ranks.company import Company
from gradscope.capture.ranks.company import common_store

Outcome = Literal["together", "apart", "first alone"]


@final
class Titles:
    """How often this process has attached under each name: ranks find one another by both. One instance, in this module."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, title: str) -> str:
        self._counts[title] += 1
        return f"gradscope/{title}/{self._counts[title]}"


TITLES = Titles()


@final
class Meeting:
    """The marks in the store. No call waits for another rank; each asks the store once or twice."""

    def __init__(self, company: Company, name: str) -> None:
        self._company = company
        self.name = f"{name}/{'-'.join(map(str, company.ranks[:2]))}x{company.size}"
        self._store = common_store()

    def arrive(self) -> None:
        """Leave this rank's mark."""
        self._store.add(self._of(self._company.rank), 1)  # answers, so that the mark is there when this returns

    def look(self) -> None:
        """After the first step: the first rank writes down what it finds."""
        if self._company.place == 0:
            all_here = all(self._store.check([self._of(rank)]) for rank in self._company.ranks)
            self._store.add(f"{self.name}/{'together' if all_here else 'apart'}", 1)

    def outcome(self) -> Outcome:
        """After the second step: what was written. Where nothing was, the first rank does not watch."""
        if self._store.check([f"{self.name}/together"]):
            return "together"
        others = [rank for rank in self._company.ranks if rank != self._company.rank]
        alone = self._company.place == 0 and not any(self._store.check([self._of(rank)]) for rank in others)
        return "first alone" if alone else "apart"

    def _of(self, rank: int) -> str:
        return f"{self.name}/here/{rank}"
