"""When the loop clips the norm of its gradients, what norm it found there and which limit it set."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any
from typing import Protocol
from typing import final

import numpy as np
import torch
from torch.compiler import is_dynamo_compiling
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer

from gradscope.capture.graph import Graph
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.pulses import loss_scale_of
from gradscope.capture.transfer import number_at_hand
from gradscope.records import Array
from gradscope.records import Site

_CLIP = "_clip_grads_with_norm_"  # what clip_grad_norm_ looks up in its module, whoever imported it and when
_MOST_CALLS = 16

IN_PLACE, NO_GRADIENT, TOO_LATE, STILL_SCALED = 0.0, 1.0, 2.0, 3.0  # step.clip_place


class Listener(Protocol):
    """Who wants to hear of clipping."""

    def heard(self, parameters: Any, limit: Any, norm: Any) -> None:
        """Gradients of ``norm``, those of ``parameters``, are about to be clipped to ``limit``."""


@final
class Shears:
    """Torch's clipping function as watched models hear it. One instance, in this module."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._listeners: list[Listener] = []
        self._wrapped: tuple[Any, Any] | None = None  # the function that was there, and ours around it

    def join(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.append(listener)
            there = vars(clip_grad).get(_CLIP)
            if len(self._listeners) > 1 or there is None:
                return
            if self._wrapped is None or self._wrapped[0] is not there:
                self._wrapped = (there, self._around(there))
            vars(clip_grad)[_CLIP] = self._wrapped[1]

    def leave(self, listener: Listener) -> None:
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners and self._wrapped is not None and vars(clip_grad).get(_CLIP) is self._wrapped[1]:
                vars(clip_grad)[_CLIP] = self._wrapped[0]  # else somebody wrapped ours since: theirs stays, and calls ours

    def _around(self, original: Any) -> Any:
        shears = self

        def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_dynamo_compiling() and shears._wrapped is not None and shears._wrapped[1] is clip:
                for listener in tuple(shears._listeners):
                    listener.heard(parameters, max_norm, total_norm)
            return original(parameters, max_norm, total_norm, *args, **kwargs)

        clip.__doc__ = original.__doc__
        clip.__wrapped__ = original  # type: ignore[attr-defined]
        return clip


SHEARS = Shears()


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
            self._ours = frozenset(map(id, model.parameters()))
        return any(id(parameter) in self._ours for parameter in parameters)

    def _take(self, parameters: Sequence[torch.Tensor], limit: Any, norm: Any) -> None:
        there = any(parameter.grad is not None and id(parameter) in self._ours for parameter in parameters)
        calls = self._late if self._backwards else self._early
        call = _Call(
            norm=norm.detach() if type(norm) is torch.Tensor and norm.numel() == 1 else None,
            limit=float("nan") if (known := number_at_hand(limit)) is None else known,
            place=NO_GRADIENT if not there else IN_PLACE if self._backwards else TOO_LATE,
            parameters=tuple(parameters) if self._scale is not None else (),
        )
        del calls[: max(len(calls) - _MOST_CALLS + 1, 0)]
        calls.append(call)

    def before_step(self, optimizer: Optimizer) -> None:
        if self._scale is None or not self._late or self._used is not None:
            return
        gradients = [p.grad.detach() for p in self._late[-1].parameters if p.grad is not None and not p.grad.is_sparse]
        if not gradients or any(gradient.device != gradients[0].device for gradient in gradients):
            return
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)))
        factor = vars(optimizer).get("grad_scale")  # that a fused optimizer takes out itself
        self._used = norm / factor if isinstance(factor, torch.Tensor) else norm

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
    return is_loss_scale(scale, seen=scale_seen) and 0 < used < float("inf") and clipped > scale**0.5 * used
