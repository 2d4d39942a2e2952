"""The global norm of a step's gradients, on the steps that can afford it."""

from __future__ import annotations

import math
from time import perf_counter
from typing import final

import torch

from gradscope.capture.blackbox import BlackBox
from gradscope.capture.holdings import Holdings
from gradscope.capture.pulses import host_value
from gradscope.capture.schedule import Governor


@final
class GlobalNorm:
    """Works the norm out, tells the governor what that took, and the black box where it is not finite."""

    def __init__(self, holdings: Holdings, governor: Governor, blackbox: BlackBox) -> None:
        self._holdings = holdings
        self._governor = governor
        self._blackbox = blackbox

    def of(self, tensors: list[torch.Tensor], step: int, *, sampled: bool) -> torch.Tensor | float | None:
        """The exact norm of the gradients of these parameters, a number where it is on the host; None without any.

        On a ``sampled`` step the norms of the single gradients are kept for its frame.
        """
        started = perf_counter()
        parameters = self._holdings.parameters()
        found = parameters.gradient_norm(tensors)
        norm = host_value(found) if found is not None else None
        if not sampled:  # the governor asks for no others
            parameters.forget_norms()
            self._governor.norm_took(perf_counter() - started)
        if isinstance(norm, float) and not math.isfinite(norm):
            self._blackbox.gradients(step)
        return norm
