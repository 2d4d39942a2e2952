"""Reading the autograd graph of a loss before it is freed: who reaches whom, and what takes each layer's output."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import torch

from gradscope.capture.shards import whole_here

MOST_NODES = 20_000  # a larger graph is read in part, from the loss down

# Nodes that hand on values as they are, or change only their shape, layout, type or scale.
TRANSPARENT = frozenset(
    "View Reshape ReshapeAlias UnsafeView Squeeze Unsqueeze T Transpose Permute Clone ToCopy Contiguous Expand Slice Alias "
    "AsStrided".split()
)
_GATES = frozenset(("Tanh", "Sigmoid"))
_SCALING = frozenset(("Mul", "Div", "Neg", "NativeDropout"))
_ACTIVATIONS = {
    "Relu": "relu", "Threshold": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Gelu": "gelu", "Silu": "silu",
    "Elu": "elu", "LeakyRelu": "leaky_relu", "Softplus": "softplus", "Hardtanh": "hardtanh", "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}  # fmt: skip
_NORMS = frozenset(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm BatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm".split()
)
_LOGISTIC = (("Neg", "Mul"), ("Exp",), ("Add",), ("Reciprocal", "Div", "Pow"))  # 1 / (1 + exp(-x)), operation by operation
_MOST_STEPS_DOWN = 6  # how far behind a layer its activation or norm is looked for


@dataclass(frozen=True)
class Node:
    """One node of the graph, with its place in it. ``shape`` is that of the forward operation's result."""

    name: str  # "Addmm" for AddmmBackward0
    shape: tuple[int, ...]
    inputs: tuple[int | None, ...]  # indices of the nodes that made its operands; None where an operand has no gradient
    handle: Any  # torch's node; valid while the graph is read
    variable: torch.Tensor | None  # the leaf, of a node that accumulates a gradient

    @property
    def sequence(self) -> int:
        return int(self.handle._sequence_nr())


@final
class Graph:
    """The nodes under a loss, the loss first. Holds the graph alive: keep it no longer than it takes to read it."""

    def __init__(self, loss: torch.Tensor) -> None:
        self.nodes: list[Node] = list(_walk(loss.grad_fn))
        self.consumers: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                if source is not None and source < len(self.nodes):
                    self.consumers[source].append(index)

    def leaves(self) -> Iterator[torch.Tensor]:
        """The parameters that the loss reaches."""
        for node in self.nodes:
            if node.variable is not None:
                yield node.variable

    def norms(self) -> int:
        return sum(node.name in _NORMS for node in self.nodes)

    def residual_additions(self) -> int:
        """Additions of two results of one shape, neither of them a gate's product."""
        return sum(self._is_residual(index) for index in range(len(self.nodes)))

    def _is_residual(self, index: int) -> bool:
        node = self.nodes[index]
        takers = {self.nodes[taker].name for taker in self.consumers[index]}
        if node.name != "Add" or len(node.inputs) != 2 or (takers and takers <= _GATES):
            return False  # a recurrent cell adds what comes in and what was there, and squashes the sum
        sources = [self.nodes[i] for i in node.inputs if i is not None and i < len(self.nodes)]
        same = len(sources) == 2 and all(s.variable is None and s.shape == node.shape for s in sources)
        return same and not all(s.name == "Mul" or s.name in _GATES for s in sources)

    def follows(self, sequence_numbers: Sequence[int]) -> dict[int, tuple[str | None, bool]]:
        """For each of these nodes: the activation that takes its result, and whether a normalisation does."""
        wanted = set(sequence_numbers)
        return {
            node.sequence: self._followers(index)
            for index, node in enumerate(self.nodes)
            if node.variable is None and node.sequence in wanted
        }

    def _followers(self, index: int) -> tuple[str | None, bool]:
        for _ in range(_MOST_STEPS_DOWN):
            takers = [self.nodes[i] for i in self.consumers[index]]
            norm = any(taker.name in _NORMS for taker in takers)
            activation = next((_ACTIVATIONS[taker.name] for taker in takers if taker.name in _ACTIVATIONS), None)
            activation = activation or ("sigmoid" if self._is_logistic(index) else None)
            if norm or activation or len(takers) != 1:
                return activation, norm
            if takers[0].name not in TRANSPARENT and takers[0].name not in _SCALING and not self._adds_leaf(takers[0]):
                return None, False
            index = self.consumers[index][0]
        return None, False

    def _is_logistic(self, index: int) -> bool:
        """Whether a sigmoid that is written out takes the result: one over one plus exp, of its negative."""
        path = [index]
        for name in _LOGISTIC:
            taker = next((i for i in self.consumers[path[-1]] if self.nodes[i].name in name), None)
            if taker is None:
                return False
            path.append(taker)
        return True

    def _adds_leaf(self, node: Node) -> bool:
        """Whether the node only adds a bias."""
        leaves = [i for i in node.inputs if i is not None and i < len(self.nodes) and self.nodes[i].variable is not None]
        return node.name == "Add" and (len(leaves) == 1 or None in node.inputs)

    def behind(self, node: Node, operand: int = 0) -> Node | None:
        """The node that made an operand, looking through those that only change its shape."""
        source = node.inputs[operand] if operand < len(node.inputs) else None
        while source is not None and source < len(self.nodes):
            found = self.nodes[source]
            if found.name not in TRANSPARENT:
                return found
            source = found.inputs[0] if found.inputs else None
        return None


