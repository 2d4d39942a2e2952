"""When the loop clips the norm of its gradients, what norm it found there and which limit it set."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol
from typing import final

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer

from gradscope.capture.cuda_graphs import CAPTURES
from gradscope.capture.graph import Graph
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.naming import names_of
from gradscope.capture.parameter_norms import norms_of_gradients
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.pulses import loss_scale_of
from gradscope.capture.scaling import factor_left_to
from gradscope.capture.shards import is_euclidean
from gradscope.capture.shards import is_spread
from gradscope.capture.shards import whole_here
from gradscope.capture.transfer import number_at_hand
from gradscope.capture.wrapping import Wrapping
from gradscope.records import Array
from gradscope.records import Site

_CLIP = "_clip_grads_with_norm_"  # what clip_grad_norm_ looks up in its module, whoever imported it and when
_MOST_CALLS = 16

IN_PLACE, NO_GRADIENT, TOO_LATE, STILL_SCALED = 0.0, 1.0, 2.0, 3.0  # step.clip_place


class Listener(Protocol):
    """Who wants to hear of clipping."""

    def heard(self, parameters: Any, limit: Any, norm: Any) -> None:
        """Gradients of ``norm``, those of ``parameters``, are about to be clipped to ``limit``."""


def _telling(original: Any) -> Any:
    def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_dynamo_compiling() and not CAPTURES.running() and SHEARS.calls_through(clip):
            for listener in SHEARS.listeners:
                listener.heard(parameters, max_norm, total_norm)
        return original(parameters, max_norm, total_norm, *args, **kwargs)

    return clip


SHEARS: Wrapping[Listener] = Wrapping(clip_grad, _CLIP, _telling)


@dataclass(frozen=True)
class _Call:
    norm: torch.Tensor | None
    limit: float
    place: float
    parameters: tuple[torch.Tensor, ...]  # kept where a GradScaler may be at work


@final
class Clipping(Instrument):
    """Fills the columns of kind ``step`` about clipping. A call in the right place counts before one that is not."""

    def __init__(self, model: torch.nn.Module, pulses: PulseMaker, guard: Callable[[], None]) -> None:
        self._model = weakref.ref(model)
        self._pulses = pulses
        self._guard = guard
        self._ours: frozenset[int] = frozenset()  # the model's parameters by ``id``
        self._on = False
        self._forget()

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def switch_on(self) -> None:
        if not self._on:
            self._on = True
            SHEARS.join(self)

    def switch_off(self) -> None:
        if self._on:
            self._on = False
            SHEARS.leave(self)
        self._forget()

    def start_step(self, samples: int) -> None:
        self._forget()

    def _forget(self) -> None:
        self._early: list[_Call] = []  # before the step's first backward pass
        self._late: list[_Call] = []  # since its last
        self._backwards = 0
        self._scale: torch.Tensor | None = None  # that the last loss was multiplied with, should that be a GradScaler's doing
        self._used: torch.Tensor | None = None  # norm of the clipped gradients as the optimizer uses them

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        self._backwards += 1
        self._late = []  # what was clipped before more was added, or thrown away because a GradScaler skipped the step
        self._scale = loss_scale_of(loss) if loss.numel() == 1 else None

    def heard(self, parameters: Any, limit: Any, norm: Any) -> None:
        """Called by the wrapper, within the loop."""
        try:
            given = (parameters,) if isinstance(parameters, torch.Tensor) else parameters
            if isinstance(given, list | tuple) and self._any_of(given):
                self._take(given, limit, norm)
        except Exception:
            self._guard()

    def _any_of(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether any of these are the model's."""
        model = self._model()
        if model is not None and parameters and id(parameters[0]) not in self._ours:
            self._ours = frozenset(names_of(model))
        return any(id(parameter) in self._ours for parameter in parameters)

    def _take(self, parameters: Sequence[torch.Tensor], limit: Any, norm: Any) -> None:
        there = any(parameter.grad is not None and id(parameter) in self._ours for parameter in parameters)
        calls = self._late if self._backwards else self._early
        call = _Call(
            norm=_norm_here(norm, parameters),
            limit=float("nan") if (known := number_at_hand(limit)) is None else known,
            place=NO_GRADIENT if not there else IN_PLACE if self._backwards else TOO_LATE,
            parameters=tuple(parameters) if self._scale is not None else (),
        )
        del calls[: max(len(calls) - _MOST_CALLS + 1, 0)]
        calls.append(call)

    def before_step(self, optimizer: Optimizer) -> None:
        if self._scale is None or not self._late or self._used is not None:
            return
        norm, factor = _norm_of(self._late[-1].parameters), factor_left_to(optimizer)
        self._used = norm if factor is None else norm / factor

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        if not self._late and not self._early:
            return _NOTHING
        calls = _counted(self._late, self._early)
        known = bool(self._backwards)  # else this loop's backward passes cannot be seen
        places = [call.place for call in calls if known or call.place == NO_GRADIENT]
        norms = [call.norm for call in calls if call.norm is not None]
        limits = [call.limit for call in calls if call.norm is not None]
        scaled = IN_PLACE in places and self._scale is not None and self._used is not None
        tensors = [*norms, self._scale, self._used] if scaled else norms
        scale_seen = self._pulses.scale_seen

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            found = [float(array) for array in arrays]
            at = _tightest(found[: len(limits)], limits)
            norm, limit = (found[at], limits[at]) if limits else (float("nan"), float("nan"))
            place = min(places, default=float("nan"))
            if scaled and _is_scaled(min(norm, limit), *found[len(limits) :], scale_seen=scale_seen):
                place = STILL_SCALED
            return _columns(norm, limit, place)

        return Reading(tuple(tensor for tensor in tensors if tensor is not None), columns)


