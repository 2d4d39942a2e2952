"""Recognising loss functions in the autograd graph, and what the root was scaled with on the way to them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

import torch

from gradscope.capture.graph import TRANSPARENT
from gradscope.capture.graph import saved_tensor
from gradscope.capture.graph import short_name
from gradscope.capture.graph import source_of
from gradscope.capture.operands import labels_of
from gradscope.capture.operands import may_be_loss_scale
from gradscope.capture.operands import one_operand
from gradscope.capture.operands import operand
from gradscope.capture.operands import shape_of
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.transfer import number_at_hand

FUSED = {
    "NllLoss": "nll", "NllLoss2D": "nll", "MseLoss": "mse", "SmoothL1Loss": "smooth_l1", "HuberLoss": "smooth_l1",
    "BinaryCrossEntropy": "bce", "BinaryCrossEntropyWithLogits": "bce_with_logits", "SoftMarginLoss": "soft_margin",
    "CtcLoss": "ctc", "CudnnCtcLoss": "ctc",
}  # fmt: skip
DIFFERENCES = frozenset(("Sub", "Rsub"))
_MOST_UNKNOWN = 3  # nodes that losses are not made of between the root and a fused loss
_REDUCTIONS = ("none", "mean", "sum")
_MARGINS = {
    "ClampMin": "hinge", "Clamp": "hinge", "Relu": "hinge", "Maximum": "hinge",
    "Softplus": "soft_margin", "LogSigmoid": "soft_margin",
}  # fmt: skip
_PICKED = frozenset(("Gather", "Index"))  # each sample's own class, of all
_HANDED_ON = TRANSPARENT | frozenset("Select Stack Cat Unbind Where Index IndexSelect MaskedSelect MaskedFill".split())


@dataclass(frozen=True)
class Found:
    """A loss function in a graph that has not been freed, and what it saved. Keep it no longer than the graph."""

    kind: str
    node: str  # LossInfo.node
    reduction: str
    handle: Any  # the node that compares what the model gave with the target
    factor: float  # derivative of the root by this loss, what ``scales`` say aside; NaN where it is no constant
    scales: tuple[tuple[torch.Tensor, bool], ...] = ()  # scalars on a device that it was multiplied with, or divided by
    saved: torch.Tensor | None = None  # what the loss took: log-probabilities in the case of a cross-entropy
    target: torch.Tensor | None = None
    source: Any = None  # the node that made the model's output
    outputs: tuple[Any, int] | None = None  # the node, and which of its operands, that took the output as it was
    difference: torch.Tensor | None = None  # of output and target, where a loss written out saved nothing else
    sign: float = 0.0  # 1 where the difference is output - target, -1 where it is target - output

    @property
    def classes(self) -> int | None:
        """How many classes its labels or class probabilities are of."""
        if self.saved is None or not self.saved.dim() or self.kind not in ("cross_entropy", "nll"):
            return None
        return int(self.saved.shape[1 if self.saved.dim() > 1 else 0])

    @property
    def labelled(self) -> bool:
        """Whether the target holds class labels."""
        return self.node in ("NllLoss", "NllLoss2D", "Gather")


@dataclass(frozen=True)
class _Path:
    """What lies between the root and a node."""

    node: str
    scale_seen: bool = False  # whether a GradScaler was at work before
    factor: float = 1.0
    scales: tuple[tuple[torch.Tensor, bool], ...] = ()
    reduction: str = "none"
    masked: bool = False  # whether single elements were weighed
    outer: float = 1.0  # the factor before they were
    learned: bool = False  # whether they were weighed with what the model itself gave, a variance say
    unknown: int = 0  # nodes on the way that losses are not made of


def find_losses(root: Any, *, most: int, scale_seen: bool = False) -> Iterator[Found]:
    """Loss functions below ``root``, nearest first, whatever they were scaled with; looks at ``most`` nodes.

    ``scale_seen`` is ``PulseMaker.scale_seen``.
    """
    queue: deque[tuple[Any, _Path]] = deque([(root, _Path(node=short_name(root), scale_seen=scale_seen))])
    seen = 0
    while queue and seen < most:
        handle, path = queue.popleft()
        seen += 1
        name = short_name(handle)
        found = _recognised(name, handle, path)
        if found is not None:
            yield _settled(found)
        else:
            queue.extend(_below(name, handle, path))


def terms(compared: torch.Tensor | None) -> tuple[int, ...]:
    """The numbers by which a sum over elements is divided to be called a mean."""
    if compared is None or not compared.numel():
        return ()
    count, shape = compared.numel(), tuple(compared.shape)
    return tuple(dict.fromkeys((count, *shape[:1], *(count // size for size in (*shape[1:2], *shape[-1:])))))


def _settled(found: Found) -> Found:
    """A sum that is divided by the number of its terms is a mean."""
    if found.reduction != "sum" or not math.isfinite(found.factor):
        return found
    counts = terms(found.target if found.target is not None else found.difference)
    divided = any(abs(found.factor * count - 1) < 1e-3 for count in counts if count > 1)
    return replace(found, reduction="mean", factor=1.0) if divided else found


# -- what a loss is


def _recognised(name: str, handle: Any, path: _Path) -> Found | None:
    if name in FUSED:
        return _fused(name, handle, path)
    if path.unknown:
        return None
    if name in ("Pow", "Abs", "Mul"):
        return _compared(name, handle, path) or (_soft(handle, path) if name == "Mul" else None)
    if name == "Sub":
        return _divergence(handle, path) or _likelihood(name, handle, path)
    if name in _PICKED:
        return _likelihood(name, handle, path)
    if name in _MARGINS:
        return _margin(name, handle, path)
    return _gaussian(handle, path) if name == "Add" else None


def _fused(name: str, handle: Any, path: _Path) -> Found:
    kind, source, outputs = FUSED[name], source_of(handle, 0), handle
    if kind == "nll" and source is not None and short_name(source) == "LogSoftmax":
        kind, source, outputs = "cross_entropy", source_of(source, 0), source
    own = getattr(handle, "_saved_reduction", 0)
    own = _REDUCTIONS[own] if own in (0, 1, 2) else "none"
    return Found(
        kind=kind,
        node=name,
        reduction=_reduction(path) if own == "none" else own,
        handle=handle,
        factor=path.factor,
        scales=path.scales,
        saved=saved_tensor(handle, "log_probs" if kind == "ctc" else "self"),
        target=saved_tensor(handle, "target"),
        source=source,
        outputs=(outputs, 0),
    )


def _compared(name: str, handle: Any, path: _Path) -> Found | None:
    """(output - target)² or |output - target|, written out by hand, or as l1_loss does it."""
    operands = handle.next_functions
    if name == "Pow" and getattr(handle, "_saved_exponent", None) != 2:
        return None
    if name == "Mul" and (len(operands) != 2 or operands[0] != operands[1]):
        return None
    difference, learned = source_of(handle, 0), path.learned
    if difference is not None and short_name(difference) == "Div" and difference.next_functions[1][0] is not None:
        difference, learned = source_of(difference, 0), True  # ((output - target) / deviation)²
    if difference is None or short_name(difference) not in DIFFERENCES:
        return None
    first, second = source_of(difference, 0), source_of(difference, 1)
    if short_name(first or second) == "AccumulateGrad":
        return None  # a parameter that is drawn to where it was: a penalty
    plain = short_name(difference) == "Sub" and (first is None) != (second is None) and source_of(handle, 0) == difference
    kind = "laplace_nll" if name == "Abs" else "gaussian_nll"
    bare = abs(path.outer if path.masked else path.factor) == 1  # else it may be divided by the number of its terms
    reduction = path.reduction if path.reduction == "mean" or bare else "none"
    found = _written_out("l1" if name == "Abs" else "mse", handle, path)
    return replace(
        replace(found, kind=kind, reduction=reduction) if learned else found,
        source=first or second,
        outputs=(difference, 0 if first is not None else 1),
        difference=saved_tensor(handle, "self") if plain else None,
        sign=(1.0 if second is None else -1.0) if plain else 0.0,
    )


def _soft(handle: Any, path: _Path) -> Found | None:
    """Class probabilities times log-probabilities: cross_entropy with soft targets; target · (log target - input): kl_div."""
    inner, target = one_operand(handle)
    if inner is None or target is None or target.numel() < 2:
        return None
    name = short_name(inner)
    if name == "LogSoftmax" and tuple(target.shape) == shape_of(inner):
        entropy = _written_out("cross_entropy", handle, path)
        result = saved_tensor(inner, "result")
        source = source_of(inner, 0)
        return replace(entropy, factor=-path.factor, saved=result, target=target, source=source, outputs=(inner, 0))
    if name == "Sub" and inner.next_functions[0][0] is None:
        source = source_of(inner, 1)
        if source is not None and short_name(source) == "LogSoftmax":
            found = _written_out("kl_div", handle, path)
            return replace(found, saved=saved_tensor(source, "result"), target=target, source=source)
    return None


def _likelihood(name: str, handle: Any, path: _Path) -> Found | None:
    """log_softmax(output) at each sample's class, or logsumexp(output) less the output there: cross_entropy.

    Not where samples are weighed one by one, as a policy gradient weighs them with what their actions have brought.
    """
    if path.masked or path.learned or not math.isfinite(path.factor):
        return None
    if name == "Sub":
        total, picked, sign = source_of(handle, 0), source_of(handle, 1), 1.0
        picked = source_of(picked, 0) if picked is not None and short_name(picked) == "Select" else picked
        if total is None or picked is None or short_name(total) != "Logsumexp" or short_name(picked) not in _PICKED:
            return None
        source = source_of(total, 0)
        if source is None or source_of(picked, 0) is not source:
            return None
    else:
        total, picked, sign = source_of(handle, 0), handle, -1.0
        if total is None or short_name(total) != "LogSoftmax":
            return None
        source = source_of(total, 0)
    labels = labels_of(picked)
    found = replace(_written_out("cross_entropy", handle, path), factor=sign * path.factor, source=source)
    result = saved_tensor(total, "result")
    if labels is None or result is None or result.dim() != 2 or labels.numel() != len(result):
        return found
    return replace(found, node=short_name(picked), saved=result, target=labels, outputs=(total, 0))


def _divergence(handle: Any, path: _Path) -> Found | None:
    """target · log target - target · input: kl_div; exp(input) - target · input: poisson_nll_loss."""
    if len(handle.next_functions) != 2:
        return None
    (left, _), (right, _) = handle.next_functions
    if right is None or short_name(right) != "Mul" or right.next_functions[0][0] is not None:
        return None
    source, target = one_operand(right)
    if source is None or target is None or target.dim() < 1 or shape_of(handle) != tuple(target.shape):
        return None
    if left is None:
        result = saved_tensor(source, "result")
        found = _written_out("kl_div", handle, path)
        return replace(found, saved=result, target=target, source=source, outputs=(right, 1))
    if short_name(left) == "Exp" and source_of(left, 0) is source:
        found = _written_out("poisson_nll", handle, path)
        return replace(found, target=target, source=source, outputs=(right, 1))
    return None


def _gaussian(handle: Any, path: _Path) -> Found | None:
    """log variance + (output - target)² / variance: gaussian_nll_loss, twice over."""
    operands = [source for source, _ in handle.next_functions]
    if len(operands) != 2 or None in operands or [short_name(operand) for operand in operands] != ["Log", "Div"]:
        return None
    square = source_of(operands[1], 0)
    if square is None or short_name(square) != "Pow":
        return None
    found = _compared("Pow", square, path)
    return replace(found, kind="gaussian_nll", factor=2 * path.factor, handle=handle) if found is not None else None


def _margin(name: str, handle: Any, path: _Path) -> Found | None:
    """max(0, m - target · output) and log(1 + exp(-target · output)), for labels of -1 and 1."""
    below = next((source for place in (0, 1) if (source := source_of(handle, place)) is not None), None)
    if _MARGINS[name] == "hinge":
        difference = below is not None and short_name(below) in ("Add", *DIFFERENCES)
        operands = [source_of(below, place) for place in (0, 1)] if difference else []
        below = next((source for source in operands if source is not None), None) if None in operands else None
    for _ in range(2):
        below = source_of(below, 0) if below is not None and short_name(below) == "Neg" else below
    source, target = one_operand(below) if below is not None else (None, None)
    if source is None or target is None or target.numel() < 2 or tuple(target.shape) != shape_of(below):
        return None
    if short_name(source) == "Neg":
        source = source_of(source, 0)
    found = _written_out(_MARGINS[name], handle, path)
    return replace(found, target=target, source=source, factor=-path.factor if name == "LogSigmoid" else path.factor)


def _written_out(kind: str, handle: Any, path: _Path) -> Found:
    return Found(kind, path.node, _reduction(path), handle, path.factor, path.scales)


def _reduction(path: _Path) -> str:
    return "none" if path.masked else path.reduction


# -- the way from the root to a loss


def _below(name: str, handle: Any, path: _Path) -> list[tuple[Any, _Path]]:
    """The operands that a loss may lie behind, each with the path to it."""
    sources = [source for source, _ in handle.next_functions]
    if name in ("Add", "Sub", "Rsub"):
        return _below_sum(name, handle, path, sources)
    if name == "Mul":
        pairs = zip(sources, ("other", "self"), strict=False)
        path = replace(path, learned=path.learned or (None not in sources and shape_of(handle) != ()))
        return [(s, _times(path, operand(handle, other), inverse=False)) for s, other in pairs if s is not None]
    if name == "Div" and sources[0] is not None:
        path = replace(path, learned=path.learned or (None not in sources and shape_of(handle) != ()))
        return [(sources[0], _times(path, operand(handle, "other"), inverse=True))]
    if name == "Neg":
        path = replace(path, factor=-path.factor)
    elif name in ("Mean", "Sum"):
        path = _reduced(name, handle, path)
    elif name not in _HANDED_ON:
        if path.unknown == _MOST_UNKNOWN:
            return []
        scalar = bool(handle._input_metadata) and not shape_of(handle)  # as the root of a mean square is
        path = replace(path, factor=math.nan, unknown=path.unknown + (0 if scalar else 1))
    return [(source, path) for source in sources if source is not None]


def _below_sum(name: str, handle: Any, path: _Path, sources: list[Any]) -> list[tuple[Any, _Path]]:
    smoothed = _smoothed(sources) if name == "Add" else None
    if smoothed is not None:
        return [(smoothed, path)]
    alpha = float(getattr(handle, "_saved_alpha", 1)) * (1 if name == "Add" else -1)
    other = path if alpha == 1 else replace(path, factor=path.factor * alpha)
    ways = (other, path) if name == "Rsub" else (path, other)  # 1 - x is Rsub
    return [(source, way) for source, way in zip(sources, ways, strict=False) if source is not None]


def _smoothed(sources: list[Any]) -> Any:
    """The likelihood in (1 - ε) · nll + ε/C · Σ: cross_entropy with label smoothing is one loss."""
    if len(sources) != 2 or None in sources or any(s.name() != "MulBackward1" for s in sources):
        return None
    likelihood = sources[0].next_functions[0][0]
    if likelihood is None or short_name(likelihood) not in ("NllLoss", "NllLoss2D"):
        return None
    saved = saved_tensor(likelihood, "self")
    if saved is None or not saved.dim():
        return None
    classes = saved.shape[1 if saved.dim() > 1 else 0]
    whole = float(sources[0]._saved_other) + float(sources[1]._saved_other) * classes
    return likelihood if abs(whole - 1) < 1e-6 else None


def _reduced(name: str, handle: Any, path: _Path) -> _Path:
    """The path through a mean or a sum: over elements of one loss, or over several losses that were stacked."""
    below = source_of(handle, 0)
    if below is not None and short_name(below) in ("Stack", "Cat"):
        return path if name == "Sum" else replace(path, factor=path.factor / max(len(below.next_functions), 1))
    inner = handle.next_functions[0][0]
    if inner is not None and math.prod(shape_of(inner)) == 1:
        return path
    return replace(path, node=name, reduction="mean" if "mean" in (path.reduction, name.lower()) else "sum")


def _times(path: _Path, factor: torch.Tensor | float | None, *, inverse: bool) -> _Path:
    if isinstance(factor, torch.Tensor) and factor.numel() != 1:
        return replace(path, factor=math.nan, masked=True, outer=path.outer if path.masked else path.factor)
    if factor is None:
        return replace(path, factor=math.nan)
    value = number_at_hand(factor)
    if value is None and isinstance(factor, torch.Tensor):
        return replace(path, scales=(*path.scales, (factor.detach().reshape(()), inverse)))
    value = math.nan if value is None else value
    by = factor if isinstance(factor, torch.Tensor) and not inverse else None  # what divides is a number of tokens, say
    if by is not None and may_be_loss_scale(by) and is_loss_scale(value, seen=path.scale_seen):
        return path
    if not inverse:
        return replace(path, factor=path.factor * value)
    return replace(path, factor=path.factor / value if value else math.nan)
