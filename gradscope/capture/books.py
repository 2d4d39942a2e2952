"""The books: each step's time and cheap scalars, as the pulses tell them and as the governor goes by them."""

from __future__ import annotations

from typing import final

import torch

from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import QuietStep
from gradscope.capture.schedule import Governor

# What the three calls of a step take before and after gradscope's own clock runs: between two operations of a training, what
# they touch has to be fetched anew. 15 to 25 µs where docs/benchmarks.md was measured.
UNSEEN_SECONDS = 15e-6


@final
class Books:
    """Counts the steps, and closes each with what it took."""

    def __init__(self, pulses: PulseMaker, governor: Governor) -> None:
        self._pulses = pulses
        self._governor = governor
        self._probing = 0.0  # seconds of the step under way that a probe took of the last one
        self.step = 0  # the one under way
        self.prompt = False  # whether its pulse is to be handed on at its end

    def probed(self, seconds: float) -> None:
        """A probe has looked into the last step; what that took is paid back over time."""
        self._probing = seconds
        self._governor.owe(seconds)

    def close(self, learning_rate: float, *, seconds: float, own: float, sampled: bool, foreign: bool) -> bool:
        """The step is over; whether the next one is sampled."""
        own += UNSEEN_SECONDS
        self._pulses.end(self.step, learning_rate, seconds=seconds, own=own, sampled=sampled, foreign=foreign)
        if self.prompt:
            self.prompt = False
            self._pulses.flush()
        probing, self._probing = self._probing, 0.0
        sampled_next = self._governor.after(self.step, seconds=seconds - probing, own=own - probing, sampled=sampled)
        self.step += 1
        return sampled_next

    def close_quiet(self, steps: list[QuietStep]) -> bool:
        """Quiet steps are over; whether the next one is sampled."""
        at_hand = all(type(quiet.loss) is float and not isinstance(quiet.norm, torch.Tensor) for quiet in steps)
        return self._close_together(steps) if at_hand else self._close_singly(steps)

    def _close_together(self, steps: list[QuietStep]) -> bool:
        """What is at hand need not be sent anywhere."""
        self._pulses.flush()
        for quiet in steps:
            self._pulses.book(self.step, quiet._replace(own=quiet.own + UNSEEN_SECONDS))
            self.step += 1
        seconds = sum(quiet.seconds for quiet in steps)
        own = sum(quiet.own for quiet in steps) + UNSEEN_SECONDS * len(steps)
        return self._governor.after_quiet(self.step - 1, len(steps), seconds=seconds, own=own)

    def _close_singly(self, steps: list[QuietStep]) -> bool:
        sampled_next = False
        for quiet in steps:
            self._pulses.resume(quiet.loss)
            self._pulses.norm(None)
            self._pulses.norm(quiet.norm)
            sampled_next = self.close(quiet.learning_rate, seconds=quiet.seconds, own=quiet.own, sampled=False, foreign=False)
        return sampled_next
