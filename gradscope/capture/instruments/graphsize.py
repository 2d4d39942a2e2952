"""How large the autograd graph is: one that grows from step to step holds on to what earlier steps made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from gradscope.capture.graph import Graph
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.records import Array
from gradscope.records import Site


@final
class GraphSize(Instrument):
    """Fills ``step.graph_nodes``."""

    def __init__(self) -> None:
        self._nodes = math.nan

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def start_step(self, samples: int) -> None:
        self._nodes = math.nan

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        self._nodes = math.nan if graph is None else float(len(graph.nodes))

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        nodes, self._nodes = self._nodes, math.nan

        def columns(_: Sequence[Array]) -> Mapping[str, Array]:
            return {"step.graph_nodes": np.array([nodes], dtype=np.float32)}

        return Reading((), columns)
