"""Which place of their rows the arenas are filled at, where a few steps are held back."""

from __future__ import annotations

from typing import final


@final
class Turn:
    """Which place of their rows some arenas are filled at: one for all that are filled together, so that a step that begins
    touches this alone.
    """

    __slots__ = ("began", "place", "stamp")

    def __init__(self, places: int) -> None:
        self.place = 0
        self.stamp = 0  # of what is filled now
        self.began = [0] * places  # by place: the stamp of what counts there; older ones are of steps that were handed on

    def to(self, place: int) -> None:
        """From now on this place of each row is filled, and counts as empty."""
        self.place = place
        self.stamp += 1
        self.began[place] = self.stamp

    def moved(self, place: int, to: int) -> None:
        """Every arena has brought what counts at one place to another."""
        self.began[to] = self.began[place]


@final
class Turns:
    """The turns of what is sampled of the parameters.

    What the optimizer leaves of a step stands a place further on than what it finds, so that the place before is the last
    step's; gradients are of one step alone.
    """

    def __init__(self, places: int) -> None:
        self.before, self.after, self.gradient = Turn(places), Turn(places + 1), Turn(1)
        self.to(0)

    def to(self, place: int) -> None:
        """A step begins."""
        self.before.to(place)
        self.after.to(place + 1)
        self.gradient.to(0)

    def let_go(self, held: int, *, amid: bool) -> None:
        """The arenas have moved what they hold; so many steps were handed on."""
        self.after.moved(held, 0)
        if amid:
            self.after.moved(held + 1, 1)
            self.before.moved(held, 0)
            self.after.place, self.before.place = 1, 0
