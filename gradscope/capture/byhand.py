"""Steps that no optimizer makes, in a loop that moves the weights itself and tells of each step with ``scope.step()``."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import final

import torch

from gradscope.capture.describe import Description
from gradscope.capture.holdings import Holdings
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.sampled import SampledSteps
from gradscope.capture.steps import LOOP


@final
class StepsByHand:
    """Takes of such a step what is taken around an optimizer's, as long as no optimizer of the model's has stepped."""

    def __init__(
        self,
        description: Description,
        holdings: Holdings,
        sampled: SampledSteps,
        pulses: PulseMaker,
        take_norm: Callable[[list[torch.Tensor]], None],
        guard: Callable[[], None],
    ) -> None:
        self._description = description
        self._holdings = holdings
        self._sampled = sampled
        self._pulses = pulses
        self._take_norm = take_norm  # add the norm of these parameters' gradients to the step's
        self._guard = guard  # called from an except clause: reports the failure and ends the watching
        self._seconds = 0.0
        self._clears = False  # whether gradients are gone before it, as many loops clear them with the update
        self.told = False  # whether a step was told of

    @property
    def _alone(self) -> bool:
        return not self._description.has_optimizer

    def after_backward(self) -> None:
        """Take the gradients, as they will be gone when the step is told of."""
        started = perf_counter()
        try:
            if self._alone and self._pulses.backwards:
                self._take_gradients()
        except Exception:
            self._guard()
        self._seconds += perf_counter() - started

    def end(self) -> None:
        """The user says that a step has ended: take the gradients as they are now, where none was cleared."""
        if self._alone:
            self._description.steps_by_hand()
        cleared = self._holdings.parameters().some_cleared
        if not cleared:
            self._take_gradients()
        if cleared is not self._clears:
            self._clears = cleared
            LOOP.tell_of_ends(self, wanted=cleared)
        self.told = True

    def _take_gradients(self) -> None:
        self._pulses.norm(None)
        self._take_norm(self._holdings.parameters().tensors)
        if self._sampled.on:
            self._sampled.take_gradients()

    def begin(self, *, thorough: bool) -> None:
        """The next step begins: take the weights as the last one left them, for what moves them next does so unheard."""
        if not self._sampled.on:
            return
        started = perf_counter()
        if self._alone:
            self._sampled.follow_changes()
        self._sampled.take_weights(thorough=thorough and self._alone)
        self._seconds += perf_counter() - started

    def take_seconds(self) -> float:
        """What all of it has taken since this was asked last, but for ``end``."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def stop(self) -> None:
        LOOP.tell_of_ends(self, wanted=False)