def reaches(root: Any, leaves: Container[int]) -> bool:
    """Whether a node's graph ends in one of these leaves, by ``id``. Looks no farther than to the first of them."""
    seen = {root}
    queue: deque[Any] = deque([root])
    while queue and len(seen) <= MOST_NODES:
        for source, _ in queue.popleft().next_functions:
            if source is None or source in seen:
                continue
            if not source.next_functions and id(getattr(source, "variable", None)) in leaves:
                return True
            seen.add(source)
            queue.append(source)
    return bool(queue)


def short_name(handle: Any) -> str:
    """ "Addmm" for a node of the class AddmmBackward0."""
    name: str = handle.name().rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def source_of(handle: Any, operand: int) -> Any:
    """The node that made an operand, looking through those that only change its shape; None where it has no gradient."""
    inputs = handle.next_functions
    source = inputs[operand][0] if operand < len(inputs) else None
    while source is not None and short_name(source) in TRANSPARENT:
        inputs = source.next_functions
        source = inputs[0][0] if inputs else None
    return source


def saved_tensor(handle: Any, name: str) -> torch.Tensor | None:
    """A tensor that an autograd node saved, ``name`` as in ``_saved_self`` without ``_saved_``.

    None where it has none, where it was changed in place or freed since, where only a part of it lies on this rank, and where
    a saved-tensor hook packed it: to unpack what a checkpoint packed would run its forward pass again, random numbers, running
    means and all.
    """
    try:
        raw = getattr(handle, f"_raw_saved_{name}", None)
        if getattr(raw, "unpack_hook", None) is not None:
            return None
        value = getattr(handle, f"_saved_{name}", None)
    except RuntimeError:
        return None
    return whole_here(value) if isinstance(value, torch.Tensor) else None


def _walk(root: Any) -> Iterator[Node]:
    """Breadth first from the loss, so that what is cut off in a huge graph is what lies farthest from it."""
    if root is None:
        return
    places: dict[Any, int] = {root: 0}
    queue: deque[Any] = deque([root])
    while queue:
        handle = queue.popleft()
        inputs: list[int | None] = []
        for source, _ in handle.next_functions:
            if source is None:
                inputs.append(None)
                continue
            if source not in places:
                places[source] = len(places)
                if len(places) <= MOST_NODES:
                    queue.append(source)
            inputs.append(places[source])
        yield _node(handle, tuple(inputs))


def _node(handle: Any, inputs: tuple[int | None, ...]) -> Node:
    name = short_name(handle)
    metadata = handle._input_metadata
    shape = tuple(metadata[0].shape) if metadata else ()
    return Node(name, shape, inputs, handle, handle.variable if name == "AccumulateGrad" else None)
