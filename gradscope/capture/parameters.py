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
from gradscope.capture.arena import row_spread
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import parameter_block
from gradscope.records import Array
from gradscope.records import Site
from gradscope.trends import Mask

_TINY = 1e-38


@final
@dataclass
class _Tracked:
    """One parameter, its device's samples and its row there."""

    name: str
    parameter: torch.nn.Parameter
    samples: _Samples
    row: int
    block: Block
    shape: torch.Size

    def describes(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the parameter is still the one that the offsets were worked out for."""
        same = parameter is self.parameter and parameter.shape == self.shape
        return same and parameter.device == self.samples.device


@final
class _Samples:
    """What is sampled of the matrices, or of the vectors, on one device. Rows are the same in every arena."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.taking = True  # in this step
        self.before = Arena(device)  # weights at the start of the optimizer's step
        self.after = Arena(device)  # weights at its end
        self.after_last = Arena(device)  # weights at the end of the last sampled step
        self.gradient = Arena(device)
        self.gradient_last = Arena(device)
        self.carried = Arena(device)  # gradients as this step's first backward found them
        self.tracked: list[_Tracked] = []

    def arenas(self) -> tuple[Arena, ...]:
        return (self.before, self.after, self.after_last, self.gradient, self.gradient_last, self.carried)

    def add(self, name: str, parameter: torch.nn.Parameter) -> None:
        rows = [arena.add_row() for arena in self.arenas()]
        block = parameter_block(tuple(parameter.shape), parameter.stride(), self.device)
        self.tracked.append(_Tracked(name, parameter, self, rows[0], block, parameter.shape))

    def turn(self) -> None:
        """Make this step's samples the last step's."""
        self.after, self.after_last = self.after_last, self.after
        self.gradient, self.gradient_last = self.gradient_last, self.gradient
        for arena in (self.before, self.after, self.gradient, self.carried):
            arena.clear()

    def forget(self) -> None:
        self.after_last.clear()
        self.gradient_last.clear()


@final
class ParameterProbe:
    """Watches the parameters of a model through the optimizer's steps."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        groups: dict[tuple[torch.device, bool], _Samples] = {}
        for name, parameter in parameters.items():
            if _can_be_tracked(parameter):
                key = (parameter.device, parameter.dim() > 1)
                groups.setdefault(key, _Samples(parameter.device)).add(name, parameter)
        self._groups = tuple(groups.values())
        self._vectors = tuple(samples for (_, matrices), samples in groups.items() if not matrices)
        grouped = {t.name: place for place, t in enumerate(t for samples in self._groups for t in samples.tracked)}
        order = [name for name in parameters if name in grouped]
        self._order = np.array([grouped[name] for name in order], dtype=np.int64)  # from place among the groups' rows to site
        by_name = {t.name: t for samples in self._groups for t in samples.tracked}
        self._tracked = [by_name[name] for name in order]
        self._by_id = {id(t.parameter): t for t in self._tracked}
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.sites = tuple(Site(t.name) for t in self._tracked)
        self._weight_norms: list[torch.Tensor] = []
        self._gradient_norms: list[torch.Tensor] = []
        self._remembers = False  # the last sampled step
        self._norms_at_hand: dict[int, torch.Tensor] = {}  # by parameter, since the last global norm
        self._with_gradient: list[_Tracked] = []

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

    def choose(self, *, all_of_them: bool) -> None:
        """Which parameters the step to come samples: all, or the matrices alone, which hold nearly all there is to see."""
        alone = len(self._vectors) == len(self._groups)
        for samples in self._vectors:
            samples.taking = all_of_them or alone

    @property
    def _chosen(self) -> Iterator[_Tracked]:
        return (t for samples in self._groups if samples.taking for t in samples.tracked)

    def take_carried(self) -> None:
        """Before the step's first backward: sample gradients that are still there."""
        self._norms_at_hand = {}
        for samples in self._groups:
            samples.carried.clear()
        with torch.no_grad():
            for t in self._chosen:
                gradient = t.parameter.grad
                if gradient is not None and _fits(gradient, t):
                    t.samples.carried.gather(t.row, gradient, t.block)

    def weigh(self) -> None:
        """Before the optimizer's step, now and then: the exact norms of the weights. Reads all of the model's memory."""
        self._weight_norms = _norms([t.parameter.detach() for t in self._tracked])

    def take_before(self) -> None:
        """Before the optimizer's step: sample weights and gradients, and take the gradients' exact norms."""
        with torch.no_grad():  # cheaper than to detach every tensor
            for t in self._chosen:
                t.samples.before.gather(t.row, t.parameter, t.block)
        self.take_gradients()

    def take_gradients(self) -> None:
        """Sample the gradients as they are now; again after a step that worked them out in a closure."""
        for samples in self._groups:
            samples.gradient.clear()
        found = [(t, gradient) for t in self._tracked if (gradient := t.parameter.grad) is not None]
        self._with_gradient = [t for t, _ in found]
        self._gradient_norms = self._norms_of_gradients([t.parameter for t in self._with_gradient])
        with torch.no_grad():
            for t, gradient in found:
                if t.samples.taking and _fits(gradient, t):
                    t.samples.gradient.gather(t.row, gradient, t.block)

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
        with torch.no_grad():
            for t in self._chosen:
                t.samples.after.gather(t.row, t.parameter, t.block)

    def tables(self) -> list[torch.Tensor]:
        """Everything the step showed as tensors on their devices, for ``columns`` once they are on the host."""
        weighed = bool(self._weight_norms)
        tables = [_stacked(self._weight_norms)]
        tables.append(_stacked(self._gradient_norms))
        nothing = torch.zeros(13, 0, dtype=torch.float32, device="cpu")
        tables.extend(_table(samples, with_spread=weighed) if samples.taking else nothing for samples in self._groups)
        self._weight_norms, self._gradient_norms = [], []  # not kept amid the training's memory
        return tables

    def masks(self, stepped: Collection[str]) -> list[Mask]:
        """Which rows of each device's table hold what, taken after ``tables``; then the next step may begin.

        ``stepped`` are the parameters whose optimizer made the step: only theirs is the update, and the carried gradient.
        """
        with_gradient = {t.name for t in self._with_gradient}
        masks = [
            np.array([t.name in with_gradient for t in self._tracked], dtype=bool),
            np.array([t.name in stepped for t in self._tracked], dtype=bool),
        ]
        for s in self._groups:
            arenas = (s.before, s.after, s.after_last, s.gradient, s.gradient_last, s.carried)
            masks.append(np.array([arena.filled for arena in arenas], dtype=bool))
        for samples in self._groups:
            samples.turn()
        self._remembers = True
        self._with_gradient = []
        return masks

    def forget(self) -> None:
        """Drop the last step's samples: the step after it is not sampled."""
        if self._remembers:
            self._remembers = False
            for samples in self._groups:
                samples.forget()

    def columns(self, tables: Sequence[Array], masks: Sequence[Mask]) -> dict[str, Array]:
        """The columns of kind weight, weight_gradient and update; float32 [parameters] each."""
        norms, gradient_norms, *rest = tables
        with_gradient, stepped, *filled = masks
        weighed = np.concatenate([mask[0] for mask in filled])[self._order] if filled else with_gradient
        if not len(norms):  # the weights were not weighed in this step
            norms, weighed = np.full(len(with_gradient), np.nan, dtype=np.float32), np.zeros_like(weighed)
        gradient_norm = np.full(len(with_gradient), np.nan, dtype=np.float32)
        gradient_norm[np.flatnonzero(with_gradient)[: len(gradient_norms)]] = gradient_norms
        columns = {**_norm_columns("weight", norms, weighed), **_norm_columns("weight_gradient", gradient_norm, with_gradient)}
        parts = [
            _sample_columns(table if table.shape[1] else np.full((13, mask.shape[1]), np.nan, dtype=np.float32), mask)
            for table, mask in zip(rest, filled, strict=True)
        ]
        parts = parts or [_sample_columns(np.zeros((13, 0), dtype=np.float32), np.zeros((6, 0), dtype=bool))]
        for name in parts[0]:
            columns[name] = np.concatenate([part[name] for part in parts])[self._order]
        for name in ("weight_gradient.carried", "update.ratio", "update.unchanged"):
            columns[name] = np.where(stepped, columns[name], np.float32(np.nan))
        return columns


def _norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Euclidean norm of each, float32. Squares are summed in float32 (float64 for float64): past 1.8e19 they are infinite."""
    if not tensors:
        return []
    if any(tensor.dtype is torch.float64 for tensor in tensors):
        return [norm.float() for norm in torch._foreach_norm(tensors, dtype=torch.float64)]
    return list(torch._foreach_norm(tensors, dtype=torch.float32))


def _stacked(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms) if norms else torch.zeros(0, dtype=torch.float32, device="cpu")


def _norm_columns(kind: str, norms: Array, there: Mask) -> dict[str, Array]:
    """Exact norms, infinity for one that is not finite and NaN for what is not there."""
    nan = np.float32(np.nan)
    nonfinite = (~np.isfinite(norms)).astype(np.float32)
    return {f"{kind}.norm": np.where(there, _not_nan(norms), nan), f"{kind}.nonfinite": np.where(there, nonfinite, nan)}


def _table(s: _Samples, *, with_spread: bool) -> torch.Tensor:
    """Float32 [statistics, parameters of one device], in the order of ``_sample_columns``; NaN for a spread not asked."""
    if not s.tracked:
        return torch.zeros(13, 0, dtype=torch.float32, device=s.device)
    pieces = zip(*(arena.chunks() for arena in s.arenas()), strict=True)
    found = [_piece(*chunks, any_carried=any(s.carried.filled), with_spread=with_spread) for chunks in pieces]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _piece(
    before: torch.Tensor,
    after: torch.Tensor,
    after_last: torch.Tensor,
    gradient: torch.Tensor,
    gradient_last: torch.Tensor,
    carried: torch.Tensor,
    *,
    any_carried: bool,
    with_spread: bool,
) -> torch.Tensor:
    norm = torch.linalg.vector_norm
    work = torch.empty_like(before)
    before_norm = norm(before, 2, 1)
    none, unknown = torch.zeros_like(before_norm), torch.full_like(before_norm, float("nan"))
    weight_spread = row_spread(before) if with_spread else unknown
    gradient_spread = row_spread(gradient) if with_spread else unknown
    gradient_absmax = torch.maximum(gradient.amax(1), gradient.amin(1).neg_())
    gradient_zero = torch.eq(gradient, 0, out=work).mean(1)
    unchanged = torch.eq(after, before, out=work).mean(1)
    moved = norm(torch.sub(after, before, out=work), 2, 1)
    carried_norm = norm(carried, 2, 1) if any_carried else none
    same = torch.eq(carried, gradient_last, out=work).mean(1) if any_carried else none
    outside, last_norm, factor, left = _outside(before, after_last, before_norm)
    now = (weight_spread, gradient_absmax, gradient_zero, gradient_spread, moved, before_norm, unchanged)
    since = (outside, last_norm, factor, left, carried_norm, same)
    return torch.stack((*now, *since))


def _outside(before: torch.Tensor, after_last: torch.Tensor, before_norm: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The weights since the last step: norms of their change and of what they were, factor, norm of what it leaves over."""
    if before.device.type == "cpu" and torch.equal(before, after_last):  # the rule, and elsewhere the question would wait
        none = torch.zeros_like(before_norm)
        return none, before_norm, torch.ones_like(before_norm), none
    norm = torch.linalg.vector_norm
    factor = (before * after_last).sum(1) / after_last.square().sum(1).clamp_min_(_TINY)
    left = norm(before - factor[:, None] * after_last, 2, 1)
    return norm(before - after_last, 2, 1), norm(after_last, 2, 1), factor, left


def _sample_columns(table: Array, filled: Mask) -> dict[str, Array]:
    before, after, after_last, gradient, gradient_last, carried = filled
    (spread, g_absmax, g_zero, g_spread, moved, norm, unchanged, outside, last_norm, factor, left, carried_norm, same) = table
    nan = np.float32(np.nan)
    stepped, between = before & after, before & after_last
    with np.errstate(all="ignore"):
        ratio = np.where(stepped & (norm > 0), _not_nan(moved / norm), nan)
        change = np.where(between & (last_norm > 0), _not_nan(outside / last_norm), nan)
        residual = np.where(between & (outside > 0), _not_nan(left / outside), nan)
    still_there = (carried_norm > 0) & (same == 1) & carried & gradient_last
    columns = {
        "weight.row_spread": np.where(before, spread, nan),
        "weight_gradient.absmax": np.where(gradient, _not_nan(g_absmax), nan),
        "weight_gradient.zero": np.where(gradient, g_zero, nan),
        "weight_gradient.row_spread": np.where(gradient, g_spread, nan),
        "weight_gradient.carried": np.where(gradient & gradient_last, still_there, nan),
        "update.ratio": ratio,
        "update.unchanged": np.where(stepped, unchanged, nan),
        "update.outside_change": change,
        "update.outside_factor": np.where(between & (last_norm > 0), factor, nan),
        "update.outside_residual": residual,
    }
    return {name: values.astype(np.float32) for name, values in columns.items()}


def _not_nan(values: Array) -> Array:
    """What was captured and came out as NaN is not finite: it stands as infinity."""
    return np.where(np.isnan(values), np.float32(np.inf), values)


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
