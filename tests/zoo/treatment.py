"""Running the code of a remedy at its place in a program's loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from typing import final

import torch
from torch import nn

# Where code may stand: before the loop; with a batch's x and y; instead of the forward pass; where the loss is worked out;
# between backward() and step(), instead of what clips there; instead of zero_grad(), backward(), step() and what follows
# these; instead of a validation.
PLACES = ("start", "batch", "forward", "loss", "gradients", "step", "validation")

# Lines in a remedy's code that say where what stands below them goes.
MARKS = {
    "# and in each step:": "gradients",
    "# and in the forward pass:": "forward",
    "# and in place of backward() and step():": "step",
}


@final
@dataclass(frozen=True)
class Treatment:
    """A remedy's code and where it stands. It sees the loop's names (model, optimizer, x, y, …) and may set them anew."""

    place: str
    code: str

    def stands_at(self, place: str) -> bool:
        return place in self._parts()

    def apply(self, place: str, names: dict[str, Any]) -> bool:
        """Run the code if this is its place, and say whether it was."""
        code = self._parts().get(place)
        if code is None:
            return False
        names.update(torch=torch, nn=nn, math=math)
        exec(compile(code, "<remedy>", "exec"), names)
        return True

    def _parts(self) -> dict[str, str]:
        parts, place = {self.place: ""}, self.place
        for line in self.code.splitlines(keepends=True):
            place = MARKS.get(line.strip(), place)
            parts[place] = parts.get(place, "") + line
        return parts


UNTREATED = Treatment("nowhere", "")
