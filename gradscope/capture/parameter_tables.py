"""What samples of parameters become: tables on their devices, and columns of weights, gradients and updates on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gradscope.capture.arena import row_spread
from gradscope.records import Array
from gradscope.trends import Mask

_TINY = 1e-38
_STATISTICS = 13  # rows of a table


@dataclass(frozen=True)
class Rows:
    """The same rows of the six arenas of one device: [steps x rows, ELEMENTS] each, the steps one after another."""

    before: torch.Tensor
    after: torch.Tensor
    after_last: torch.Tensor
    gradient: torch.Tensor
    gradient_last: torch.Tensor
    carried: torch.Tensor


@dataclass(frozen=True)
class GroupMasks:
    """Which rows of one device hold what, in the steps from ``first`` on."""

    first: int  # of the steps that are held, the first that the group's table is of
    filled: Mask  # [6, steps, rows], in the order of ``Rows``


@dataclass(frozen=True)
class Masks:
    """What of the parameters was there in each of a few steps."""

    with_gradient: Mask  # [steps, parameters]
    stepped: Mask  # [steps, parameters]; those whose optimizers made the step
    groups: tuple[GroupMasks, ...]
    order: npt.NDArray[np.int64]  # from place among the groups' rows to site
    weighed: bool  # whether the last step's weights were weighed


def table(rows: Rows, *, any_carried: bool, spread_from: int) -> torch.Tensor:
    """Float32 [statistics, steps x rows], in the order of ``_sample_columns``; row spreads from a row on, NaN before it."""
    norm = torch.linalg.vector_norm
    before, after, gradient = rows.before, rows.after, rows.gradient
    work = torch.empty_like(before)
    before_norm = norm(before, 2, 1)
    none = torch.zeros_like(before_norm)
    weight_spread, gradient_spread = (_spread_from(x, spread_from) for x in (before, gradient))
    gradient_absmax = torch.maximum(gradient.amax(1), gradient.amin(1).neg_())
    gradient_zero = torch.eq(gradient, 0, out=work).mean(1)
    unchanged = torch.eq(after, before, out=work).mean(1)
    moved = norm(torch.sub(after, before, out=work), 2, 1)
    carried_norm = norm(rows.carried, 2, 1) if any_carried else none
    same = torch.eq(rows.carried, rows.gradient_last, out=work).mean(1) if any_carried else none
    outside, last_norm, factor, left = _outside(before, rows.after_last, before_norm)
    now = (weight_spread, gradient_absmax, gradient_zero, gradient_spread, moved, before_norm, unchanged)
    since = (outside, last_norm, factor, left, carried_norm, same)
    return torch.stack((*now, *since))


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


def columns(weight_norms: Array, gradient_norms: Sequence[Array], tables: Sequence[Array], masks: Masks) -> dict[str, Array]:
    """The columns of kind weight, weight_gradient and update; float32 [steps, parameters] each."""
    steps, count = masks.with_gradient.shape
    norms, weighed = np.full((steps, count), np.nan, dtype=np.float32), np.zeros((steps, count), dtype=bool)
    if masks.weighed:
        norms[-1], weighed[-1] = weight_norms, True
    gradients = np.full((steps, count), np.nan, dtype=np.float32)
    for row, there, values in zip(gradients, masks.with_gradient, gradient_norms, strict=True):
        row[there] = values
    found = {**_norm_columns("weight", norms, weighed), **_norm_columns("weight_gradient", gradients, masks.with_gradient)}
    parts = [_of_group(each, group, steps) for each, group in zip(tables, masks.groups, strict=True)]
    nothing = _sample_columns(np.zeros((_STATISTICS, steps, 0), dtype=np.float32), np.zeros((6, steps, 0), dtype=bool))
    for name, none in nothing.items():
        found[name] = np.concatenate([none, *(part[name] for part in parts)], axis=1)[:, masks.order]
    for name in ("weight_gradient.carried", "update.ratio", "update.unchanged"):
        found[name] = np.where(masks.stepped, found[name], np.float32(np.nan))
    return found


def _of_group(values: Array, group: GroupMasks, steps: int) -> dict[str, Array]:
    """One device's columns over all of the steps, NaN in those that its table is not of."""
    of, rows = group.filled.shape[1:]
    found = _sample_columns(values.reshape(_STATISTICS, of, rows), group.filled)
    if of == steps:
        return found
    whole = {name: np.full((steps, rows), np.nan, dtype=np.float32) for name in found}
    for name, part in found.items():
        whole[name][group.first : group.first + of] = part
    return whole


def _norm_columns(kind: str, norms: Array, there: Mask) -> dict[str, Array]:
    """Exact norms, infinity for one that is not finite and NaN for what is not there."""
    nan = np.float32(np.nan)
    nonfinite = (~np.isfinite(norms)).astype(np.float32)
    return {f"{kind}.norm": np.where(there, _not_nan(norms), nan), f"{kind}.nonfinite": np.where(there, nonfinite, nan)}


def _sample_columns(values: Array, filled: Mask) -> dict[str, Array]:
    before, after, after_last, gradient, gradient_last, carried = filled
    spread, g_absmax, g_zero, g_spread, moved, norm, unchanged, outside, last_norm, factor, left, carried_norm, same = values
    nan = np.float32(np.nan)
    stepped, between = before & after, before & after_last
    with np.errstate(all="ignore"):
        ratio = np.where(stepped & (norm > 0), _not_nan(moved / norm), nan)
        change = np.where(between & (last_norm > 0), _not_nan(outside / last_norm), nan)
        residual = np.where(between & (outside > 0), _not_nan(left / outside), nan)
    still_there = (carried_norm > 0) & (same == 1) & carried & gradient_last
    found = {
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
    return {name: part.astype(np.float32) for name, part in found.items()}


def _not_nan(values: Array) -> Array:
    """What was captured and came out as NaN is not finite: it stands as infinity."""
    return np.where(np.isnan(values), np.float32(np.inf), values)
