"""Whose arguments are what the model is given: its own, or those of the first part that the program calls."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from typing import final

from gradscope.capture.slots import Slot
from gradscope.capture.slots import Watched


@final
class Entrance:
    """Learns it from the first sampled step in which anything was called: trainers call ``self.net(x)`` alone."""

    def __init__(self) -> None:
        self.path = ""  # of the part, where it is one
        self._settled = False
        self._since: int | None = None  # the forward pass with which the last sampled step began

    def begin(self, generation: int, watched: Collection[Watched], slots: Sequence[Slot]) -> None:
        """A sampled step begins with this forward pass; the last one is over."""
        if self._settled:
            return
        since, self._since = self._since, generation
        heard = {one.path for one in watched if since is not None and one.generation >= since}
        if heard:
            first = next((slot.site.path for slot in slots if slot.site.path in heard), "")
            self.path = min((path for path in heard if first == path or first.startswith(f"{path}.")), key=len, default="")
            self._settled = True

    def called_whole(self) -> None:
        """The model itself was called."""
        self.path = ""
        self._settled = True
