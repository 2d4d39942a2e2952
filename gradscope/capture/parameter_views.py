"""Where the sampled elements of parameters lie, and views of them that can be copied at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from gradscope.capture.arena import Arena
from gradscope.capture.arena import flat_view
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import Grid
from gradscope.capture.shards import local_of


@final
@dataclass(frozen=True)
class Sampled:
    """One parameter, its row in the arenas, and which of its elements are sampled."""

    name: str
    parameter: torch.nn.Parameter
    row: int
    pattern: Grid | Block
    shape: torch.Size  # of what lies on this rank
    device: torch.device

    def describes(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the parameter is still the one that the offsets were worked out for."""
        local = local_of(parameter)
        return parameter is self.parameter and local.shape == self.shape and local.device == self.device

    def fits(self, gradient: torch.Tensor) -> bool:
        """Whether the parameter's offsets pick the same elements of its gradient, of what lies here of both."""
        like = gradient.layout is torch.strided and gradient.shape == self.shape
        return like and gradient.stride() == local_of(self.parameter).stride() and gradient.device == self.device


@final
@dataclass(frozen=True)
class Views:
    """Views of the sampled elements of tensors, good for as long as these stay at their ``addresses``.

    Making a view takes as long as copying it.
    """

    addresses: tuple[int, ...]
    rows: tuple[int, ...]  # of the grids
    grids: tuple[torch.Tensor, ...]  # copied all in one call
    flats: tuple[tuple[int, torch.Tensor, Block], ...]  # row, flat view, elements

    def copy_into(self, arena: Arena) -> None:
        """Copy the elements into their rows, at the place that the arena is turned to."""
        for row, flat, block in self.flats:
            arena.select(row, flat, block)
        if self.rows:
            arena.copy(self.rows, self.grids)


def views_of(found: Sequence[tuple[Sampled, torch.Tensor]]) -> Views:
    """Views of the tensors that were found of some parameters: of themselves, or of their gradients."""
    grids: list[tuple[int, torch.Tensor]] = []
    flats: list[tuple[int, torch.Tensor, Block]] = []
    for t, tensor in found:
        if not tensor.numel():  # another rank holds all of it
            continue
        if isinstance(t.pattern, Grid):
            grids.append((t.row, tensor.detach().as_strided(t.pattern.shape, t.pattern.strides)))
        else:
            flats.append((t.row, flat_view(tensor.detach(), t.pattern), t.pattern))
    addresses = tuple([tensor.data_ptr() for _, tensor in found])
    return Views(addresses, tuple(row for row, _ in grids), tuple(view for _, view in grids), tuple(flats))
