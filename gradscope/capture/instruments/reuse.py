"""How gradients grow or fade through time in a recurrence that is written by hand: a matrix that is used again and again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from typing import Any
from typing import final

import numpy as np
import torch

from gradscope.capture.graph import TRANSPARENT
from gradscope.capture.graph import Graph
from gradscope.capture.graph import Node
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.naming import modules_of
from gradscope.capture.naming import names_of
from gradscope.capture.naming import parameters_of
from gradscope.capture.shards import part_here
from gradscope.records import Array
from gradscope.records import Site

FEWEST_USES = 4  # of one parameter in one graph, each on what the one before came to, that make a sequence
FEWEST_POINTS = 3  # finite gradients above zero that a slope is drawn through
MOST_POINTS = 64  # time steps that are looked at
_MOST_ELEMENTS = 1024  # of each


@final
class Reuse(Instrument):
    """Fills ``weight_gradient.time_growth`` and ``.time_steps``, on the steps whose graph is read.

    A cell of the user's own that multiplies its state with a bare parameter has no module that could show the gradient at each
    time step, and a layer that takes input and state together has no square matrix that tells it from a head. The graph has
    both: each use of the matrix is a node that takes the gradient of its result, and needs the one before or does not.
    """

    def __init__(self, model: torch.nn.Module, guard: Callable[[], None]) -> None:
        self._model = weakref.ref(model)
        self._guard = guard
        self._step = 0
        self._lengths: dict[str, int] = {}
        self._points: dict[str, dict[int, torch.Tensor]] = {}  # by parameter: root mean square by time step

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def switch_off(self) -> None:
        self._forget()

    def start_step(self, samples: int) -> None:
        self._forget()

    def _forget(self) -> None:
        self._step += 1
        self._lengths, self._points = {}, {}

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        model = self._model()
        if graph is None or model is None:
            return
        known = _matrices(model)
        for index, node in enumerate(graph.nodes) if known else ():
            name = known.get(id(node.variable)) if node.variable is not None else None
            if name is not None and len(graph.consumers[index]) >= FEWEST_USES and name not in self._lengths:
                self._follow(name, _uses(graph, index))

    def _follow(self, name: str, uses: Sequence[Node]) -> None:
        """Take the gradients at these uses, in the order of time, as they come back."""
        if len(uses) < FEWEST_USES:
            return
        self._lengths[name] = len(uses)
        for at in range(0, len(uses), -(-len(uses) // MOST_POINTS)):
            uses[at].handle.register_prehook(partial(self._take, name, at, self._step))

    def _take(self, name: str, at: int, step: int, gradients: tuple[Any, ...]) -> None:
        """Called inside the backward pass; returns None, so the gradient goes on as it came."""
        gradient = gradients[0]
        try:
            here = part_here(gradient) if isinstance(gradient, torch.Tensor) and gradient.is_floating_point() else None
            if step == self._step and here is not None:
                part = here.detach().flatten()[:_MOST_ELEMENTS]
                norm: torch.Tensor = torch.linalg.vector_norm(part.float())
                self._points.setdefault(name, {})[at] = norm / max(part.numel(), 1) ** 0.5
        except Exception:
            self._guard()

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        places = {site.path: place for place, site in enumerate(parameters)} if self._points else {}
        found = {name: points for name, points in self._points.items() if name in places and len(points) >= FEWEST_POINTS}
        known = [(places[name], list(points), self._lengths[name]) for name, points in found.items()]
        tensors = tuple(torch.stack(list(points.values())) for points in found.values())
        sites = len(parameters)

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            growth, steps = np.full((2, sites), np.nan, dtype=np.float32)
            for (place, at, length), values in zip(known, arrays, strict=True):
                growth[place] = _growth(np.array(at, dtype=np.float64), values, length)
                steps[place] = length
            return {"weight_gradient.time_growth": growth, "weight_gradient.time_steps": steps}

        return Reading(tensors, columns)


def _matrices(model: torch.nn.Module) -> dict[int, str]:
    """Names of the matrices that can recur by hand, by ``id``: all but those of torch's recurrent layers."""
    own = {
        f"{path}.{name}" if path else name
        for path, module in modules_of(model)
        if not isinstance(module, torch.nn.RNNBase)
        for name, parameter in parameters_of(module, recurse=False)
        if parameter.dim() == 2 and parameter.requires_grad
    }
    return {key: name for key, name in names_of(model).items() if name in own}


def _uses(graph: Graph, leaf: int) -> list[Node]:
    """The nodes that multiply with a leaf, in the order in which they were made; [] where the last needs not the first."""
    places = {_first_use(graph, taker) for taker in graph.consumers[leaf]}
    order = sorted(places, key=lambda place: graph.nodes[place].sequence)
    alike = len({graph.nodes[place].shape for place in order}) == 1
    return [graph.nodes[place] for place in order] if alike and _depends(graph, order[-1], order[0]) else []


def _first_use(graph: Graph, place: int) -> int:
    """Past transpositions and the like."""
    while graph.nodes[place].name in TRANSPARENT and len(graph.consumers[place]) == 1:
        place = graph.consumers[place][0]
    return place


def _depends(graph: Graph, later: int, earlier: int) -> bool:
    """Whether what ``later`` worked out had what ``earlier`` did in it."""
    oldest = graph.nodes[earlier].sequence
    seen, waiting = {later}, [later]
    while waiting:
        place = waiting.pop()
        if place == earlier:
            return place != later
        for source in graph.nodes[place].inputs:
            known = source is not None and source < len(graph.nodes) and source not in seen
            if known and source is not None and graph.nodes[source].sequence >= oldest:
                seen.add(source)
                waiting.append(source)
    return False


def _growth(places: np.ndarray[Any, np.dtype[np.float64]], values: Array, length: int) -> float:
    """Decades from the last time step back to the first: the least-squares slope of log10 of the rms, times the way."""
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < FEWEST_POINTS:
        return float("nan")
    return float(-np.polyfit(places[usable], np.log10(values[usable].astype(np.float64)), 1)[0] * (length - 1))
