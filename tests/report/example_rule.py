"""A rule that is in no catalogue, for tests of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

from gradscope.records import Hit
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class ExampleRule(Rule):
    """The example happens.

    ## What it does

    It stands for all others.

    ## References

    None.
    """

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("pulse.loss", "fact.wiring")
    least_steps: ClassVar[int] = 3
    explains: ClassVar[tuple[str, ...]] = ("loss-plateau",)

    share: float = 0.5  # of the steps, a | b
    silent: int = 2

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        yield from ()
