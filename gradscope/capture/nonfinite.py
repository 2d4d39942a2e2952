"""Going down a graph from a loss that is not finite to the operation that the first such value came out of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import torch

from gradscope.capture.graph import TRANSPARENT
from gradscope.capture.graph import Graph
from gradscope.capture.graph import Node
from gradscope.capture.graph import saved_tensor
from gradscope.capture.shards import local_of
from gradscope.records import Origin

_OPERANDS = {
    "self": 0, "input": 0, "query": 0, "other": 1, "weight": 1, "mat1": 1, "batch1": 1, "tensor1": 1, "key": 1, "exponent": 1,
    "target": 1, "end": 1, "mat2": -1, "batch2": -1, "tensor2": -1, "value": 2,
}  # fmt: skip
_RESULTS = frozenset(("result", "output", "out", "result0", "result1", "result2", "values"))
_LOSS_NODES = frozenset(
    "NllLoss NllLoss2D MseLoss SmoothL1Loss HuberLoss BinaryCrossEntropy BinaryCrossEntropyWithLogits KlDiv".split()
)
# What makes nothing that is not finite out of what is; a softmax does, of a row that is masked throughout.
_HARMLESS = TRANSPARENT | frozenset(
    "LogSoftmax Relu Threshold LeakyRelu Tanh Sigmoid Gelu Silu Elu Neg Abs Index Gather Select Split Cat Stack".split()
)
# What adds up products or deviations of its operands' elements: -infinity among them is no mask, and makes NaN or infinity.
_SUMS = frozenset(
    "Addmm Mm Bmm Baddbmm Addbmm Mv Addmv Linear Convolution NativeBatchNorm CudnnBatchNorm NativeLayerNorm NativeGroupNorm "
    "MseLoss SmoothL1Loss HuberLoss".split()
)
_TO_WEIGHT = 4  # nodes between a layer and its parameter at most: a transposition, a conversion


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is that lies on this rank. Waits for the device."""
    return not tensor.is_floating_point() or bool(torch.isfinite(local_of(tensor).detach()).all())


def is_wrong(value: torch.Tensor | None) -> bool:
    """Whether it is known to hold NaN or +infinity; -infinity alone is how masks are written."""
    return value is not None and bool((torch.isnan(value) | torch.isposinf(value)).any())


def largest_finite(tensors: Sequence[torch.Tensor]) -> float | None:
    """The largest finite magnitude in them; None where there is none."""
    found = [magnitudes.max() for t in tensors if (magnitudes := _finite_magnitudes(t)).numel()]
    return max(map(float, found), default=None)


def short_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_graph(graph: Graph, owners: Mapping[int, str], modules: Mapping[int, str], step: int) -> Origin | None:
    """Where the value came from that makes the root of ``graph`` not finite; all parameters are finite.

    ``owners`` has the path of the module that each parameter belongs to, by the parameter's ``id``; ``modules`` paths by the
    sequence number of the node that made the module's output, as far as they are known. Goes by what the nodes have saved, so
    where an operation saved nothing, and nothing after it did, it may name the one after.
    """
    return _Search(graph, owners, modules, step).origin()


@dataclass(frozen=True)
class _Suspect:
    """A node whose result is not finite, or which was given something that is not and has no gradient."""

    node: Node
    given: torch.Tensor | None = None

    @property
    def order(self) -> tuple[int, bool]:
        return self.node.sequence, self.given is None


