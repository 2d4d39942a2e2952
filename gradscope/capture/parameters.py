"""The parameter probe: exact norms, and samples before and after the optimizer that show the true update."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import Arena
from gradscope.capture.parameter_tables import GroupMasks
from gradscope.capture.parameter_tables import Masks
from gradscope.capture.parameter_tables import Rows
from gradscope.capture.parameter_tables import table
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import Grid
from gradscope.capture.sampling import parameter_block
from gradscope.capture.sampling import parameter_grid
from gradscope.records import Site
from gradscope.trends import Mask


@final
@dataclass
class _Tracked:
    """One parameter, its device's samples and its row there."""

    name: str
    parameter: torch.nn.Parameter
    samples: _Samples
    row: int
    pattern: Grid | Block  # which of its elements are sampled
    shape: torch.Size

    def describes(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the parameter is still the one that the offsets were worked out for."""
        same = parameter is self.parameter and parameter.shape == self.shape
        return same and parameter.device == self.samples.device


@final
class _Samples:
    """What is sampled of the matrices, or of the vectors, on one device, of as many steps as are held back.

    Rows are the same in every arena. What the optimizer leaves of a step stands a place further on than what it finds, so that
    the place before is the last step's.
    """

    def __init__(self, device: torch.device, places: int) -> None:
        self.device = device
        self.taking = True  # in this step
        self.before = Arena(device, places=places)  # weights at the start of the optimizer's step
        self.carried = Arena(device, places=places)  # gradients as the step's first backward found them
        self.after = Arena(device, places=places + 1)  # weights at the end of the optimizer's step
        self.gradient = Arena(device, places=places + 1)
        self.tracked: list[_Tracked] = []
        self._of: range | None = None  # the held steps from the first to the last in which anything was taken
        self._any_carried = False
        self.turn_to(0)

    def add(self, name: str, parameter: torch.nn.Parameter) -> None:
        row = min(arena.add_row() for arena in (self.before, self.carried, self.after, self.gradient))  # the same in all
        shape, strides = tuple(parameter.shape), parameter.stride()
        pattern = parameter_grid(shape, strides) or parameter_block(shape, strides, self.device)
        self.tracked.append(_Tracked(name, parameter, self, row, pattern, parameter.shape))

    def weights(self) -> list[tuple[_Tracked, torch.Tensor]]:
        return [(t, t.parameter) for t in self.tracked]

    def gradients(self) -> list[tuple[_Tracked, torch.Tensor]]:
        """Those that are there, and laid out as their parameters are."""
        there = ((t, t.parameter.grad) for t in self.tracked)
        return [(t, gradient) for t, gradient in there if gradient is not None and _fits(gradient, t)]

    def turn_to(self, place: int) -> None:
        """A step begins."""
        for arena, at in ((self.before, place), (self.carried, place), (self.after, place + 1), (self.gradient, place + 1)):
            arena.turn_to(at)
            arena.clear()

    def end_step(self, place: int) -> None:
        self._any_carried |= any(self.carried.filled)
        if self.taking:
            self._of = range(place if self._of is None else self._of.start, place + 1)

    def table(self, *, spread_from: int) -> torch.Tensor:
        """Of the held steps in which anything was taken; row spreads from one of the steps on."""
        if self._of is None:
            return torch.zeros(13, 0, dtype=torch.float32, device="cpu")
        now, later = self._of, range(self._of.start + 1, self._of.stop + 1)
        rows = Rows(
            before=self.before.held(now),
            after=self.after.held(later),
            after_last=self.after.held(now),
            gradient=self.gradient.held(later),
            gradient_last=self.gradient.held(now),
            carried=self.carried.held(now),
        )
        first_row = (spread_from - now.start) * len(self.tracked)
        return table(rows, any_carried=self._any_carried, spread_from=first_row)

    def masks(self, follows: Mask) -> GroupMasks:
        """``follows`` says of each held step whether the step before it was sampled too."""
        now = self._of if self._of is not None else range(0)
        later = range(now.start + 1, now.stop + 1)
        arenas = ((self.before, now), (self.after, later), (self.after, now), (self.gradient, later), (self.gradient, now))
        filled = np.array([arena.filled_at(places) for arena, places in (*arenas, (self.carried, now))], dtype=bool)
        filled = filled.reshape(6, len(now), len(self.tracked))
        filled[[2, 4]] &= follows[now.start : now.stop, None]
        return GroupMasks(now.start, filled)

    def let_go(self, held: int, *, amid: bool) -> None:
        """The first ``held`` steps were handed on: what the last of them left moves up, and so does the step that is made."""
        for arena in (self.after, self.gradient):
            arena.move(held, 0)
            if amid:
                arena.move(held + 1, 1)
                arena.turn_to(1)
        for arena in (self.before, self.carried):
            if amid:
                arena.move(held, 0)
                arena.turn_to(0)
        self._of, self._any_carried = None, False


@dataclass(frozen=True)
class _HeldStep:
    """What is kept of a sampled step until it is handed on, beside its samples."""

    follows: bool  # the step before it was sampled too
    with_gradient: Mask  # [parameters]
    stepped: Mask  # [parameters]
    gradient_norms: torch.Tensor  # float32 [parameters with a gradient]
    weight_norms: torch.Tensor | None  # float32 [parameters]; of the last step that is held at most


@final
class ParameterProbe:
    """Watches the parameters of a model through the optimizer's steps."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], *, places: int = 1) -> None:
        groups: dict[tuple[torch.device, bool], _Samples] = {}
        for name, parameter in parameters.items():
            if _can_be_tracked(parameter):
                key = (parameter.device, parameter.dim() > 1)
                if key not in groups:
                    groups[key] = _Samples(parameter.device, places)
                groups[key].add(name, parameter)
        self._groups = tuple(groups.values())
        self._vectors = tuple(samples for (_, matrices), samples in groups.items() if not matrices)
        grouped = {t.name: place for place, t in enumerate(t for samples in self._groups for t in samples.tracked)}
        order = [name for name in parameters if name in grouped]
        self._order = np.array([grouped[name] for name in order], dtype=np.int64)  # from place among the groups' rows to site
        by_name = {t.name: t for samples in self._groups for t in samples.tracked}
        self._tracked = [by_name[name] for name in order]
        self._every_name, self._all = frozenset(order), np.ones(len(order), dtype=bool)
        self._by_id = {id(t.parameter): t for t in self._tracked}
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.sites = tuple(Site(t.name) for t in self._tracked)
        self._weight_norms: torch.Tensor | None = None
        self._norms_at_hand: dict[int, torch.Tensor] = {}  # by parameter, since the last global norm
        self._gradient_norms: list[torch.Tensor] = []
        self._with_gradient: list[_Tracked] = []
        self._remembers = False  # the step before this one was sampled
        self._held: list[_HeldStep] = []

    def describes(self, model: torch.nn.Module) -> bool:
        """Whether these are the model's parameters as they are now: none added, replaced, resized or on another device."""
        held = [p for module in model.modules() for p in module._parameters.values() if p is not None]
        now = {id(p): p for p in held if _can_be_tracked(p)}
        known = self._by_id
        return now.keys() == known.keys() and all(t.describes(now[key]) for key, t in known.items())

    def names(self, parameters: Sequence[torch.Tensor]) -> tuple[str, ...]:
        """Which of these tensors are watched parameters."""
        return tuple(self._names[id(p)] for p in parameters if id(p) in self._names)

    def gradient_norm(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Exact global norm of the gradients of these parameters, a scalar on the device of the first; None without any.

        The norms of the single gradients are kept for ``take_gradients``, which has to follow before any gradient changes.
        """
        gradients = {id(p): g for p in parameters if (g := _dense_gradient(p)) is not None}
        self._norms_at_hand = {}
        if not gradients:
            return None
        norms = _norms(list(gradients.values()))
        self._norms_at_hand = dict(zip(gradients, norms, strict=True))
        home = norms[0].device
        if any(norm.device != home for norm in norms):
            norms = [norm.to(home, non_blocking=True) for norm in norms]
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total

    def forget_norms(self) -> None:
        """Let go of the norms of single gradients: this step is not sampled."""
        self._norms_at_hand = {}

    # -- one sampled step

    def start_step(self, *, all_of_them: bool) -> None:
        """A sampled step begins. It samples all parameters, or the matrices alone, which hold nearly all there is to see."""
        alone = len(self._vectors) == len(self._groups)
        for samples in self._vectors:
            samples.taking = all_of_them or alone
        for samples in self._groups:
            samples.turn_to(len(self._held))
        self._with_gradient, self._gradient_norms, self._weight_norms = [], [], None

    @property
    def fits(self) -> bool:
        """Whether the offsets of every watched parameter still hold: none resized or on another device."""
        return all(t.describes(t.parameter) for t in self._tracked)

    @property
    def _chosen(self) -> Iterator[_Samples]:
        return (samples for samples in self._groups if samples.taking)

    def take_carried(self) -> None:
        """Before the step's first backward: sample gradients that are still there."""
        self._norms_at_hand = {}
        for samples in self._groups:
            samples.carried.clear()
        for samples in self._chosen:
            _take(samples.carried, samples.gradients())

    def weigh(self) -> None:
        """Before the optimizer's step, now and then: the exact norms of the weights. Reads all of the model's memory."""
        self._weight_norms = _stacked(_norms([t.parameter.detach() for t in self._tracked]))

    def take_before(self) -> None:
        """Before the optimizer's step: sample weights and gradients, and take the gradients' exact norms."""
        for samples in self._chosen:
            _take(samples.before, samples.weights())
        self.take_gradients()

    def take_gradients(self) -> None:
        """Sample the gradients as they are now; again after a step that worked them out in a closure."""
        for samples in self._groups:
            samples.gradient.clear()
        self._with_gradient = [t for t in self._tracked if t.parameter.grad is not None]
        self._gradient_norms = self._norms_of_gradients([t.parameter for t in self._with_gradient])
        for samples in self._chosen:
            _take(samples.gradient, samples.gradients())

    def _norms_of_gradients(self, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        known, self._norms_at_hand = self._norms_at_hand, {}
        rest = {id(p): g for p in parameters if id(p) not in known and (g := _dense_gradient(p)) is not None}
        known.update(zip(rest, _norms(list(rest.values())), strict=True))
        return [known[id(p)] for p in parameters]

    @property
    def ids(self) -> Container[int]:
        """The watched parameters by ``id``."""
        return self._names

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t.parameter for t in self._tracked]

    @property
    def cleared(self) -> bool:
        """Whether no parameter holds a gradient."""
        return all(t.parameter.grad is None for t in self._tracked)

    @property
    def has_gradients(self) -> bool:
        return bool(self._with_gradient)

    def take_after(self) -> None:
        """After the optimizer's step: sample the weights again."""
        for samples in self._chosen:
            _take(samples.after, samples.weights())

    def end_step(self, stepped: Collection[str]) -> None:
        """The sampled step is over. ``stepped`` are the parameters whose optimizers made it: only theirs is the update, and the
        carried gradient.
        """
        for samples in self._groups:
            samples.end_step(len(self._held))
        self._held.append(
            _HeldStep(
                follows=self._remembers,
                with_gradient=self._mask(frozenset(t.name for t in self._with_gradient)),
                stepped=self._mask(frozenset(stepped)),
                gradient_norms=_stacked(self._gradient_norms),
                weight_norms=self._weight_norms,
            )
        )
        self._remembers = True
        self._with_gradient, self._gradient_norms, self._weight_norms = [], [], None

    def _mask(self, names: frozenset[str]) -> Mask:
        """Which parameters have one of these names."""
        if names == self._every_name:  # the rule
            return self._all
        return np.array([t.name in names for t in self._tracked], dtype=bool)

    def forget(self) -> None:
        """The step that has ended does not count as the one before the next sampled step."""
        self._remembers = False

    # -- the steps that are held

    def tables(self) -> list[torch.Tensor]:
        """All that they showed as tensors on their devices, for ``parameter_tables.columns`` once they are on the host."""
        weights = self._held[-1].weight_norms
        spread_from = len(self._held) - (weights is not None)
        tables = [samples.table(spread_from=spread_from) for samples in self._groups]
        norms = [weights if weights is not None else _stacked([]), *(step.gradient_norms for step in self._held)]
        return [*norms, *tables]

    def masks(self) -> Masks:
        """What of it was there."""
        follows = np.array([step.follows for step in self._held], dtype=bool)
        return Masks(
            with_gradient=np.stack([step.with_gradient for step in self._held]),
            stepped=np.stack([step.stepped for step in self._held]),
            groups=tuple(samples.masks(follows) for samples in self._groups),
            order=self._order,
            weighed=self._held[-1].weight_norms is not None,
        )

    def let_go(self, *, amid: bool) -> None:
        """They were handed on; ``amid`` a step, which goes on."""
        for samples in self._groups:
            samples.let_go(len(self._held), amid=amid)
        self._held = []


def _take(arena: Arena, found: Sequence[tuple[_Tracked, torch.Tensor]]) -> None:
    """Sample tensors into the rows of their parameters."""
    rows: list[int] = []
    views: list[torch.Tensor] = []
    with torch.no_grad():  # cheaper than to detach every tensor
        for t, tensor in found:
            if isinstance(t.pattern, Grid):
                rows.append(t.row)
                views.append(tensor.as_strided(t.pattern.shape, t.pattern.strides))
            else:
                arena.gather(t.row, tensor, t.pattern)
        if rows:
            arena.copy(rows, views)


def _norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Euclidean norm of each, float32. Squares are summed in float32 (float64 for float64): past 1.8e19 they are infinite."""
    if not tensors:
        return []
    if any(tensor.dtype is torch.float64 for tensor in tensors):
        return [norm.float() for norm in torch._foreach_norm(tensors, dtype=torch.float64)]
    return list(torch._foreach_norm(tensors, dtype=torch.float32))


def _stacked(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float32, device="cpu")


def _can_be_tracked(parameter: torch.nn.Parameter) -> bool:
    return parameter.is_floating_point() and parameter.layout is torch.strided and parameter.numel() > 0


def _dense_gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    gradient = parameter.grad
    if gradient is None or not gradient.is_floating_point():
        return None
    if gradient.is_sparse:
        return gradient.detach().coalesce().values()
    return gradient.detach() if gradient.requires_grad else gradient


def _fits(gradient: torch.Tensor, tracked: _Tracked) -> bool:
    """Whether the parameter's offsets pick the same elements of its gradient."""
    same_layout = gradient.layout is torch.strided and gradient.stride() == tracked.parameter.stride()
    return same_layout and gradient.device == tracked.samples.device
