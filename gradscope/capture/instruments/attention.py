"""How large the logits of attention are and how far its weights spread, worked out again for a few heads and queries."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import torch

from gradscope.capture.graph import Graph
from gradscope.capture.graph import saved_tensor
from gradscope.capture.graph import short_name
from gradscope.capture.graph import source_of
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.naming import names_of
from gradscope.capture.operands import constant_factor
from gradscope.capture.sampling import spread
from gradscope.records import Array
from gradscope.records import Site

UNNAMED = "(attention)"
MOST_SITES = 256
_HEADS = 4  # of all heads of all sequences of the batch
_QUERIES = 64
_LEAST_KEYS = 8  # of a row whose entropy counts
_MOST_LOGITS = 1 << 20
_MASKED = -5000.0  # what is added to a logit that is to vanish; no bias of position within reach is as large
_BETWEEN = frozenset(
    "View UnsafeView Reshape ReshapeAlias Expand Alias ToCopy Clone Squeeze Unsqueeze MaskedFill Where".split()
)
_SMALLEST = 1e-38  # whose logarithm, times a weight of 0, is 0
_MOST_STEPS = 12  # between a softmax and the product of queries and keys
_MOST_NODES = 60  # between a query and the weights of its projection


@dataclass(frozen=True)
class _Attention:
    """Queries [heads, queries, width] and keys [heads, keys, width], a few of them, and what decides which see which."""

    query: torch.Tensor
    key: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None  # added to the logits, or true where a key is seen
    weights: torch.Tensor | None = None  # the result of the softmax, where it was saved
    first: int = 0  # the place of the first query
    every: int = 1  # and how far the next is
    causal: bool = False


@final
class AttentionProbe(Instrument):
    """Fills the columns of ``attention`` on the steps whose graph is read."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)
        self._places: dict[Site, int] = {}
        self._sites: tuple[Site, ...] = ()
        self._shown: dict[int, torch.Tensor] = {}  # by place: largest logit, sum of entropies, rows that they are of

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {"attention": self._sites}

    def start_step(self, samples: int) -> None:
        self._shown.clear()

    def switch_off(self) -> None:
        self._shown.clear()

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        model = self._model()
        found = [] if graph is None or model is None else [n.handle for n in graph.nodes if _is_candidate(n.name)]
        if not found or model is None:
            return
        names = names_of(model)
        calls: dict[str, int] = {}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if torch.is_autocast_enabled(loss.device.type):
                stack.enter_context(torch.autocast(loss.device.type, enabled=False))
            for handle in sorted(found, key=lambda handle: handle._sequence_nr()):  # in the order of the forward pass
                product = _product(handle)
                if product is None:
                    continue
                path = _projection(product, names) or UNNAMED
                calls[path] = calls.get(path, -1) + 1
                self._take(Site(path, calls[path]), handle, product)

    def _take(self, site: Site, handle: Any, product: Any) -> None:
        attention = _fused(handle) if handle is product else _written_out(handle, product)
        if attention is None or (site not in self._places and len(self._places) >= MOST_SITES):
            return
        if site not in self._places:
            self._places[site] = len(self._places)
            self._sites = tuple(self._places)
        self._shown[self._places[site]] = _statistics(attention)

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        places, tensors, sites = tuple(self._shown), tuple(self._shown.values()), len(self._sites)
        self._shown = {}

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            largest, entropy = np.full((2, sites), np.nan, dtype=np.float32)
            for place, (logit, total, rows) in zip(places, arrays, strict=True):
                largest[place] = np.inf if np.isnan(logit) else logit
                if rows > 0:
                    entropy[place] = np.inf if np.isnan(total) else total / rows
            return {"attention.logit_max": largest, "attention.entropy": entropy}

        return Reading(tensors, columns)


# -- where queries and keys are found


def _is_candidate(name: str) -> bool:
    return name.startswith("ScaledDotProduct") or name in ("Softmax", "SafeSoftmax")


def _product(handle: Any) -> Any:
    """The node that multiplied queries and keys: a fused attention itself, or the product that a softmax takes."""
    if short_name(handle).startswith("ScaledDotProduct"):
        return handle
    node = handle.next_functions[0][0]
    for _ in range(_MOST_STEPS):
        name = short_name(node) if node is not None else ""
        if name in ("Bmm", "Baddbmm"):
            keys = source_of(node, 1 if name == "Bmm" else 2)
            return None if keys is not None and short_name(keys) == "AccumulateGrad" else node
        if name not in _BETWEEN and name not in ("Add", "Sub", "Mul", "Div") and not _keeps_order(name, node):
            return None
        node = _larger(node)
    return None


def _keeps_order(name: str, node: Any) -> bool:
    """Whether a permutation moves nothing but dimensions of one element, as einsum's do."""
    source = node.next_functions[0][0] if name == "Permute" else None
    if source is None or not source._input_metadata:
        return False
    shape = source._input_metadata[0].shape
    moved = [dim if dim < len(shape) else dim - (1 << 64) + len(shape) for dim in node._saved_dims]
    large = [dim for dim in moved if shape[dim] > 1]
    return large == sorted(large)


def _larger(node: Any) -> Any:
    """The operand that has the most elements, where only one has: the other is a mask or a bias of position."""
    operands = [source for source, _ in node.next_functions if source is not None and source._input_metadata]
    products = [source for source in operands if short_name(source) in ("Bmm", "Baddbmm", "UnsafeView", "View")]
    return next(iter(products or operands), None)


