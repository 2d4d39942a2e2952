"""The contract between model and loss, read from the nodes nearest to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from gradscope.capture.graph import Graph
from gradscope.capture.graph import Node
from gradscope.capture.graph import short_name
from gradscope.capture.graph import source_of
from gradscope.capture.lossnodes import DIFFERENCES
from gradscope.capture.lossnodes import FUSED
from gradscope.capture.lossnodes import Found
from gradscope.capture.lossnodes import constant_factor
from gradscope.capture.lossnodes import find_losses
from gradscope.records import Broadcast
from gradscope.records import LossInfo

_NEAR = 200  # nodes from the loss in which loss functions are looked for
_PRODUCERS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh"}


def read_losses(graph: Graph) -> tuple[LossInfo, ...]:
    """Every loss function near the root; one of kind "other" where none is recognised."""
    if not graph.nodes:
        return ()
    found = [_described(loss) for loss in find_losses(graph.nodes[0].handle, most=_NEAR)]
    return tuple(dict.fromkeys(found)) or (LossInfo(kind="other", node=graph.nodes[0].name),)


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
    return tuple(dict.fromkeys(_broadcasts(graph)))


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
        if len(result) == 2 and result[0] == result[1] > 1 and operand in ((result[0], 1), (result[0],)):
            other = (result[0],) if operand == (result[0], 1) else (result[0], 1)
            yield Broadcast(node=blown_up.name, left=operand, right=other, result=result)


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
