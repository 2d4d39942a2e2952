"""What samples of parameters become: tables on their devices, and columns of weights, gradients and updates on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gradscope.capture.arena import row_spread
from gradscope.capture.arena import rows_at_once
from gradscope.records import Array
from gradscope.trends import Mask

_TINY = 1e-38
_WEIGHT_COLUMNS = (
    "weight.row_spread", "update.ratio", "update.unchanged",
    "update.outside_change", "update.outside_factor", "update.outside_residual",
)  # fmt: skip
_GRADIENT_COLUMNS = ("weight_gradient.absmax", "weight_gradient.zero", "weight_gradient.row_spread")
WEIGHT_ROWS, GRADIENT_ROWS = 8, len(_GRADIENT_COLUMNS)  # of their tables


@dataclass(frozen=True)
class GroupMasks:
    """Which rows of one device hold what, in the steps from ``first`` on."""

    first: int  # of the steps that are held, the first that the group's table of weights is of
    before: Mask  # [steps, rows]
    after: Mask  # [steps, rows]
    after_last: Mask  # [steps, rows]
    gradient: Mask  # [rows], of the last step; none where gradients were not sampled


@dataclass(frozen=True)
class Masks:
    """What of the parameters was there in each of a few steps."""

    with_gradient: Mask  # [steps, parameters]
    stepped: Mask  # [steps, parameters]; those whose optimizers made the step
    groups: tuple[GroupMasks, ...]
    here: Mask  # [parameters]; those of which anything lies on this rank
    order: npt.NDArray[np.int64]  # from place among the groups' rows to site


def weight_table(before: torch.Tensor, after: torch.Tensor, after_last: torch.Tensor, *, spread_from: int) -> torch.Tensor:
    """Float32 [WEIGHT_ROWS, steps x rows], in the order of ``_weight_columns``; row spreads from a row on, NaN before it.

    Of the same rows of three arenas, [steps x rows, ELEMENTS] each, the steps one after another.
    """
    at_once = rows_at_once(before.device, before.shape[1])
    parts = [
        _weight_part(before[start : start + at_once], after[start : start + at_once], after_last[start : start + at_once],
                     spread_from=max(spread_from - start, 0))
        for start in range(0, len(before), at_once)
    ]  # fmt: skip
    return torch.cat(parts, dim=1) if parts else before.new_zeros(WEIGHT_ROWS, 0)


def _weight_part(before: torch.Tensor, after: torch.Tensor, after_last: torch.Tensor, *, spread_from: int) -> torch.Tensor:
    norm = torch.linalg.vector_norm
    work = torch.empty_like(before)
    before_norm = norm(before, 2, 1)
    unchanged = torch.eq(after, before, out=work).mean(1)
    moved = norm(torch.sub(after, before, out=work), 2, 1)
    outside = _outside(before, after_last, before_norm)
    return torch.stack((_spread_from(before, spread_from), moved, before_norm, unchanged, *outside))


def gradient_table(gradient: torch.Tensor) -> torch.Tensor:
    """Float32 [GRADIENT_ROWS, rows], in the order of ``_GRADIENT_COLUMNS``."""
    parts = [
        _gradient_part(part) for part in torch.split(gradient, rows_at_once(gradient.device, gradient.shape[1])) if len(part)
    ]
    return torch.cat(parts, dim=1) if parts else gradient.new_zeros(GRADIENT_ROWS, 0)


def _gradient_part(gradient: torch.Tensor) -> torch.Tensor:
    absmax = torch.maximum(gradient.amax(1), gradient.amin(1).neg_())
    return torch.stack((absmax, torch.eq(gradient, 0).float().mean(1), row_spread(gradient)))


def _spread_from(x: torch.Tensor, start: int) -> torch.Tensor:
    spread = x.new_full((len(x),), float("nan"))
    if start < len(x):
        spread[start:] = row_spread(x[start:])
    return spread


def _outside(before: torch.Tensor, after_last: torch.Tensor, before_norm: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The weights since the last step: norms of their change and of what they were, factor, norm of what it leaves over."""
    if before.device.type == "cpu" and torch.equal(before, after_last):  # the rule, and elsewhere the question would wait
        none = torch.zeros_like(before_norm)
        return none, before_norm, torch.ones_like(before_norm), none
    norm = torch.linalg.vector_norm
    factor = (before * after_last).sum(1) / after_last.square().sum(1).clamp_min_(_TINY)
    left = norm(before - factor[:, None] * after_last, 2, 1)
    return norm(before - after_last, 2, 1), norm(after_last, 2, 1), factor, left


