"""The loss as a function of the model's outputs, read from the graph between them, so that other outputs have a loss too."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import TypeAlias
from typing import final

import torch
from torch.nn import functional

from gradscope.capture.graph import saved_tensor

MOST_TERMS = 1000  # nodes between outputs and loss


@dataclass(frozen=True)
class Made:
    """What a loss is worked out from: the model's outputs, and its weights by the id of the parameter."""

    outputs: Sequence[torch.Tensor]
    weights: Mapping[int, torch.Tensor]


Term: TypeAlias = Callable[[Made], torch.Tensor]
Ends: TypeAlias = Mapping[tuple[Any, int], int]  # the autograd node that made an output, and which of its results -> place

_REDUCTIONS = ("none", "mean", "sum")
_SAME = frozenset(("Clone", "Contiguous", "Alias"))
_RESHAPED = frozenset(("View", "Reshape", "ReshapeAlias", "UnsafeView", "Squeeze", "Unsqueeze"))
_UNARY: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Neg": torch.neg, "Abs": torch.abs, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "T": torch.t,
    "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu, "LogSigmoid": functional.logsigmoid,
}  # fmt: skip


class NotUnderstood(Exception):
    """The way from the outputs to the loss holds something that cannot be worked out again. Says what, as a clause."""


def loss_again(loss: torch.Tensor, ends: Ends, outputs: Sequence[torch.Tensor]) -> Term:
    """What works out the loss of new outputs and weights. Raises NotUnderstood.

    ``outputs`` are the ones that ``loss`` was worked out from; from them the constants are told that the graph does not keep.
    Holds on to targets and the like, not to outputs or the graph.
    """
    if loss.grad_fn is None or loss.numel() != 1:
        raise NotUnderstood("backward() was not called on one number with a gradient")
    return _Reader(ends, [output.detach() for output in outputs]).term(loss.grad_fn, 0, None)


@final
class _Reader:
    """Goes from the loss down to the outputs, and puts together what goes up."""

    def __init__(self, ends: Ends, outputs: Sequence[torch.Tensor]) -> None:
        self._ends = ends
        self._seen = Made(outputs, {})
        self._known: dict[tuple[Any, int], Term] = {}

    def term(self, handle: Any, result: int, value: torch.Tensor | None) -> Term:
        """The function whose value is this node's result; ``value`` is what that result was, where a taker has saved it."""
        key = (handle, result)
        if key in self._ends:
            place = self._ends[key]
            return lambda made: made.outputs[place]
        if key not in self._known:
            if len(self._known) >= MOST_TERMS:
                raise NotUnderstood("too much lies between the model's output and the loss")
            self._known[key] = self._read(handle, value)
        return self._known[key]

    def _read(self, handle: Any, value: torch.Tensor | None) -> Term:
        name = handle.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward")
        if name == "AccumulateGrad":
            leaf = handle.variable
            return lambda made: made.weights.get(id(leaf), leaf)
        if name in ("Add", "Sub"):
            return self._sum(handle, -1.0 if name == "Sub" else 1.0, value)
        if name in ("Mul", "Div"):
            return self._product(handle, name)
        taken = self._operand(handle, 0)
        if name in _UNARY:
            operation = _UNARY[name]
            return lambda made: operation(taken(made))
        if name in _SAME:
            return taken
        move = _shaped(handle, name) or _reduced(handle, name) or _pointwise(handle, name) or self._loss(handle, name)
        if move is None:
            raise NotUnderstood(f"{name}, between the model's output and the loss, cannot be worked out again")
        return lambda made: move(taken(made), made)

    def _operand(self, handle: Any, place: int) -> Term:
        source = handle.next_functions[place] if place < len(handle.next_functions) else (None, 0)
        if source[0] is None:
            raise NotUnderstood("part of the loss has no gradient and is not kept in the graph")
        return self.term(source[0], source[1], saved_tensor(handle, ("self", "other")[place]))

    def _has(self, handle: Any, place: int) -> bool:
        return place < len(handle.next_functions) and handle.next_functions[place][0] is not None

    def _sum(self, handle: Any, sign: float, value: torch.Tensor | None) -> Term:
        """self + alpha · other. Where one has no gradient it is told by what their sum was."""
        factors = (1.0, sign * float(handle._saved_alpha))
        terms = [(self._operand(handle, i), factors[i]) for i in (0, 1) if self._has(handle, i)]
        if len(terms) == 2:
            (left, _), (right, factor) = terms
            return lambda made: left(made) + factor * right(made)
        if not terms:
            raise NotUnderstood("part of the loss has no gradient")
        term, weight = terms[0]
        if value is None:  # as in sum(losses), which begins with 0; were it another number, the loss would not come out right
            return lambda made: weight * term(made)
        with torch.no_grad():
            rest = value.detach() - weight * term(self._seen)
        return lambda made: weight * term(made) + rest

    def _product(self, handle: Any, name: str) -> Term:
        sides = [self._operand(handle, i) if self._has(handle, i) else _constant(handle, i) for i in (0, 1)]
        left, right = sides
        if name == "Mul":
            return lambda made: left(made) * right(made)
        return lambda made: left(made) / right(made)

    def _loss(self, handle: Any, name: str) -> _Step | None:
        make = _LOSSES.get(name)
        if make is None:
            return None
        formula = make(handle, _REDUCTIONS[handle._saved_reduction])
        if self._has(handle, 1):
            goal = self._operand(handle, 1)
            return lambda x, made: formula(x, goal(made))
        target = _kept(handle, "target")
        return lambda x, _: formula(x, target)


