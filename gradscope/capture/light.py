"""What is taken of the steps that someone hears in the watch's place: the gradient norm, and light samples."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.holdings import Holdings
from gradscope.capture.holdings import tensors_of
from gradscope.capture.norms import GlobalNorm
from gradscope.capture.sampled import SampledSteps


@final
class LightSteps:
    """Takes little, at the moments that it is told of. Its failures go to ``guard``, which ends the watching."""

    def __init__(self, holdings: Holdings, norms: GlobalNorm, sampled: SampledSteps, guard: Callable[[], None]) -> None:
        self._holdings = holdings
        self._norms = norms
        self._sampled = sampled
        self._guard = guard

    def norm(self, optimizer: Optimizer, step: int) -> torch.Tensor | float | None:
        """The norm of the gradients that the optimizer is about to step with; a sampled step takes the weights, too."""
        try:
            norm = self._norms.of(tensors_of(optimizer), step, sampled=self._sampled.on)
            if self._sampled.on:
                self._sampled.take_before_light()
        except Exception:
            self._guard()
            return None
        return norm

    def end_sample(self, step: int, stepped: Collection[str]) -> float:
        """A sampled step of the parameters ``stepped`` has ended, and the next begins; the seconds that hooks took of it."""
        try:
            return self._sampled.end_light(step, stepped)
        except Exception:
            self._guard()
            return 0.0
