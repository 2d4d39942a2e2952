"""What adds columns of its own to the frame of a sampled step, beside the module and parameter probes."""

from __future__ import annotations

from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.graph import Graph
from gradscope.records import Array
from gradscope.records import Site


@dataclass(frozen=True)
class Reading:
    """What an instrument saw in one step: tensors on their devices, and how they become columns once they are on the host."""

    tensors: tuple[torch.Tensor, ...]
    columns: Callable[[Sequence[Array]], Mapping[str, Array]]  # takes the tensors as float32 arrays; the same names every time


class Instrument(ABC):
    """Hears of a sampled step as it goes on. Nothing that it does draws random numbers, waits for a device or changes anything.

    Its hooks, if any, are there between ``switch_on`` and ``switch_off`` alone. Everything it does lies within the scope's
    guard: what it raises ends the watching and not the training.
    """

    @property
    @abstractmethod
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        """The sites of each kind that it gives to the schema; {} where it fills columns of kinds that are there."""

    @abstractmethod
    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        """What this step showed, as the frame is made; columns over the sites of its kind, NaN where there was nothing."""

    def switch_on(self) -> None:  # noqa: B027
        """The next step is sampled, and the one before it was not."""

    def switch_off(self) -> None:  # noqa: B027
        """The next step is not sampled. Called again at the end, whether it is on or not."""

    def start_step(self, samples: int) -> None:  # noqa: B027
        """A sampled step begins, which so many went before, those among them that the instruments sat out."""

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:  # noqa: B027
        """A backward pass of our model's starts from ``loss``; ``graph`` is read in full on the steps that can afford it."""

    def before_step(self, optimizer: Optimizer) -> None:  # noqa: B027
        """An optimizer of the model's is about to step; gradients are as it will use them."""

    def after_step(self, optimizer: Optimizer) -> None:  # noqa: B027
        """It has stepped."""
