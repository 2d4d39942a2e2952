"""The sites of module outputs: where each one's samples lie, which elements they are, and which module's call they are of."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from typing import Protocol
from typing import final

import torch

from gradscope.capture.arena import Row
from gradscope.capture.outputs import is_wrapped
from gradscope.capture.sampling import Axes
from gradscope.capture.sampling import Block
from gradscope.records import Site

_strided = torch.strided  # bound once: between two operations every name that is looked up misses the caches


@final
@dataclass(slots=True)
class Watched:
    """A module that is watched, and where its calls stand in this forward pass."""

    module: weakref.ref[torch.nn.Module]
    path: str
    role: str
    batch_axis: int
    place: int  # among the model's modules, in the order of their definition
    sites: list[Slot]  # one for each call
    first: Slot | None  # of them
    generation: int = -1
    calls: int = 0
    element: int = 0  # of an output that is a tuple, the one that was sampled last

    def sampled_of(self, output: tuple[Any, ...]) -> Any:
        """What of such an output is likely to be sampled: where it is like the last one, nothing has to be looked for."""
        return output[self.element] if self.element < len(output) else None

    def remember(self, output: Any, tensor: torch.Tensor) -> None:
        """A tensor was chosen of an output."""
        if type(output) is tuple:
            self.element = next((place for place, part in enumerate(output) if part is tensor), len(output))


class Hanging(Protocol):
    """A hook on an output tensor."""

    generation: int  # of the forward pass that it hangs in

    def __call__(self, gradient: torch.Tensor) -> None: ...


Hung = tuple[Hanging, OrderedDict[Any, Any]]  # the hook, and the table of hooks with it alone


@final
class Slot:
    """A site's rows: one for the output, one for its gradient; which device they lie on shows at the first call."""

    __slots__ = ("_block", "_device", "_stride", "axes", "backward", "dtype", "forward", "generation", "hung", "node",
                 "place", "role", "shape", "site")  # fmt: skip

    def __init__(self, site: Site, role: str, place: int) -> None:
        self.site = site
        self.role = role
        self.place = place  # of its module, in the order of definition
        self.forward: Row | None = None
        self.backward: Row | None = None
        self.axes = Axes(None, None)  # of the output
        self.shape: torch.Size | None = None  # of the last output that was sampled, and for which the block was made
        self.dtype: torch.dtype | None = None
        self._stride: tuple[int, ...] = ()
        self._device: torch.device | None = None
        self._block: Block | None = None
        self.generation = -1  # of the forward pass whose output lies in the row
        self.hung: list[Hung] = []  # tables of hooks that hung on its outputs, those of the last output last
        self.node = -1  # sequence number of the autograd node that made the output, on steps whose graph is read

    def remember(self, tensor: torch.Tensor, block: Block) -> None:
        self.shape, self._stride, self.dtype, self._device = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
        self._block = block

    def block_of(self, tensor: torch.Tensor) -> Block | None:
        """The elements of a tensor that is like the last one, and can then be sampled: asked at every call, and cheap."""
        if type(tensor) is not torch.Tensor or tensor.layout is not _strided or is_wrapped(tensor):
            return None
        alike = tensor.shape == self.shape and tensor.stride() == self._stride and tensor.dtype is self.dtype
        return self._block if alike and tensor.device == self._device else None
