"""What a model gave to its loss, worked out again at a few elements from what its last layer saved for the backward pass.

A cross-entropy saves log-probabilities and no logits, a loss that is written out by hand saves nothing but a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gradscope.capture.graph import saved_tensor
from gradscope.capture.graph import short_name
from gradscope.capture.operands import constant_factor

# Those that leave every element at its place in row-major order.
_IN_ORDER = frozenset("View UnsafeView Reshape ReshapeAlias Squeeze Unsqueeze Alias ToCopy Clone".split())
_SAVE_THEIR_RESULT = frozenset("Relu Sigmoid Tanh Softmax LogSoftmax Exp".split())
_CUTS = frozenset(("Slice", "Select", "Split", "Unbind"))  # what leaves some of the columns
_MOST_STEPS = 8


@dataclass(frozen=True)
class _Cut:
    """Which columns an operation has left of how many."""

    size: int
    kept: slice


@dataclass(frozen=True)
class Head:
    """A linear layer's result [rows, columns] times ``scale``, of which nothing but the operands is left."""

    inputs: torch.Tensor  # [rows, width]
    weight: torch.Tensor  # [columns, width]
    bias: torch.Tensor | None  # [columns]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs.shape[0], self.weight.shape[0]

    @property
    def width(self) -> int:
        """Elements to be read for each row."""
        return self.inputs.shape[1]

    @property
    def precision(self) -> float:
        """Relative error of its elements."""
        return torch.finfo(self.inputs.dtype).eps

    def columns(self, cut: _Cut) -> Head | None:
        """Some of the result's columns; None where the cut is of other columns, those of another shape."""
        if cut.size != self.weight.shape[0]:
            return None
        kept = cut.kept
        return Head(self.inputs, self.weight[kept], None if self.bias is None else self.bias[kept], self.scale)

    def block(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """These rows and columns of the result, float32."""
        inputs, weight = self.inputs.index_select(0, rows).float(), self.weight.index_select(0, columns).float()
        if self.bias is None:
            result = inputs @ weight.t()
        else:
            result = torch.addmm(self.bias.index_select(0, columns).float(), inputs, weight.t())
        return result if self.scale == 1 else result * self.scale


@dataclass(frozen=True)
class Kept:
    """A result that the operation which made it saved, times ``scale``; contiguous."""

    result: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        columns = self.result.shape[-1] if self.result.dim() > 1 else 1
        return self.result.numel() // columns, columns

    @property
    def width(self) -> int:
        return 1

    @property
    def precision(self) -> float:
        return torch.finfo(self.result.dtype).eps

    def block(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        result = self.result.view(self.shape).index_select(0, rows).index_select(1, columns).float()
        return result if self.scale == 1 else result * self.scale


def head_below(handle: Any, operand: int) -> Head | Kept | None:
    """What made an operand: a linear layer, or another operation that saved its result; None where neither did.

    Either stands for the operand element by element in row-major order. Looks through scaling by numbers, and through one cut
    that leaves some of the columns: the mean, say, of a layer that gives a mean and a variance.
    """
    scale, cut = 1.0, None
    for _ in range(_MOST_STEPS):
        inputs = handle.next_functions
        handle, part = inputs[operand] if operand < len(inputs) else (None, 0)
        if handle is None:
            return None
        name, operand = short_name(handle), 0
        if name in ("Addmm", "Mm"):
            head = _linear(name, handle, scale)
            return head if head is None or cut is None else head.columns(cut)
        if name in _CUTS:
            cut = _cut(name, handle, part) if cut is None else None
            if cut is None:
                return None
            continue
        if name in _SAVE_THEIR_RESULT:
            if cut is not None:
                return None
            result = saved_tensor(handle, "result")
            return Kept(result, scale) if result is not None and result.numel() and result.is_contiguous() else None
        if name not in _IN_ORDER:
            factor = constant_factor(name, handle)
            if factor is None:
                return None
            scale *= factor
    return None


def _cut(name: str, handle: Any, part: int) -> _Cut | None:
    """The columns that an operation leaves of its operand; None where it cuts along another axis, or leaves none."""
    source = handle.next_functions[0][0]
    metadata = source._input_metadata if source is not None else None
    shape = tuple(metadata[0].shape) if metadata else ()
    if len(shape) < 2 or _signed(handle._saved_dim) not in (-1, len(shape) - 1):
        return None
    size = shape[-1]
    if name == "Slice":
        found = slice(*(_signed(n) for n in (handle._saved_start, handle._saved_end, handle._saved_step)))
    elif name == "Split":
        found = slice(part * int(handle._saved_split_size), (part + 1) * int(handle._saved_split_size))
    else:
        index = (part if name == "Unbind" else _signed(handle._saved_index)) % size
        found = slice(index, index + 1)
    return _Cut(size, found) if range(*found.indices(size)) else None


def _signed(value: int) -> int:
    """Torch shows a negative number as an unsigned one."""
    return int(value) - (1 << 64) if value >= 1 << 63 else int(value)


def _linear(name: str, handle: Any, scale: float) -> Head | None:
    fused = name == "Addmm"
    if fused and (handle._saved_alpha != 1 or handle._saved_beta != 1):
        return None
    inputs = saved_tensor(handle, "mat1" if fused else "self")
    weight = saved_tensor(handle, "mat2")
    if weight is None:
        transposed = _leaf(handle, 2 if fused else 1, through=("T", "ToCopy"))
        weight = transposed.t() if transposed is not None and transposed.dim() == 2 else None
    bias = _leaf(handle, 0, through=("ToCopy",)) if fused else None
    if inputs is None or weight is None or (fused and (bias is None or bias.dim() != 1)):
        return None
    if inputs.shape[1] != weight.shape[0] or inputs.device != weight.device or not inputs.numel():
        return None
    return Head(inputs, weight.t(), bias, scale)


def _leaf(handle: Any, operand: int, *, through: tuple[str, ...]) -> torch.Tensor | None:
    source = handle.next_functions[operand][0]
    while source is not None and short_name(source) in through:
        source = source.next_functions[0][0]
    return source.variable if source is not None and short_name(source) == "AccumulateGrad" else None