def _projection(product: Any, names: Mapping[int, str]) -> str | None:
    """The module whose weights make the queries: the first matrix among the parameters that they come from."""
    operand = 1 if short_name(product) == "Baddbmm" else 0
    queue: deque[Any] = deque([product.next_functions[operand][0]])
    seen: set[Any] = set()
    while queue and len(seen) < _MOST_NODES:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = node.variable if short_name(node) == "AccumulateGrad" else None
        if variable is not None and variable.dim() > 1 and id(variable) in names:
            return names[id(variable)].rpartition(".")[0]
        queue.extend(source for source, _ in node.next_functions)
    return None


def _fused(handle: Any) -> _Attention | None:
    query, key = saved_tensor(handle, "query"), saved_tensor(handle, "key")
    if query is None or key is None or query.dim() != 4 or key.dim() != 4 or not _plain(query) or not _plain(key):
        return None
    bias = saved_tensor(handle, "attn_mask")
    bias = bias if bias is not None else saved_tensor(handle, "attn_bias")
    batch, heads, queries, width = query.shape
    pairs = [divmod(int(pair), heads) for pair in spread(batch * heads, min(batch * heads, _HEADS))]
    first, every, end = _rows(queries, len(pairs) * key.shape[2])
    shared = heads // max(key.shape[1], 1)  # heads that share their keys
    scale = getattr(handle, "_saved_scale", None)
    if bias is not None:
        whole = bias.expand(batch, heads, queries, key.shape[2])
        bias = torch.stack([whole[b, h, first:end:every] for b, h in pairs])
    return _Attention(
        query=torch.stack([query[b, h, first:end:every] for b, h in pairs]).float(),
        key=torch.stack([key[b, h // max(shared, 1)] for b, h in pairs]).float(),
        scale=float(scale) if scale is not None else 1 / math.sqrt(width),
        bias=bias,
        first=first,
        every=every,
        causal=bool(getattr(handle, "_saved_is_causal", False)),
    )


def _written_out(softmax: Any, product: Any) -> _Attention | None:
    added = short_name(product) == "Baddbmm"
    query = saved_tensor(product, "batch1" if added else "self")
    key = saved_tensor(product, "batch2" if added else "mat2")
    weights = saved_tensor(softmax, "result")
    if query is None or key is None or weights is None or not all(map(_plain, (query, key, weights))):
        return None
    shape = (query.shape[0], query.shape[1], key.shape[2])
    if math.prod(shape) != weights.numel() or weights.shape[-1] != shape[-1] or not weights.is_contiguous():
        return None
    chosen = [int(head) for head in spread(shape[0], min(shape[0], _HEADS))]
    first, every, end = _rows(shape[1], len(chosen) * shape[2])
    weights = weights.view(shape)
    return _Attention(
        query=torch.stack([query[head, first:end:every] for head in chosen]).float(),
        key=torch.stack([key[head].t() for head in chosen]).float(),
        scale=_scale_between(softmax, product),
        weights=torch.stack([weights[head, first:end:every] for head in chosen]).float(),
        first=first,
        every=every,
    )


def _scale_between(softmax: Any, product: Any) -> float:
    scale, node = 1.0, softmax.next_functions[0][0]
    while node is not None and node is not product:
        scale *= constant_factor(short_name(node), node) or 1.0
        node = _larger(node)
    return scale


def _rows(queries: int, logits: int) -> tuple[int, int, int]:
    """The first query, how far the next is, and where they end; ``logits`` are those of one query of each head."""
    count = max(1, min(queries, _QUERIES, _MOST_LOGITS // max(logits, 1)))
    every = max(1, queries // count)
    return every - 1, every, min(queries, every * count)


def _plain(tensor: torch.Tensor) -> bool:
    ordinary = type(tensor) is torch.Tensor and not tensor.is_meta and tensor.layout is torch.strided
    return ordinary and tensor.is_floating_point() and tensor.numel() > 0


# -- what they show


def _statistics(a: _Attention) -> torch.Tensor:
    """The largest |q·k|·scale of a key that is seen, the sum of the rows' entropies over ln(keys), and the rows. [3]"""
    logits = torch.bmm(a.query, a.key.transpose(1, 2)).mul_(a.scale)
    seen = _seen(a, logits)
    hidden = ~seen
    weights = a.weights
    if weights is None:
        whole = logits if a.bias is None or a.bias.dtype is torch.bool else logits + a.bias
        weights = whole.masked_fill(hidden, -torch.inf).softmax(-1)
    keys = seen.sum(-1, dtype=torch.float32)
    counts = keys >= _LEAST_KEYS
    logarithms = weights.clamp_min(_SMALLEST).log_()
    entropy = logarithms.mul_(weights).sum(-1).neg_() / keys.clamp_min(2).log_()
    largest = logits.abs_().masked_fill_(hidden, 0.0).amax()
    return torch.stack([largest, torch.where(counts, entropy, 0.0).sum(), counts.sum(dtype=torch.float32)])


def _seen(a: _Attention, logits: torch.Tensor) -> torch.Tensor:
    """Which keys each query sees, bool [heads, queries, keys]."""
    if a.weights is not None:
        return a.weights != 0  # NaN counts as seen
    seen = torch.ones_like(logits, dtype=torch.bool)
    if a.bias is not None:
        seen &= a.bias if a.bias.dtype is torch.bool else a.bias > _MASKED
    if a.causal:
        rows = torch.arange(logits.shape[1], device=logits.device) * a.every + a.first
        seen &= torch.arange(logits.shape[2], device=logits.device) <= rows[:, None]
    return seen
