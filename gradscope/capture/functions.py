"""Models within the transforms of torch.func: what their wrapped tensors hold, and how to read it untransformed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gradscope.capture.outputs import can_be_sampled
from gradscope.capture.outputs import is_wrapped
from gradscope.capture.outputs import leaves
from gradscope.capture.shards import part_here

# What the transforms themselves are made of, in every version since torch 2.0.
_current = torch._C._functorch.peek_interpreter_stack  # the innermost transform under way, or None
_enter = torch._C._functorch.push_dynamic_layer_stack
_leave = torch._C._functorch.pop_dynamic_layer_stack
_holds_one = torch._C._functorch.is_gradtrackingtensor  # a wrapper of grad, vjp or jvp
_held = torch._C._functorch.get_unwrapped


def is_within() -> bool:
    """Whether a transform is under way."""
    return _current() is not None


def bare(tensor: torch.Tensor) -> torch.Tensor | None:
    """What the wrappers of grad, vjp and jvp hold, without its graph; None in those of vmap, and what is not wrapped as it is.

    Its numbers can be read ``outside`` alone.
    """
    held = tensor
    while is_wrapped(held):
        if not _holds_one(held):
            return None
        held = _held(held)
    if held is tensor:
        return tensor
    with outside():
        return held.detach()


def numbers_of(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """Of what a module was given the tensors whose numbers can be sampled."""
    plain = len(args) == 1 and not kwargs and type(args[0]) is torch.Tensor  # the rule
    given = args if plain else leaves((args, kwargs))
    bared = [held for leaf in given if isinstance(leaf, torch.Tensor) and (held := bare(leaf)) is not None]
    return [part for tensor in bared if (part := part_here(tensor)) is not None and can_be_sampled(part)]


@contextmanager
def outside() -> Iterator[None]:
    """No transform is under way: what is read and written within is seen by none, and is none of its own tensors."""
    left: list[Any] = []
    try:
        while _current() is not None:
            left.append(_leave())
        yield
    finally:
        while left:
            _enter(left.pop())
