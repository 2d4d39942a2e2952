"""The contract between model and loss, read from the nodes nearest to the loss."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gradscope.capture.graph import TRANSPARENT
from gradscope.capture.graph import Graph
from gradscope.capture.graph import Node
from gradscope.capture.graph import saved_tensor
from gradscope.capture.graph import short_name
from gradscope.capture.graph import source_of
from gradscope.capture.lossnodes import DIFFERENCES
from gradscope.capture.lossnodes import FUSED
from gradscope.capture.lossnodes import Found
from gradscope.capture.lossnodes import find_losses
from gradscope.capture.operands import constant_factor
from gradscope.records import Broadcast
from gradscope.records import LossInfo

_MOST_AROUND = 6  # nodes that are looked through around the sum or mean that an unknown loss is
_MOST_TERMS = 12  # nodes between the mean of a loss and what it compares
# What the terms of a loss are made of, element by element; no exponential, which is what kernels of pairs are made with.
_ELEMENTWISE = TRANSPARENT | frozenset(
    "Add Sub Rsub Mul Div Neg Pow Abs Sqrt Log Log1P Softplus LogSigmoid Cosh Tanh Sigmoid Relu Clamp ClampMin ClampMax "
    "Maximum Minimum Where".split()
)
_WRITTEN_AXES = frozenset(("Unsqueeze", "Index", "Select"))  # x[:, None]: whoever writes the axis means the pairs
_NEAR = 200  # nodes from the loss in which loss functions are looked for
_PRODUCERS = {
    "Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh",
    "Softplus": "softplus", "Exp": "exp", "Gelu": "gelu", "Silu": "silu", "Mish": "mish",
}  # fmt: skip


def read_losses(graph: Graph, *, scale_seen: bool = False) -> tuple[LossInfo, ...]:
    """Every loss function near the root; one of kind "other" where none is recognised."""
    if not graph.nodes:
        return ()
    found = [_described(loss) for loss in find_losses(graph.nodes[0].handle, most=_NEAR, scale_seen=scale_seen)]
    return tuple(dict.fromkeys(found)) or (_unknown(graph),)


def _unknown(graph: Graph) -> LossInfo:
    """A loss that is put together in a way of its own: all that is said of it is whether it is a bare sum or mean, of what."""
    node = graph.nodes[0]
    for _ in range(_MOST_AROUND):
        below = graph.behind(node)
        if node.name in ("Mean", "Sum") or below is None or not _keeps_scale(node):
            break
        node = below
    known = LossInfo(kind="other", node=graph.nodes[0].name)
    over = node.handle._saved_self_sym_sizes if node.name in ("Mean", "Sum") and not node.shape else ()
    whole = len(over) > 0 and node.handle.name().endswith("0")  # over all dimensions at once
    return replace(known, reduction=node.name.lower(), input_shape=tuple(over)) if whole else known


def _keeps_scale(node: Node) -> bool:
    """Whether a node leaves the scale of a loss as it was: a sign, a constant added, a change of shape."""
    alone = sum(source is not None for source in node.inputs) == 1
    return node.name in TRANSPARENT or (node.name in ("Neg", "Add", *DIFFERENCES) and alone)


def _described(found: Found) -> LossInfo:
    target = found.target
    return LossInfo(
        kind=found.kind,
        node=found.node,
        reduction=found.reduction,
        input_shape=_input_shape(found),
        target_shape=own_shape(target) if target is not None else None,
        classes=found.classes,
        producer=_producer(found.source),
        baseline=_baseline(found),
        target_dtype=str(target.dtype).removeprefix("torch.") if target is not None else None,
    )


def _input_shape(found: Found) -> tuple[int, ...] | None:
    first = next((source for source, _ in found.handle.next_functions if source is not None), None)
    if first is not None and short_name(first) == "Expand":
        inner = first.next_functions[0][0]
        if inner is not None and inner._input_metadata:
            return tuple(inner._input_metadata[0].shape)
    if found.saved is not None:
        return tuple(found.saved.shape)
    metadata = found.source._input_metadata if found.source is not None else None
    return tuple(metadata[0].shape) if metadata else None


def _producer(source: Any) -> str | None:
    """What made the loss's input. A factor up to 1, a temperature say, leaves the output's range as narrow as it was."""
    for _ in range(4):
        if source is None:
            return None
        name = short_name(source)
        factor = constant_factor(name, source)
        if factor is None or not 0 < factor <= 1:
            return _PRODUCERS.get(name)
        source = source_of(source, 0)
    return None


def read_broadcasts(graph: Graph) -> tuple[Broadcast, ...]:
    """Differences of a prediction and a target whose shapes (N, 1) and (N,) blow each other up to (N, N)."""
    return tuple(dict.fromkeys((*_broadcasts(graph), *_broadcasts_by_hand(graph))))


def _broadcasts(graph: Graph) -> Iterator[Broadcast]:
    for node in graph.nodes[:_NEAR]:
        blown_up = _blown_up(graph, node)
        source = next((i for i in blown_up.inputs if i is not None), None) if blown_up is not None else None
        if blown_up is None or source is None or source >= len(graph.nodes):
            continue
        expanded = graph.nodes[source]  # l1_loss expands its operands before it subtracts them
        if blown_up.name != "Expand" and expanded.name == "Expand" and expanded.inputs[0] is not None:
            source = min(expanded.inputs[0], len(graph.nodes) - 1)
        operand, result = graph.nodes[source].shape, blown_up.shape
        other = _other(operand, result)
        written = len(result) > 2 and graph.nodes[source].name in _WRITTEN_AXES
        if other is not None and not written:
            yield Broadcast(node=blown_up.name, left=operand, right=other, result=result)


def _other(operand: tuple[int, ...], result: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that has blown up ``operand`` to ``result``: (N,) of (N, 1), or (N, H, W) of (N, 1, H, W), or the other way
    round; None where it was none of these.
    """
    if len(result) not in (2, 4) or not result[0] == result[1] > 1:
        return None
    flat, with_axis = result[1:], (result[0], 1, *result[2:])
    return {flat: with_axis, with_axis: flat}.get(operand)


