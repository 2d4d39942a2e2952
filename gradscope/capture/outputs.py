"""What a module put out: which of its tensors is sampled, and what the dimensions of that mean."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import fields
from dataclasses import is_dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from gradscope.capture.sampling import Axes

# Bound once: between two operations of a training every name that is looked up costs a miss of the caches.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by vmap or grad of torch.func


def can_be_sampled(tensor: torch.Tensor) -> bool:
    kind = type(tensor)
    if kind is not torch.Tensor and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False  # a fake or distributed tensor, whose values are not here
    if tensor.is_meta or is_wrapped(tensor):
        return False
    return tensor.layout is torch.strided and tensor.is_floating_point() and tensor.numel() > 0


def largest(output: Any) -> torch.Tensor | None:
    """The floating-point tensor of an output of any make-up (tuple, dict, dataclass) that holds the most elements."""
    found = [leaf for leaf in _tensors(output) if leaf.is_floating_point()]
    return max(found, key=torch.Tensor.numel, default=None)


def has_tensor(output: Any) -> bool:
    """Whether there is a tensor in an output of any make-up."""
    return bool(_tensors(output))


def _tensors(output: Any) -> list[torch.Tensor]:
    """Those that its structure holds; where it holds none, those that stand in objects as attributes: a distribution's, say."""
    held = list(leaves(output))
    found = [leaf for leaf in held if isinstance(leaf, torch.Tensor)]
    return found or [value for leaf in held for value in _attributes(leaf) if isinstance(value, torch.Tensor)]


def _attributes(thing: Any) -> list[Any]:
    try:
        return list(vars(thing).values())
    except TypeError:  # it has none
        return []


def leaves(tree: Any, *, depth: int = 4) -> Iterator[Any]:
    leaf: Any
    for leaf in tree_leaves(tree):
        if depth and is_dataclass(leaf) and not isinstance(leaf, type):
            yield from leaves([getattr(leaf, part.name, None) for part in fields(leaf)], depth=depth - 1)
        else:
            yield leaf


def axes_of(shape: Iterable[int], unit: int, batch: int) -> Axes:
    dimensions = len(tuple(shape))
    if dimensions == 0:
        return Axes(None, None)
    if dimensions == 1:  # features of one sample, or one feature of a batch; either way no unit shares a batch with another
        return Axes(0, None)
    return Axes(min(unit, dimensions - 1), batch if batch != unit else None)
