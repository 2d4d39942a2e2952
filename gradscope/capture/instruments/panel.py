"""The instruments that a watch reads on sampled steps, all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.graph import Graph
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.records import Site


@final
class Panel:
    """Tells every instrument what goes on, and reads them all at the end of a step."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self._instruments = tuple(instruments)
        self._on = False

    def start_step(self, samples: int) -> None:
        """A sampled step begins, which so many went before."""
        if not self._on:
            self._on = True
            for instrument in self._instruments:
                instrument.switch_on()
        for instrument in self._instruments:
            instrument.start_step(samples)

    def switch_off(self) -> None:
        self._on = False
        for instrument in self._instruments:
            instrument.switch_off()

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        for instrument in self._instruments:
            instrument.before_backward(loss, graph)

    def before_step(self, optimizer: Optimizer) -> None:
        for instrument in self._instruments:
            instrument.before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        for instrument in self._instruments:
            instrument.after_step(optimizer)

    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {kind: sites for instrument in self._instruments for kind, sites in instrument.sites.items()}

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> list[Reading]:
        return [instrument.read(parameters, modules) for instrument in self._instruments]
