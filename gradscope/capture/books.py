"""The books: each step's time and cheap scalars, as the pulses tell them and as the governor goes by them."""

from __future__ import annotations

from typing import final

import torch

from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import QuietStep
from gradscope.capture.schedule import Governor

# What the three calls of a step take before and after gradscope's own clock runs: between two operations of a training, what
# they touch has to be fetched anew. With 35 µs, the account of runs with steps of 1, 7 and 36 ms came to 22, 26 and 36 µs too
# much a step (docs/benchmarks.md).
UNSEEN_SECONDS = 15e-6
# Of what the clock sees of a sampled step: how hooks are called, and how long the training's own operations wait, in this step
# and the next ones, for what gradscope has driven out of the caches. 5 to 30 % where ten trainings were timed, half of them
# within 10 to 20 %; more for a mixture of experts, whose modules are many and small.
UNSEEN_SHARE = 0.17


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
        probing, self._probing = self._probing, 0.0
        own += self._unseen(own - probing, sampled=sampled)
        self._pulses.end(self.step, learning_rate, seconds=seconds, own=min(own, seconds), sampled=sampled, foreign=foreign)
        if self.prompt:
            self.prompt = False
            self._pulses.flush()
        sampled_next = self._governor.after(self.step, seconds=seconds - probing, own=own - probing, sampled=sampled)
        self.step += 1
        return sampled_next

    def _unseen(self, own: float, *, sampled: bool) -> float:
        """What gradscope takes of a step beyond what its clock saw."""
        return UNSEEN_SECONDS + (UNSEEN_SHARE * own + self._governor.unseen if sampled else 0.0)

    def close_quiet(self, steps: list[QuietStep], *, sampled: bool) -> bool:
        """Quiet steps, or light sampled ones, are over; whether the next one is sampled."""
        at_hand = all(type(quiet.loss) is float and not isinstance(quiet.norm, torch.Tensor) for quiet in steps)
        return self._close_together(steps, sampled=sampled) if at_hand else self._close_singly(steps, sampled=sampled)

    def _close_together(self, steps: list[QuietStep], *, sampled: bool) -> bool:
        """What is at hand need not be sent anywhere."""
        self._pulses.flush()
        own = 0.0
        for quiet in steps:
            taken = quiet.own + self._unseen(quiet.own, sampled=sampled)
            self._pulses.book(self.step, quiet._replace(own=taken), sampled=sampled)
            self.step += 1
            own += taken
        seconds = sum(quiet.seconds for quiet in steps)
        return self._governor.after_quiet(self.step - 1, len(steps), seconds=seconds, own=own, sampled=sampled)

    def _close_singly(self, steps: list[QuietStep], *, sampled: bool) -> bool:
        sampled_next = False
        for quiet in steps:
            self._pulses.resume(quiet.loss)
            self._pulses.norm(None)
            self._pulses.norm(quiet.norm)
            sampled_next = self.close(quiet.learning_rate, seconds=quiet.seconds, own=quiet.own, sampled=sampled, foreign=False)
        return sampled_next