def _norm_here(norm: Any, parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The norm that was found; this rank's estimate of it, where ranks have still to exchange it."""
    if not isinstance(norm, torch.Tensor) or norm.numel() != 1:
        return None
    if not is_spread(norm):
        return norm.detach() if type(norm) is torch.Tensor else None
    known = whole_here(norm)
    if known is None and is_euclidean(norm):
        known = _norm_of(parameters)
    return known.detach().reshape(()) if known is not None else None


def _norm_of(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of their gradients together, as they are now."""
    return torch.linalg.vector_norm(norms_of_gradients(parameters).together)  # type: ignore[no-any-return]


def _columns(norm: float, limit: float, place: float) -> dict[str, Array]:
    values = {"step.clip_norm": norm, "step.clip_limit": limit, "step.clip_place": place}
    return {name: np.array([value], dtype=np.float32) for name, value in values.items()}


_NOTHING = Reading((), lambda _: _columns(float("nan"), float("nan"), float("nan")))


def _counted(late: list[_Call], early: list[_Call]) -> list[_Call]:
    """The calls that count: those without a limit only measure the norm, so only where there are no others."""
    kinds = [[call for call in calls if math.isfinite(call.limit)] for calls in (late, early)]
    return next((calls for calls in (*kinds, late, early) if calls), [])


def _tightest(norms: Sequence[float], limits: Sequence[float]) -> int:
    """Which of several calls in a step clipped most."""
    shares = [norm / limit if limit > 0 else 0.0 for norm, limit in zip(norms, limits, strict=True)]
    return shares.index(max(shares)) if shares else -1


def _is_scaled(clipped: float, scale: float, used: float, *, scale_seen: bool) -> bool:
    """Whether the norm that clipping left is nearer to ``scale`` times the norm that the optimizer used than to that norm."""
    if not is_loss_scale(scale, seen=scale_seen) or not 0 < used < float("inf"):
        return False
    between = scale**0.5 * used  # halfway, by factors
    return clipped > between if scale > 1 else clipped < between and scale < 1
