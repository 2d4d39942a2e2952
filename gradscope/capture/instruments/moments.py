"""How well Adam's second moment fits the gradient of the step, on a sample of each matrix's elements."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.naming import parameters_of
from gradscope.capture.sampling import spread
from gradscope.capture.shards import gradient_here
from gradscope.capture.shards import local_of
from gradscope.capture.transfer import to_device
from gradscope.records import Array
from gradscope.records import Site

ELEMENTS = 128  # of each matrix
DENSE = 12  # sampled steps from the start that are all looked at, then one in EVERY
EVERY = 4
FEW_EPS = 10.0  # times eps, under which a root second moment counts as small
_MOST_TABLES = 16


@dataclass(frozen=True)
class _Pick:
    """Which elements of a matrix are looked at: those of a strided view."""

    parameter: int  # ``id``
    shape: torch.Size
    stride: tuple[int, ...]
    view: tuple[tuple[int], tuple[int]]  # size and stride


@dataclass(frozen=True)
class _Table:
    """What is constant for some rows of one device, worked out once."""

    index: torch.Tensor | None  # where each row's ELEMENTS lie among those that were gathered; None where in order
    beta: torch.Tensor  # [rows, 1]
    eps: torch.Tensor  # [rows, 1]


@final
class _Rows:
    """The parameters of one device that have a gradient and a second moment, as their optimizer is about to move them."""

    def __init__(self) -> None:
        self.picks: list[_Pick] = []
        self.gradients: list[torch.Tensor] = []
        self.seconds: list[torch.Tensor] = []
        self.steps: list[Any] = []  # made before this one
        self.settings: list[tuple[float, float]] = []  # beta and eps


@final
class Moments(Instrument):
    """Fills ``update.second_moment_ratio`` and ``update.epsilon_share`` for matrices whose optimizer keeps ``exp_avg_sq``."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = weakref.ref(model)
        self._names: dict[int, str] = {}
        self._picks: dict[int, _Pick | None] = {}  # by parameter; None where it is not looked at
        self._tables: dict[tuple[Any, ...], _Table] = {}
        self._steps = 0  # sampled so far
        self._due = 0  # of them, from which on the next look is due
        self._found: list[tuple[list[int], torch.Tensor]] = []

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def start_step(self, samples: int) -> None:
        self._steps = samples + 1
        self._found = []

    def switch_off(self) -> None:
        self._found = []

    def before_step(self, optimizer: Optimizer) -> None:
        if self._steps < self._due:
            return
        if not optimizer.state or "grad_scale" in vars(optimizer):  # it will take the loss scale out of gradients by itself
            return
        with torch.no_grad():
            for device, rows in self._gather(optimizer).items():
                self._found.append(([pick.parameter for pick in rows.picks], self._reduce(device, rows)))

    def _gather(self, optimizer: Optimizer) -> dict[torch.device, _Rows]:
        found: dict[torch.device, _Rows] = {}
        for group in optimizer.param_groups:
            beta, eps = _settings(group)
            for parameter in group["params"] if beta < 1 else ():
                pick = self._pick(parameter)
                state = optimizer.state.get(parameter) if pick is not None else None  # not by index, which would add to it
                if pick is None or not state:
                    continue
                gradient: Any = gradient_here(parameter)
                second = _here(state.get("exp_avg_sq"))
                if not _lies_like(gradient, pick) or not _lies_like(second, pick) or gradient.device != second.device:
                    continue
                rows = found.get(gradient.device) or found.setdefault(gradient.device, _Rows())
                rows.picks.append(pick)
                rows.gradients.append(gradient.as_strided(*pick.view))
                rows.seconds.append(second.as_strided(*pick.view))
                rows.steps.append(state.get("step", math.inf))
                rows.settings.append((beta, eps))
        return found

    def _pick(self, parameter: torch.Tensor) -> _Pick | None:
        key = id(parameter)
        if key not in self._picks:
            self._picks[key] = _picked(parameter)
        known = self._picks[key]
        if known is not None and known.shape != local_of(parameter).shape:  # another has taken its address
            known = self._picks[key] = _picked(parameter)
        return known

    def _reduce(self, device: torch.device, rows: _Rows) -> torch.Tensor:
        """Ratio and share of each row, float32 [2, rows]."""
        table = self._table(device, rows)
        gradients, seconds = torch.cat(rows.gradients).float(), torch.cat(rows.seconds).float()
        if table.index is not None:
            gradients, seconds = gradients.index_select(0, table.index), seconds.index_select(0, table.index)
        squares = gradients.view(-1, ELEMENTS).square()
        return _statistics(squares, seconds.view(-1, ELEMENTS), _steps(rows.steps, device), table)

    def _table(self, device: torch.device, rows: _Rows) -> _Table:
        sizes = tuple(pick.view[0][0] for pick in rows.picks)
        key = (device, sizes, tuple(rows.settings))
        known = self._tables.get(key)
        if known is None:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            known = self._tables[key] = _Table(
                index=None if all(size == ELEMENTS for size in sizes) else _index(sizes, device),
                beta=_column([beta for beta, _ in rows.settings], device),
                eps=_column([eps for _, eps in rows.settings], device),
            )
        return known

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        found = self._found
        if self._steps >= max(self._due, DENSE):
            self._due = self._steps + EVERY
        places = self._places(parameters, [key for keys, _ in found for key in keys]) if found else []
        sites = len(parameters)

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            ratio, share = np.full((2, sites), np.nan, dtype=np.float32)
            if arrays:
                table = np.concatenate(arrays, axis=1)
                for row, place in enumerate(places):
                    if place is not None:
                        ratio[place], share[place] = table[:, row]
            return {"update.second_moment_ratio": ratio, "update.epsilon_share": share}

        return Reading(tuple(table for _, table in found), columns)

    def _places(self, parameters: tuple[Site, ...], keys: Sequence[int]) -> list[int | None]:
        model = self._model()
        if model is not None and any(key not in self._names for key in keys):
            self._names = {id(parameter): name for name, parameter in parameters_of(model)}
        places = {site.path: place for place, site in enumerate(parameters)}
        return [places.get(self._names.get(key, "")) for key in keys]


