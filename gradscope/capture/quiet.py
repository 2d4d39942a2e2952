"""Stands in for a watch over a stretch of steps at which only the loss and the time are taken, or what light samples take.

Between two steps of a training, everything that ran a step ago is gone from the caches, and each object touched has to be
fetched anew: what a step costs goes by how much is touched, not by how much is done. So the bookkeeping of these steps is put
off and done for a whole stretch at once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.light import LightSteps
from gradscope.capture.pulses import QuietStep
from gradscope.capture.pulses import kept_loss
from gradscope.capture.steps import LOOP
from gradscope.capture.steps import Listener
from gradscope.capture.transfer import number_at_hand

MOST_SECONDS = 0.5  # what a stretch may hold back from the record


@dataclass(frozen=True)
class Stretch:
    """What a stretch of quiet steps keeps to."""

    first: int  # the number of its first step
    stepped: Collection[str]  # the parameters that the optimizer holds
    sampled: bool  # whether each of its steps is a light sampled one
    most: int  # steps that it may have
    norm_in: int  # steps of it before the first whose gradient norm is taken
    norm_every: int
    highest_loss: float  # magnitude above which a loss ends it,
    highest_norm: float  # and a gradient norm


class Sleeper(Listener, Protocol):
    """The watch whose place is taken."""

    def wake(self, steps: list[QuietStep], pending: torch.Tensor | float | None, *, between: bool) -> None:
        """Listen again, ``between`` two steps or amid one. ``steps`` have ended meanwhile; ``pending`` is the loss of one that
        has begun.
        """


@final
class QuietSteps:
    """Listens while the loop goes on as it did: one backward pass and one step of the one optimizer in turn.

    At the end of the stretch, and at once where anything else happens, the watch is woken and told.
    """

    def __init__(
        self, watch: Sleeper, light: LightSteps, optimizer: Optimizer, stretch: Stretch, *, last_end: float, own: float
    ) -> None:
        self._watch = watch
        self._light = light
        self._optimizer = weakref.ref(optimizer)
        self._groups = len(optimizer.param_groups)
        self._stretch = stretch
        self._norm_at = stretch.norm_in
        self._began = self._last_end = last_end
        self._own = own  # seconds that gradscope has taken of the step that is being made
        self._pending: torch.Tensor | float | None = None
        self._norm: torch.Tensor | float | None = None
        self._steps: list[QuietStep] = []
        # To be called costs as much as what is done then.
        self.hears_starts = stretch.sampled or LOOP.nests or self._norm_at == 0

    @property
    def optimizer(self) -> Optimizer | None:
        return self._optimizer()

    @property
    def made(self) -> int:
        """Steps that have ended since the stretch began."""
        return len(self._steps)

    def hear_backward(self, loss: torch.Tensor) -> None:
        started = perf_counter()
        first = self._pending is None
        value = kept_loss(loss) if first and loss.numel() == 1 else math.nan
        if type(value) is float and not abs(value) <= self._stretch.highest_loss:
            self.end()
            self._watch.before_backward(loss)
            return
        self._pending = value
        self._own += perf_counter() - started

    def hear_start(self, optimizer: Optimizer) -> None:
        due = self._stretch.sampled or len(self._steps) >= self._norm_at
        if not due or self._pending is None or self._optimizer() is not optimizer:
            return
        started = perf_counter()
        self._norm = self._light.norm(optimizer, self._stretch.first + len(self._steps))
        self._norm_at = len(self._steps) + self._stretch.norm_every
        self._own += perf_counter() - started

    def hear_step(self, optimizer: Optimizer) -> None:
        started = perf_counter()
        groups = optimizer.param_groups
        loss = self._pending
        if loss is None or self._optimizer() is not optimizer or len(groups) != self._groups:
            self.end()
            self._watch.after_step(optimizer)
            return
        self._pending = None
        rate = groups[0]["lr"] if self._groups == 1 else rate_of(optimizer)
        rate = rate if type(rate) is float else rate_of(optimizer)
        norm, self._norm = self._norm, None
        if self._stretch.sampled:
            self._own += self._light.end_sample(self._stretch.first + len(self._steps), self._stretch.stepped)
        now = perf_counter()
        steps = self._steps
        steps.append(QuietStep(loss, norm, rate, now - self._last_end, self._own + now - started))
        self._last_end, self._own = now, 0.0
        over = len(steps) >= self._stretch.most or now - self._began > MOST_SECONDS
        if over or (type(norm) is float and not norm <= self._stretch.highest_norm):
            self._wake(between=True)
        elif not (LOOP.nests or self._stretch.sampled) and self.hears_starts != (len(steps) >= self._norm_at):
            self.hears_starts = not self.hears_starts
            LOOP.hear_starts(self.hears_starts)

    def end(self) -> None:
        """Wake the watch, wherever the loop is."""
        self._wake(between=False)

    def _wake(self, *, between: bool) -> None:
        steps, self._steps = self._steps, []
        self._watch.wake(steps, self._pending, between=between)


def rate_of(optimizer: Optimizer) -> float:
    """The largest of the groups'; NaN where one is a tensor on an accelerator, which reading would wait for."""
    rates = [number_at_hand(group.get("lr", math.nan)) for group in optimizer.param_groups]
    known = [rate for rate in rates if rate is not None]
    return max(known, default=math.nan) if len(known) == len(rates) else math.nan