def _broadcasts_by_hand(graph: Graph) -> Iterator[Broadcast]:
    """Such differences and products within the terms of a loss written by hand, over whose N x N numbers it takes the mean."""
    seen = {i for i, node in enumerate(graph.nodes[:_NEAR]) if node.name in ("Mean", "Sum") and not node.shape}
    queue = deque((place, 0) for i in seen for place in graph.nodes[i].inputs if place is not None)
    while queue:
        place, depth = queue.popleft()
        if place >= len(graph.nodes) or place in seen or depth > _MOST_TERMS:
            continue
        seen.add(place)
        node = graph.nodes[place]
        if len(node.shape) not in (2, 4) or not node.shape[0] == node.shape[1] > 1 or node.name not in _ELEMENTWISE:
            continue
        found = _stretched(graph, node)
        if found is not None:
            yield found
        queue.extend((source, depth + 1) for source in node.inputs if source is not None)


def _stretched(graph: Graph, node: Node) -> Broadcast | None:
    """A difference or product of an output (N, 1) and a target (N,), or the other way round; the target has no gradient."""
    if node.name not in (*DIFFERENCES, "Mul") or len(node.inputs) != 2 or (node.inputs[0] is None) == (node.inputs[1] is None):
        return None
    side = 0 if node.inputs[0] is not None else 1
    operand = graph.nodes[min(node.inputs[side] or 0, len(graph.nodes) - 1)]
    other = _other(operand.shape, node.shape)
    if other is None or (len(operand.shape) > len(other) and operand.name in _WRITTEN_AXES):
        return None
    if node.name == "Mul":
        target = saved_tensor(node.handle, "self" if side else "other")
        if target is None or own_shape(target) != other:
            return None
    return Broadcast(node=node.name, left=operand.shape, right=other, result=node.shape)


def _blown_up(graph: Graph, node: Node) -> Node | None:
    """Where a loss's operands were broadcast: its difference, one side of which is the target and has no gradient."""
    if node.name in FUSED:
        operand = node.inputs[0]
        expanded = graph.nodes[operand] if operand is not None and operand < len(graph.nodes) else None
        return expanded if expanded is not None and expanded.name == "Expand" else None
    difference = _difference(graph, node)
    return difference if difference is not None and None in difference.inputs else None


def _difference(graph: Graph, node: Node) -> Node | None:
    """The difference in a loss written out by hand: the mean or sum of (prediction - target)² or |prediction - target|."""
    below = graph.behind(node) if node.name in ("Mean", "Sum") else None
    if below is None or not (below.name in ("Pow", "Abs") or (below.name == "Mul" and len(set(below.inputs)) == 1)):
        return None
    difference = graph.behind(below)
    return difference if difference is not None and difference.name in DIFFERENCES else None


def _baseline(found: Found) -> float | None:
    """The loss of the best constant prediction: ln C for C classes, Var(y) for the squared error (on the CPU only)."""
    target = found.target
    if found.kind == "cross_entropy" and found.classes and found.labelled:
        return math.log(found.classes)
    if found.kind == "mse" and target is not None and target.device.type == "cpu" and 1 < target.numel() <= 100_000:
        return float(target.detach().float().var(correction=0))
    return None


def own_shape(target: torch.Tensor) -> tuple[int, ...]:
    """The shape before ``expand``: dimensions of stride 0 were added or blown up by broadcasting."""
    sizes = [(size, stride) for size, stride in zip(target.shape, target.stride(), strict=True)]
    while sizes and sizes[0][1] == 0 and sizes[0][0] > 1:
        sizes.pop(0)
    return tuple(1 if stride == 0 else size for size, stride in sizes)