def _constant(handle: Any, place: int) -> Term:
    """A factor without a gradient: a number, or a tensor that the node saved."""
    value = getattr(handle, f"_saved_{('self', 'other')[place]}", None)
    if isinstance(value, int | float):
        return lambda _: torch.tensor(value, device="cpu")
    held = _kept(handle, ("self", "other")[place])
    return lambda _: held


def _kept(handle: Any, name: str) -> torch.Tensor:
    saved = saved_tensor(handle, name)
    if saved is None:
        raise NotUnderstood("part of the loss is not kept in the graph, or was changed since")
    return saved.detach()


def _perhaps(handle: Any, name: str) -> torch.Tensor | None:
    """A tensor that the node need not have: class weights, say."""
    return None if getattr(handle, f"_saved_{name}", None) is None else _kept(handle, name)


def _shaped(handle: Any, name: str) -> _Step | None:
    """What only moves elements about."""
    metadata = handle._input_metadata[0]
    shape, dtype = tuple(metadata.shape), metadata.dtype
    if name in _RESHAPED:
        return lambda x, _: x.reshape(shape)
    if name == "Expand":
        return lambda x, _: x.expand(shape)
    if name == "ToCopy":
        return lambda x, _: x.to(dtype)
    if name == "Transpose":
        first, second = _signed(handle._saved_dim0), _signed(handle._saved_dim1)
        return lambda x, _: x.transpose(first, second)
    if name == "Permute":
        order = [_signed(dimension) for dimension in handle._saved_dims]
        return lambda x, _: x.permute(order)
    return _picked(handle, name)


def _picked(handle: Any, name: str) -> _Step | None:
    if name == "Slice":
        dimension, stride = _signed(handle._saved_dim), int(handle._saved_step)
        start, end = _signed(handle._saved_start), _signed(handle._saved_end)
        return lambda x, _: x[(slice(None),) * (dimension % x.dim()) + (slice(start, end, stride),)]
    if name == "Select":
        dimension, index = _signed(handle._saved_dim), _signed(handle._saved_index)
        return lambda x, _: x.select(dimension, index)
    if name == "Gather":
        dimension, places = _signed(handle._saved_dim), _kept(handle, "index")
        return lambda x, _: x.gather(dimension, places)
    if name == "Index":
        chosen = tuple(slice(None) if index is None else index for index in handle._saved_indices)
        return lambda x, _: x[chosen]
    return None


def _reduced(handle: Any, name: str) -> _Step | None:
    if name not in ("Sum", "Mean"):
        return None
    reduce = torch.sum if name == "Sum" else torch.mean
    dimensions = getattr(handle, "_saved_dim", None)
    if dimensions is None:
        return lambda x, _: reduce(x)
    order, keeps = [_signed(dimension) for dimension in dimensions], bool(handle._saved_keepdim)
    return lambda x, _: reduce(x, order, keepdim=keeps)


def _pointwise(handle: Any, name: str) -> _Step | None:
    if name == "Pow":
        exponent = getattr(handle, "_saved_exponent", None)
        return (lambda x, _: x.pow(exponent)) if isinstance(exponent, int | float) else None
    if name in ("LogSoftmax", "Softmax"):
        dimension = _signed(handle._saved_dim)
        soften = torch.log_softmax if name == "LogSoftmax" else torch.softmax
        return lambda x, _: soften(x, dimension)
    if name == "MaskedFill":  # as cross-entropy with label smoothing leaves out what is ignored
        mask = _kept(handle, "mask")
        return lambda x, _: x.masked_fill(mask, 0.0)
    return None


def _nll(handle: Any, reduction: str) -> _Formula:
    weight, ignored = _perhaps(handle, "weight"), _signed(handle._saved_ignore_index)
    return lambda x, target: functional.nll_loss(x, target, weight, ignore_index=ignored, reduction=reduction)


def _mse(_: Any, reduction: str) -> _Formula:
    return lambda x, target: functional.mse_loss(x, target, reduction=reduction)


def _smooth_l1(handle: Any, reduction: str) -> _Formula:
    beta = float(handle._saved_beta)
    return lambda x, target: functional.smooth_l1_loss(x, target, reduction=reduction, beta=beta)


def _huber(handle: Any, reduction: str) -> _Formula:
    delta = float(handle._saved_delta)
    return lambda x, target: functional.huber_loss(x, target, reduction=reduction, delta=delta)


def _bce(handle: Any, reduction: str) -> _Formula:
    weight = _perhaps(handle, "weight")
    return lambda x, target: functional.binary_cross_entropy(x, target, weight, reduction=reduction)


def _bce_with_logits(handle: Any, reduction: str) -> _Formula:
    weight, positive = _perhaps(handle, "weight"), _perhaps(handle, "pos_weight")
    return lambda x, target: functional.binary_cross_entropy_with_logits(
        x, target, weight, reduction=reduction, pos_weight=positive
    )


_Step: TypeAlias = Callable[[torch.Tensor, Made], torch.Tensor]
_Formula: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_LOSSES: Mapping[str, Callable[[Any, str], _Formula]] = {
    "NllLoss": _nll, "NllLoss2D": _nll, "MseLoss": _mse, "SmoothL1Loss": _smooth_l1, "HuberLoss": _huber,
    "BinaryCrossEntropy": _bce, "BinaryCrossEntropyWithLogits": _bce_with_logits,
}  # fmt: skip


def _signed(number: int) -> int:
    """Torch gives a negative index of a node as the 64-bit number without a sign."""
    return number - 2**64 if number >= 2**63 else int(number)