def _settings(group: Mapping[str, Any]) -> tuple[float, float]:
    """Beta of the second moment, infinite where there is none, and eps."""
    betas, eps = group.get("betas"), group.get("eps")
    beta = betas[1] if isinstance(betas, tuple | list) and len(betas) > 1 else None
    return beta if isinstance(beta, float) else math.inf, eps if isinstance(eps, float) else 0.0


def _lies_like(tensor: Any, pick: _Pick) -> bool:
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return tensor.shape == pick.shape and tensor.stride() == pick.stride


def _here(state: Any) -> Any:
    return local_of(state) if isinstance(state, torch.Tensor) else state


def _picked(parameter: torch.Tensor) -> _Pick | None:
    """Elements of a matrix that fills its storage, evenly spread but at no multiple of any of its dimensions."""
    local = local_of(parameter)
    shape, stride = local.shape, local.stride() if local.layout is torch.strided else ()
    numel = local.numel()
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=False))
    if len(shape) < 2 or not numel or extent != numel or not parameter.is_floating_point():
        return None
    if numel <= ELEMENTS:
        return _Pick(id(parameter), shape, stride, ((numel,), (1,)))
    step = (numel - 1) // (ELEMENTS - 1)
    while any(math.gcd(step, size) > 1 for size in shape):
        step -= 1
    return _Pick(id(parameter), shape, stride, ((ELEMENTS,), (step,)))


def _index(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Smaller tensors come several times over, so that each has a row of its own."""
    starts = np.cumsum([0, *sizes[:-1]])
    places = np.concatenate([start + spread(size, ELEMENTS) for start, size in zip(starts, sizes, strict=True)])
    return to_device(torch.from_numpy(places), device)


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return to_device(torch.tensor(values, dtype=torch.float32, device="cpu")[:, None], device)


def _steps(steps: Sequence[Any], device: torch.device) -> torch.Tensor:
    """How many steps were made with each row, [rows, 1]. They may lie on the device."""
    tensors = [step for step in steps if isinstance(step, torch.Tensor)]
    if len(tensors) == len(steps) and all(tensor.device == tensors[0].device and tensor.dim() == 0 for tensor in tensors):
        return to_device(torch.stack(tensors).float()[:, None], device)
    return _column([math.inf if isinstance(step, torch.Tensor) else float(step) for step in steps], device)


def _statistics(squares: torch.Tensor, seconds: torch.Tensor, steps: torch.Tensor, table: _Table) -> torch.Tensor:
    """RMS_t = sqrt(mean(g² / max(v̂, eps²))) with v̂ as it was before the step (Wortsman et al. 2023, section 3.5), and the
    share of elements with a gradient where sqrt(v̂) < 10 eps as the step will use it. Elements without a history are left out
    of the first. [2, rows]
    """
    least = table.eps.square()
    corrected = seconds / (1 - table.beta**steps)
    known = seconds > 0
    ratio = (squares / torch.maximum(corrected, least)).masked_fill_(~known, 0).sum(1) / known.sum(1)
    next_seconds = torch.lerp(squares, seconds, table.beta)
    small = next_seconds < FEW_EPS**2 * least * (1 - table.beta ** (steps + 1))
    there = squares > 0
    return torch.stack((ratio.sqrt_(), (small & there).sum(1) / there.sum(1)))
