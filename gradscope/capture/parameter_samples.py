"""What is sampled of the parameters of one device, and the tables that it becomes there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import Arena
from gradscope.capture.parameter_tables import GRADIENT_ROWS
from gradscope.capture.parameter_tables import WEIGHT_ROWS
from gradscope.capture.parameter_tables import GroupMasks
from gradscope.capture.parameter_tables import gradient_table
from gradscope.capture.parameter_tables import weight_table
from gradscope.capture.parameter_views import Sampled
from gradscope.capture.parameter_views import Views
from gradscope.capture.parameter_views import views_of
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import Grid
from gradscope.capture.sampling import parameter_block
from gradscope.capture.sampling import parameter_grid
from gradscope.capture.shards import gradient_here
from gradscope.capture.shards import is_spread
from gradscope.capture.shards import local_of
from gradscope.capture.turns import Turns
from gradscope.trends import Mask


@final
class Samples:
    """What is sampled of the matrices, or of the vectors, on one device, of as many steps as are held back.

    Rows are the same in every arena.
    """

    def __init__(self, device: torch.device, turns: Turns, parameters: Mapping[str, torch.nn.Parameter], samples: int) -> None:
        self.device = device
        self.taking = True  # in this step
        self._samples = samples  # of each unit
        room = len(parameters)
        self.before = Arena(device, turns.before, samples=samples, room=room)  # weights at the start of the optimizer's step
        self.after = Arena(device, turns.after, samples=samples, room=room)  # weights at the end of the optimizer's step
        self.gradient = Arena(device, turns.gradient, samples=samples, room=room)
        patterns: dict[tuple[Any, ...], Grid | Block] = {}
        self.tracked = [self._add(name, parameter, patterns) for name, parameter in parameters.items()]
        self._spread = any(map(is_spread, parameters.values()))
        self._weights = Views((), (), (), ())
        self._found: list[int] = []  # held steps that found the weights as the step before had left them
        self._of: range | None = None  # the held steps from the first to the last in which anything was taken

    def _add(self, name: str, parameter: torch.nn.Parameter, patterns: dict[tuple[Any, ...], Grid | Block]) -> Sampled:
        row = min(arena.add_row().index for arena in (self.before, self.after, self.gradient))  # the same in all
        local = local_of(parameter)
        layout = (tuple(local.shape), local.stride())
        if layout not in patterns:
            patterns[layout] = parameter_grid(*layout, self._samples) or parameter_block(*layout, self._samples, self.device)
        return Sampled(name, parameter, row, patterns[layout], local.shape, local.device)

    def take_weights(self, arena: Arena) -> None:
        """Sample the weights, which stay where they are from step to step, as a rule."""
        weights = [local_of(t.parameter) for t in self.tracked] if self._spread else [t.parameter for t in self.tracked]
        addresses = tuple([weight.data_ptr() for weight in weights])
        if self._weights.addresses != addresses:
            self._weights = views_of([(t, weight) for t, weight in zip(self.tracked, weights, strict=True) if t.fits(weight)])
        self._weights.copy_into(arena)

    def take_gradients(self) -> None:
        """Sample the gradients that are there, and laid out as their parameters are."""
        there = ((t, gradient_here(t.parameter) if self._spread else t.parameter.grad) for t in self.tracked)
        views_of([(t, gradient) for t, gradient in there if gradient is not None and t.fits(gradient)]).copy_into(self.gradient)

    def find_before(self, place: int) -> None:
        """The step at this place found the weights as the step before had left them."""
        self._found.append(place)

    def end_step(self, place: int) -> None:
        if self.taking:
            self._of = range(place if self._of is None else self._of.start, place + 1)

    def tables(self, *, weighed: bool, gradients: bool) -> list[torch.Tensor]:
        """Of the weights in the held steps in which anything was taken; where wanted, of the last step's gradients."""
        if self._of is None:
            return [torch.zeros(rows, 0, dtype=torch.float32, device="cpu") for rows in (WEIGHT_ROWS, GRADIENT_ROWS)]
        for place in self._found:
            self.before.adopt(self.after, place)
        now, later = self._of, range(self._of.start + 1, self._of.stop + 1)
        spread_from = (len(now) - weighed) * len(self.tracked)
        weights = weight_table(self.before.held(now), self.after.held(later), self.after.held(now), spread_from=spread_from)
        return [weights, gradient_table(self.gradient.held(range(gradients)))]

    def masks(self, follows: Mask, *, gradients: bool) -> GroupMasks:
        """``follows`` says of each held step whether the step before it was sampled too. What came between two steps is not
        known where the second was not looked at before it.
        """
        now = self._of if self._of is not None else range(0)
        later = range(now.start + 1, now.stop + 1)
        arenas = ((self.before, now), (self.after, later), (self.after, now))
        filled = np.array([arena.filled_at(places) for arena, places in arenas], dtype=bool)
        before, after, after_last = filled.reshape(3, len(now), len(self.tracked))
        looked = follows.copy()
        looked[[place for place in self._found if place < len(follows)]] = False
        after_last &= looked[now.start : now.stop, None]
        there = self.gradient.filled_at(_FIRST)[0] if gradients and self._of is not None else []
        return GroupMasks(now.start, before, after, after_last, np.array(there, dtype=bool))

    def let_go(self, held: int, *, amid: bool) -> None:
        """The first ``held`` steps were handed on: what the last of them left moves up, and so does the step that is made."""
        self.after.move(held, 0)
        if amid:
            self.after.move(held + 1, 1)
            self.before.move(held, 0)
        self._found = [0] if amid and held in self._found else []
        self._of = None


_FIRST = range(1)