@final
class _Search:
    def __init__(self, graph: Graph, owners: Mapping[int, str], modules: Mapping[int, str], step: int) -> None:
        self._graph = graph
        self._owners = owners
        self._modules = modules
        self._step = step

    def origin(self) -> Origin | None:
        if not self._graph.nodes:
            return None
        first = min(self._suspects(), key=lambda suspect: suspect.order)
        node = first.node
        module, before, after = self._around(node)
        told = {"node": node.handle.name().rpartition("::")[2], "dtype": _dtype_of(node)}
        if first.given is not None:
            beside = "target" if module is None and after is None else "input"  # after the last layer it is none of the model's
            place = "loss" if node.name in _LOSS_NODES else beside
            return Origin(self._step, place, module, before=before, largest=largest_finite([first.given]), **told)
        largest = largest_finite(self._inputs(node))
        if module is not None:
            return Origin(self._step, "forward", module, before=before, largest=largest, **told)
        return Origin(self._step, "between" if after else "loss", after, before=before, largest=largest, **told)

    def _suspects(self) -> Iterator[_Suspect]:
        """All that is shown not to be finite on the way down from the root; what is shown to be finite ends it."""
        nodes = self._graph.nodes
        seen, queue = {0}, deque([(0, True)])
        while queue:
            index, wrong = queue.popleft()
            node, saved = nodes[index], dict(_operands(nodes[index]))
            if wrong:
                yield _Suspect(node)
            yield from (
                _Suspect(node, saved[i]) for i, s in enumerate(node.inputs) if s is None and _spoils(node, saved.get(i))
            )
            sources = [
                (source, saved.get(place))
                for place, source in enumerate(node.inputs)
                if source is not None and source < len(nodes) and nodes[source].variable is None
            ]
            open_sources = [(source, value) for source, value in sources if not _is_fine(nodes[source], value)]
            only = wrong and node.name in _HARMLESS and len(open_sources) == 1
            for source, value in open_sources:
                if source not in seen:
                    seen.add(source)
                    queue.append(
                        (source, only or is_wrong(value) or is_wrong(_result(nodes[source])) or _goes_wrong(nodes[source]))
                    )

    def _inputs(self, node: Node) -> list[torch.Tensor]:
        """What went into a node: as it saved it, or as those before it saved their results."""
        saved = [value for _, value in _operands(node)]
        sources = [self._graph.nodes[i] for i in node.inputs if i is not None and i < len(self._graph.nodes)]
        return saved or [value for source in sources if (value := _result(source)) is not None]

    def _around(self, node: Node) -> tuple[str | None, str | None, str | None]:
        """The module that a node belongs to, and those that ran last before it and first after it."""
        owned = sorted(
            (other.sequence, path) for other in self._graph.nodes if other.variable is None and (path := self._owner(other))
        )
        module = self._owner(node)
        earlier = [path for number, path in owned if number < node.sequence and path != module]
        later = [path for number, path in owned if number > node.sequence]
        return module, earlier[-1] if earlier else None, later[0] if later else None

    def _owner(self, node: Node) -> str | None:
        """The module whose parameter this node takes, or whose output it made."""
        for place in node.inputs:
            for _ in range(_TO_WEIGHT):
                below = self._graph.nodes[place] if place is not None and place < len(self._graph.nodes) else None
                if below is None:
                    break
                if below.variable is not None:
                    found = self._owners.get(id(below.variable))
                    if found is not None and node.name not in TRANSPARENT:
                        return found
                    break
                if below.name not in TRANSPARENT:
                    break
                place = below.inputs[0] if below.inputs else None
        return self._modules.get(node.sequence)


def _operands(node: Node) -> Iterator[tuple[int, torch.Tensor]]:
    """What a node saved of its operands, with their places."""
    for name in _saved_names(node.handle):
        place = _OPERANDS.get(name)
        value = saved_tensor(node.handle, name) if place is not None else None
        if value is not None and place is not None and value.is_floating_point():
            yield place % max(len(node.inputs), 1), value.detach()


def _result(node: Node) -> torch.Tensor | None:
    """What a node saved of its result."""
    for name in _saved_names(node.handle):
        value = saved_tensor(node.handle, name) if name in _RESULTS else None
        if value is not None and value.is_floating_point():
            return value.detach()
    return None


def _saved_names(handle: Any) -> list[str]:
    return [name.removeprefix("_saved_") for name in dir(handle) if name.startswith("_saved_")]


def _spoils(node: Node, value: torch.Tensor | None) -> bool:
    """Whether an operand without a gradient makes the node's result wrong."""
    return is_wrong(value) or (value is not None and node.name in _SUMS and not is_finite(value))


def _is_fine(node: Node, value: torch.Tensor | None) -> bool:
    """Whether a node's result is known to be finite: as the taker of it has saved it, or else the node itself."""
    known = value if value is not None else _result(node)
    return known is not None and is_finite(known)


def _goes_wrong(node: Node) -> bool:
    """Whether an operation that saved no result cannot have had a finite one, as its operands show."""
    test = _HAZARDS.get(node.name)
    return test is not None and test(node)


def _log(node: Node) -> bool:
    value = saved_tensor(node.handle, "self")
    return value is not None and bool((value <= (-1 if node.name == "Log1p" else 0)).any())


def _division(node: Node) -> bool:
    value = saved_tensor(node.handle, "other")
    return value is not None and bool((value == 0).any())


def _power(node: Node) -> bool:
    value, exponent = saved_tensor(node.handle, "self"), node.handle._saved_exponent
    return value is not None and not is_finite(value.detach() ** exponent)


def _product(node: Node) -> bool:
    left, right = saved_tensor(node.handle, "self"), saved_tensor(node.handle, "other")
    return left is not None and right is not None and is_finite(left) and is_finite(right) and not is_finite(left * right)


def _mean_of_targets(node: Node) -> bool:
    total = saved_tensor(node.handle, "total_weight")
    return node.handle._saved_reduction == 1 and total is not None and not float(total) > 0


def _mean_of_nothing(node: Node) -> bool:
    return getattr(node.handle, "_saved_self_sym_numel", 1) == 0


_HAZARDS: Mapping[str, Callable[[Node], bool]] = {
    "Log": _log, "Log2": _log, "Log10": _log, "Log1p": _log, "Div": _division, "Pow": _power, "Mul": _product,
    "NllLoss": _mean_of_targets, "NllLoss2D": _mean_of_targets, "Mean": _mean_of_nothing,
}  # fmt: skip


def _finite_magnitudes(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().float().abs().reshape(-1)
    return flat[torch.isfinite(flat)]


def _dtype_of(node: Node) -> str | None:
    metadata = node.handle._input_metadata
    return short_dtype(metadata[0].dtype) if metadata else None
