"""Optimizers of other models that step in the same loop, and what of our step they leave as it was."""

from __future__ import annotations

import weakref
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.graph import reaches

STEPS = 3  # of an optimizer without our parameters, before the first with them, that are taken for ours


@final
class Strangers:
    """Tells a model that shares its losses with another, as a generator does, from two that only take turns."""

    def __init__(self) -> None:
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._reached: set[int] = set()  # by ``id``, those whose parameters a loss of this step reaches too
        self._alone = 0  # steps, with no optimizer that holds parameters of a watched model
        self.stepped = False  # any of them, since a loss of ours was the first of a step

    def begin(self) -> None:
        """A loss of ours is the first of a step, or takes the place of those before it."""
        self._reached.clear()
        self.stepped = False

    def see(self, loss: torch.Tensor) -> None:
        """A loss of ours, on a sampled step."""
        for optimizer in self._known if loss.grad_fn is not None else ():
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if reaches(loss.grad_fn, held):
                self._reached.add(id(optimizer))

    def add(self, optimizer: Optimizer) -> bool:
        """One has stepped; whether the losses since ``begin`` may have been its own as well."""
        unknown = optimizer not in self._known
        self._known.add(optimizer)
        self.stepped = True
        return unknown or id(optimizer) in self._reached

    @property
    def are_next_taken_for_ours(self) -> bool:
        """Whether the next of their steps, with nobody's parameters, would be taken for ours."""
        return self._alone >= STEPS - 1

    def are_taken_for_ours(self) -> bool:
        """One has stepped that holds nobody's parameters, where none of ours ever has; whether that was meant for ours."""
        self._alone += 1
        return self._alone >= STEPS
