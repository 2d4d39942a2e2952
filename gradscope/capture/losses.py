"""The contract between model and loss, read from the nodes nearest to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from gradscope.capture.graph import TRANSPARENT
from gradscope.capture.graph import Graph
from gradscope.capture.graph import Node
from gradscope.capture.graph import saved_tensor
from gradscope.records import Broadcast
from gradscope.records import LossInfo

_NEAR = 200  # nodes from the loss in which loss functions are looked for
_REDUCTIONS = ("none", "mean", "sum")
_KINDS = {
    "NllLoss": "nll", "NllLoss2D": "nll", "MseLoss": "mse", "SmoothL1Loss": "smooth_l1", "HuberLoss": "smooth_l1",
    "BinaryCrossEntropy": "bce", "BinaryCrossEntropyWithLogits": "bce_with_logits",
}  # fmt: skip
_PRODUCERS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh"}


def read_losses(graph: Graph) -> tuple[LossInfo, ...]:
    """Every loss function near the root; one of kind "other" where none is recognised."""
    near = graph.nodes[:_NEAR]
    found = [_fused(graph, node) for node in near if node.name in _KINDS]
    found.extend(_written_out(graph, node) for node in near if _difference(graph, node) is not None)
    if not found and graph.nodes:
        found.append(LossInfo(kind="other", node=graph.nodes[0].name))
    return tuple(dict.fromkeys(found))


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
    if node.name in _KINDS:
        operand = node.inputs[0]
        expanded = graph.nodes[operand] if operand is not None and operand < len(graph.nodes) else None
        return expanded if expanded is not None and expanded.name == "Expand" else None
    difference = _difference(graph, node)
    return difference if difference is not None and None in difference.inputs else None


def _fused(graph: Graph, node: Node) -> LossInfo:
    kind = _KINDS[node.name]
    saved, target = saved_tensor(node.handle, "self"), saved_tensor(node.handle, "target")
    source = graph.behind(node)
    if kind == "nll" and source is not None and source.name == "LogSoftmax":
        kind, source = "cross_entropy", graph.behind(source)
    classes = int(saved.shape[1 if saved.dim() > 1 else 0]) if saved is not None and kind in ("cross_entropy", "nll") else None
    expanded = node.inputs[0]
    shape = tuple(saved.shape) if saved is not None else None
    if expanded is not None and expanded < len(graph.nodes) and graph.nodes[expanded].name == "Expand":
        inner = graph.nodes[expanded].inputs[0]
        shape = graph.nodes[inner].shape if inner is not None and inner < len(graph.nodes) else shape
    code = _saved_number(node, "_saved_reduction")
    return LossInfo(
        kind=kind,
        node=node.name,
        reduction=_REDUCTIONS[code] if code in (0, 1, 2) else None,
        input_shape=shape,
        target_shape=_own_shape(target) if target is not None else None,
        classes=classes,
        producer=_PRODUCERS.get(source.name) if source is not None else None,
        baseline=_baseline(kind, classes, target),
    )


def _difference(graph: Graph, node: Node) -> Node | None:
    """The difference in a loss written out by hand: the mean or sum of (prediction - target)² or |prediction - target|."""
    below = graph.behind(node) if node.name in ("Mean", "Sum") else None
    if below is None or not (below.name in ("Pow", "Abs") or (below.name == "Mul" and len(set(below.inputs)) == 1)):
        return None
    difference = graph.behind(below)
    return difference if difference is not None and difference.name in ("Sub", "Rsub") else None


def _written_out(graph: Graph, node: Node) -> LossInfo:
    inner, difference = graph.behind(node), _difference(graph, node)
    source = graph.behind(difference, 0) or graph.behind(difference, 1) if difference is not None else None
    return LossInfo(
        kind="l1" if inner is not None and inner.name == "Abs" else "mse",
        node=node.name,
        reduction=node.name.lower(),
        input_shape=source.shape if source is not None and source.name not in TRANSPARENT else None,
        producer=_PRODUCERS.get(source.name) if source is not None else None,
    )


def _baseline(kind: str, classes: int | None, target: torch.Tensor | None) -> float | None:
    """The loss of the best constant prediction: ln C for C classes, Var(y) for the squared error (on the CPU only)."""
    if kind == "cross_entropy" and classes:
        return math.log(classes)
    if kind == "mse" and target is not None and target.device.type == "cpu" and 1 < target.numel() <= 100_000:
        return float(target.detach().float().var(correction=0))
    return None


def _own_shape(target: torch.Tensor) -> tuple[int, ...]:
    """The shape before ``expand``: dimensions of stride 0 were added or blown up by broadcasting."""
    sizes = [(size, stride) for size, stride in zip(target.shape, target.stride(), strict=True)]
    while sizes and sizes[0][1] == 0 and sizes[0][0] > 1:
        sizes.pop(0)
    return tuple(1 if stride == 0 else size for size, stride in sizes)


def _saved_number(node: Node, name: str) -> int | None:
    value = getattr(node.handle, name, None)
    return value if isinstance(value, int) else None
