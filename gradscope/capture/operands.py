"""What autograd nodes saved of their operands: factors, labels, shapes."""

from __future__ import annotations

from typing import Any

import torch

from gradscope.capture.graph import saved_tensor
from gradscope.capture.graph import short_name
from gradscope.capture.graph import source_of
from gradscope.capture.transfer import number_at_hand


def shape_of(handle: Any) -> tuple[int, ...]:
    metadata = handle._input_metadata
    return tuple(metadata[0].shape) if metadata else ()


def one_operand(handle: Any) -> tuple[Any, torch.Tensor | None]:
    """What made the one operand of a product that has a gradient, and the other."""
    if short_name(handle) != "Mul" or len(handle.next_functions) != 2:
        return None, None
    (left, _), (right, _) = handle.next_functions
    if (left is None) == (right is None):
        return None, None
    return source_of(handle, 0 if right is None else 1), saved_tensor(handle, "other" if right is None else "self")


def operand(handle: Any, name: str) -> torch.Tensor | float | None:
    value = getattr(handle, "_saved_other", None) if name == "other" and handle.name().endswith("1") else None
    return float(value) if isinstance(value, int | float) else saved_tensor(handle, name)


def constant_factor(name: str, handle: Any) -> float | None:
    """The number on the host that a node multiplies its operand with, if that is all it does."""
    if name not in ("Mul", "Div") or handle.next_functions[0][0] is None:
        return None
    if len(handle.next_functions) > 1 and handle.next_functions[1][0] is not None:
        return None
    other = operand(handle, "other")
    value = number_at_hand(other) if other is not None else None
    if value is None:
        return None
    return value if name == "Mul" else (1 / value if value else None)


def labels_of(picked: Any) -> torch.Tensor | None:
    """The class of each sample, where ``gather`` picked it out; what x[rows, classes] saved is not looked at."""
    index = saved_tensor(picked, "index") if short_name(picked) == "Gather" else None
    return None if index is None else index.reshape(-1)


def may_be_loss_scale(factor: torch.Tensor) -> bool:
    """A GradScaler's is a float32 scalar; Python's numbers come as int64 and float64."""
    return factor.dtype is torch.float32 and factor.dim() == 0