def columns(found: Sequence[Array], masks: Masks) -> dict[str, Array]:
    """The columns of weights, their gradients and updates, float32 [steps, parameters] each, of ``ParameterProbe.tables``."""
    steps, count = masks.with_gradient.shape
    weight_norms, carried, *others = found
    gradient_norms, tables = others[:steps], others[steps:]
    norms = _of_last(weight_norms, steps, count)
    gradients = np.full((steps, count), np.nan, dtype=np.float32)
    for row, there, values in zip(gradients, masks.with_gradient, gradient_norms, strict=True):
        row[there] = values
    weighed = (np.arange(steps)[:, None] >= steps - bool(len(weight_norms))) & masks.here
    columns = {**_norm_columns("weight", norms, weighed), **_norm_columns("weight_gradient", gradients, masks.with_gradient)}
    columns["weight_gradient.carried"] = _of_last(carried, steps, count)
    weights = [_weights_of_group(table, group, steps) for table, group in zip(tables[::2], masks.groups, strict=True)]
    taken = [_gradients_of_group(table, group, steps) for table, group in zip(tables[1::2], masks.groups, strict=True)]
    for names, parts in ((_WEIGHT_COLUMNS, weights), (_GRADIENT_COLUMNS, taken)):
        none = np.zeros((steps, 0), dtype=np.float32)
        for name in names:
            columns[name] = np.concatenate([none, *(part[name] for part in parts)], axis=1)[:, masks.order]
    for name in ("weight_gradient.carried", "update.ratio", "update.unchanged"):
        columns[name] = np.where(masks.stepped, columns[name], np.float32(np.nan))
    return columns


def _of_last(values: Array, steps: int, count: int) -> Array:
    """A column that the last step alone may have."""
    column = np.full((steps, count), np.nan, dtype=np.float32)
    if len(values):
        column[-1] = values
    return column


def _weights_of_group(table: Array, group: GroupMasks, steps: int) -> dict[str, Array]:
    """One device's columns over all of the steps, NaN in those that its table is not of."""
    of, rows = group.before.shape
    found = _weight_columns(table.reshape(WEIGHT_ROWS, of, rows), group)
    if of == steps:
        return found
    whole = {name: np.full((steps, rows), np.nan, dtype=np.float32) for name in found}
    for name, part in found.items():
        whole[name][group.first : group.first + of] = part
    return whole


def _gradients_of_group(table: Array, group: GroupMasks, steps: int) -> dict[str, Array]:
    rows = group.before.shape[1]
    whole = {name: np.full((steps, rows), np.nan, dtype=np.float32) for name in _GRADIENT_COLUMNS}
    if len(group.gradient):
        for name, values in zip(_GRADIENT_COLUMNS, table, strict=True):
            whole[name][-1] = np.where(
                group.gradient, values if name.endswith("zero") else _not_nan(values), np.float32(np.nan)
            )
    return whole


def _norm_columns(kind: str, norms: Array, there: Mask) -> dict[str, Array]:
    """Exact norms, infinity for one that is not finite and NaN for what is not there."""
    nan = np.float32(np.nan)
    nonfinite = (~np.isfinite(norms)).astype(np.float32)
    return {f"{kind}.norm": np.where(there, _not_nan(norms), nan), f"{kind}.nonfinite": np.where(there, nonfinite, nan)}


def _weight_columns(values: Array, group: GroupMasks) -> dict[str, Array]:
    spread, moved, norm, unchanged, outside, last_norm, factor, left = values
    nan = np.float32(np.nan)
    stepped, between = group.before & group.after, group.before & group.after_last
    with np.errstate(all="ignore"):
        ratio = np.where(stepped & (norm > 0), _not_nan(moved / norm), nan)
        change = np.where(between & (last_norm > 0), _not_nan(outside / last_norm), nan)
        residual = np.where(between & (outside > 0), _not_nan(left / outside), nan)
    spread = np.where(group.before, spread, nan)
    unchanged = np.where(stepped, unchanged, nan)
    factor = np.where(between & (last_norm > 0), factor, nan)
    found = (spread, ratio, unchanged, change, factor, residual)
    return {name: part.astype(np.float32) for name, part in zip(_WEIGHT_COLUMNS, found, strict=True)}


def _not_nan(values: Array) -> Array:
    """What was captured and came out as NaN is not finite: it stands as infinity."""
    return np.where(np.isnan(values), np.float32(np.inf), values)
