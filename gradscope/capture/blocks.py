"""The blocks of elements that stand for outputs and inputs, each worked out once for a shape and layout."""

from __future__ import annotations

from typing import Any
from typing import final

import torch

from gradscope.capture.outputs import axes_of
from gradscope.capture.sampling import Axes
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import block
from gradscope.capture.slots import Slot
from gradscope.capture.slots import Watched

MOST_BLOCKS = 4096  # cached sets of offsets; sequence lengths that vary without end start it afresh

_LAST_DIMENSION = frozenset({"linear", "embedding", "recurrent", "attention"})


@final
class Blocks:
    """Which elements of each output and input are sampled, so many of each unit."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._blocks: dict[tuple[Any, ...], Block] = {}
        self._unit_axes: dict[tuple[int, ...], int] = {}  # by shape, as modules that declare theirs have shown

    def of_output(self, slot: Slot, watched: Watched, tensor: torch.Tensor) -> Block:
        """The block of an output whose layout is not that of the slot's last one; the slot remembers it."""
        shape = tuple(tensor.shape)
        if watched.role in _LAST_DIMENSION:
            self._unit_axes[shape] = len(shape) - 1
        elif watched.role == "conv":
            self._unit_axes[shape] = 1
        unit = self._unit_axes.get(shape, _usual_unit(tensor))
        return self._remembered(slot, tensor, axes_of(shape, unit, watched.batch_axis))

    def of_input(self, slot: Slot, tensor: torch.Tensor) -> Block:
        """The same of what the model is given."""
        return self._remembered(slot, tensor, axes_of(tensor.shape, _usual_unit(tensor), 0))

    def of(self, tensor: torch.Tensor, axes: Axes) -> Block:
        """The block of any tensor whose axes are known."""
        key = (tensor.shape, tensor.stride(), axes.unit, axes.batch, tensor.device)
        found = self._blocks.get(key)
        if found is None:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            found = self._blocks[key] = block(tuple(tensor.shape), tensor.stride(), axes, self._samples, tensor.device)
        return found

    def _remembered(self, slot: Slot, tensor: torch.Tensor, axes: Axes) -> Block:
        found = self.of(tensor, axes)
        slot.axes = axes
        slot.remember(tensor, found)
        return found


def _usual_unit(tensor: torch.Tensor) -> int:
    return 1 if tensor.dim() > 3 else tensor.dim() - 1
