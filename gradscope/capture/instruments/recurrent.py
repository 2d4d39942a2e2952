"""How gradients grow or fade through time: in fused recurrent layers, and in cells that a loop calls once a time step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import is_grad_enabled
from torch import nn
from torch.utils.hooks import RemovableHandle

from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.naming import modules_of
from gradscope.records import Array
from gradscope.records import Site

FEWEST_STEPS = 4  # calls of a module in one forward pass that make a sequence
FEWEST_POINTS = 3  # finite gradients above zero that a slope is drawn through
MOST_POINTS = 64  # time steps of a fused layer that are looked at
LEARNING = 4  # sampled steps in which modules that are called again and again are looked for
REFRESH = 8  # switchings on after which the model's modules are looked through again
_MOST_BATCH, _MOST_FEATURES = 16, 64  # of each time step
_DENSE_CALLS = 32  # calls that are all looked at; of later ones every second, fourth, … the later the fewer

_FUSED = frozenset((nn.RNN, nn.LSTM, nn.GRU))
_is_tracing = torch._C._is_tracing
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by vmap or grad of torch.func
_current_graph_task_id = torch._C._current_graph_task_id
_saved_tensor_hooks = vars(torch._C._autograd).get("_top_saved_tensors_default_hooks")
_Places = npt.NDArray[np.float64]


@final
@dataclass
class _Known:
    """A module of the model and how often it was called in this forward pass."""

    module: weakref.ref[nn.Module]
    path: str
    fused: bool
    generation: int = -1
    calls: int = 0
    longest: int = 0  # calls in one forward pass at most, over all steps


@final
class _Profile:
    """Root mean squares of a gradient by time step, as they come back."""

    def __init__(self, generation: int, steps: int) -> None:
        self.generation = generation
        self.steps = steps
        self.places: list[int] = []
        self.values: list[torch.Tensor] = []
        self.shape: torch.Size | None = None  # of a call's output; None for a fused layer
        self.regular = True  # whether all calls' outputs had that shape


@final
class Recurrence(Instrument):
    """Fills ``activation_gradient.time_growth`` and ``.time_steps``.

    A fused layer shows the gradient of its input. Where that is plain data, which needs none, the layer is handed a detached
    alias of it that does: its results and the gradients of its parameters are the same to the last bit.
    """

    def __init__(self, model: nn.Module, hooks: ForwardHooks, guard: Callable[[], None]) -> None:
        self._model = weakref.ref(model)
        self._hooks = hooks
        self._guard = guard
        self._known: dict[int, _Known] = {}
        self._on = False
        self._on_leaves: list[RemovableHandle] = []  # such tensors outlive the step
        self._profiles: dict[tuple[str, int], _Profile] = {}
        self._switchings = 0
        self._steps = 0
        self._generation = 0  # of forward passes
        self._first = 0  # generation of this step

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    # -- switching

    def switch_on(self) -> None:
        if self._on:
            return
        self._on = True
        if self._switchings % REFRESH == 0:
            self._refresh()
            self._listen()
        self._switchings += 1

    def _listen(self) -> None:
        learning = self._steps <= LEARNING or self._any_repeated
        calls = (key for key, known in self._known.items() if learning and not known.fused)
        fused = (key for key, known in self._known.items() if known.fused)
        self._hooks.listen(
            self,
            after=dict.fromkeys(calls, self._after_forward),
            before=dict.fromkeys(fused, self._before_forward),
            light=False,
        )

    @property
    def _any_repeated(self) -> bool:
        """Whether any module is known to be called again and again."""
        return any(known.longest >= FEWEST_STEPS for known in self._known.values())

    def _refresh(self) -> None:
        model = self._model()
        longest = {known.path: known.longest for known in self._known.values()}
        self._known = {
            id(module): _Known(weakref.ref(module), path, type(module) in _FUSED, longest=longest.get(path, 0))
            for path, module in (modules_of(model) if model is not None else ())
            if path == "" or next(module.parameters(), None) is not None
        }

    def switch_off(self) -> None:
        self._on = False
        self._forget()

    def start_step(self, samples: int) -> None:
        self._forget()
        was_learning, self._steps = self._steps <= LEARNING, samples + 1
        if was_learning and self._steps > LEARNING and not self._any_repeated:
            self._listen()

    def _forget(self) -> None:
        self._generation += 1
        self._first = self._generation
        self._profiles = {}
        for handle in self._on_leaves:
            handle.remove()
        self._on_leaves = []

    # -- hooks

    def _before_forward(self, module: nn.Module, args: Any) -> Any:
        known = self._known[id(module)]
        return self._see_fused(known, module, args) if known.module() is module and _can_be_seen() else None

    def _see_fused(self, known: _Known, module: Any, args: Any) -> Any:
        call = self._count(known)
        x = args[0] if args else None
        if module.bidirectional or not isinstance(x, torch.Tensor) or not _is_plain(x) or x.dim() not in (2, 3):
            return None
        time = 1 if module.batch_first and x.dim() == 3 else 0
        if x.requires_grad:
            self._hook(x, known.path, call, _Along(time))
            return None
        if _is_packed() or not any(parameter.requires_grad for parameter in module.parameters()):
            return None
        alias = x.detach().requires_grad_()
        self._hook(alias, known.path, call, _Along(time))
        return (alias, *args[1:])

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        known = self._known[id(module)]
        if is_grad_enabled() and known.module() is module and _can_be_seen():
            self._see_call(known, output)

    def _see_call(self, known: _Known, output: Any) -> None:
        call = self._count(known)
        known.longest = max(known.longest, call + 1)
        if known.path == "":
            self._generation += 1  # the forward pass is over
        elif self._is_looked_at(known, call):
            tensor = output[0] if isinstance(output, tuple) and output else output
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad and _is_plain(tensor):
                self._hook(tensor, known.path, call, None)

    def _is_looked_at(self, known: _Known, call: int) -> bool:
        if known.longest < FEWEST_STEPS and call == 0:
            return False  # nearly every module is called once
        return (self._steps <= LEARNING or known.longest >= FEWEST_STEPS) and call % _stride(call) == 0

    def _count(self, known: _Known) -> int:
        if known.generation != self._generation:
            known.generation, known.calls = self._generation, 0
        known.calls += 1
        return known.calls - 1

    def _hook(self, tensor: torch.Tensor, path: str, call: int, along: _Along | None) -> None:
        hook = _GradientHook(self, path, call, self._generation, along)
        handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        if tensor.grad_fn is None:
            self._on_leaves.append(handle)

    # -- gradients

    def take(self, path: str, call: int, generation: int, along: _Along | None, gradient: torch.Tensor) -> None:
        """Called by the hook on a tensor, inside the backward pass."""
        if generation < self._first or not self._on or not _is_plain(gradient):
            return
        try:
            if along is None:
                self._take_call(path, call, generation, gradient.detach())
            else:
                profile = self._profiles[path, call] = _Profile(generation, gradient.shape[along.time])
                places, values = along.profile(gradient.detach())
                profile.places, profile.values = places, [values]
        except Exception:
            self._guard()

    def _take_call(self, path: str, call: int, generation: int, gradient: torch.Tensor) -> None:
        profile = self._profiles.get((path, 0))
        if profile is None or profile.generation != generation:
            profile = self._profiles[path, 0] = _Profile(generation, 0)
            profile.shape = gradient.shape
        alike = not profile.values or profile.values[0].device == gradient.device
        profile.regular &= alike and gradient.shape == profile.shape
        profile.places.append(call)
        profile.values.append(_rms(_thinned(gradient), None))

    # -- reading

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        places = {(site.path, site.call): place for place, site in enumerate(modules)} if self._profiles else {}
        found = [(places[key], profile) for key, profile in self._profiles.items() if key in places and _counts(profile)]
        tensors = tuple(p.values[0] if p.shape is None else torch.stack(p.values) for _, p in found)
        sequences = [(place, profile.places, profile.steps or max(profile.places) + 1) for place, profile in found]
        sites = len(modules)

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            growth, steps = np.full((2, sites), np.nan, dtype=np.float32)
            for (place, at, length), values in zip(sequences, arrays, strict=True):
                growth[place] = _growth(np.array(at, dtype=np.float64), values.astype(np.float64), length)
                steps[place] = length
            return {"activation_gradient.time_growth": growth, "activation_gradient.time_steps": steps}

        return Reading(tensors, columns)


@dataclass(frozen=True)
class _Along:
    """Takes a gradient's profile along its dimension of time."""

    time: int

    def profile(self, gradient: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """The time steps that are looked at, and the gradient's root mean square at each."""
        steps = gradient.shape[self.time]
        stride = -(-steps // MOST_POINTS)
        rest = tuple(d for d in range(gradient.dim()) if d != self.time)
        part = gradient[::stride] if self.time == 0 else gradient[:, ::stride]
        for dimension, most in zip(rest, (_MOST_BATCH, _MOST_FEATURES)[-len(rest) :], strict=True):
            part = part.narrow(dimension, 0, min(part.shape[dimension], most))
        return list(range(0, steps, stride)), _rms(part, rest)


@final
class _GradientHook:
    """Takes the gradient of one tensor of one forward pass; returns None, so the gradient goes on as it came."""

    __slots__ = ("_along", "_call", "_generation", "_instrument", "_path")
    __torch_unserializable__ = True  # torch.save leaves it out of a saved tensor without a warning

    def __init__(self, instrument: Recurrence, path: str, call: int, generation: int, along: _Along | None) -> None:
        self._instrument = instrument
        self._path = path
        self._call = call
        self._generation = generation
        self._along = along

    def __call__(self, gradient: torch.Tensor) -> None:
        self._instrument.take(self._path, self._call, self._generation, self._along, gradient)


def _can_be_seen() -> bool:
    """Whether a forward pass is one for gradients, and not a tracer's or a checkpoint's that runs again."""
    return is_grad_enabled() and not _is_tracing() and _current_graph_task_id() == -1


def _is_packed() -> bool:
    """Whether hooks take what is saved, as a checkpoint's do: it counts that, and must find the same when it runs again."""
    return _saved_tensor_hooks is None or _saved_tensor_hooks(True) is not None


def _is_plain(tensor: torch.Tensor) -> bool:
    ordinary = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_meta
    return ordinary and tensor.is_floating_point() and tensor.numel() > 0 and not _is_wrapped(tensor)


def _stride(call: int) -> int:
    return 1 << max(0, call.bit_length() - _DENSE_CALLS.bit_length() + 1)


def _thinned(gradient: torch.Tensor) -> torch.Tensor:
    """A part of a large gradient: a few elements of the batch, and of the features."""
    if gradient.numel() <= _MOST_BATCH * _MOST_FEATURES or gradient.dim() < 2:
        return gradient
    return gradient.narrow(0, 0, min(len(gradient), _MOST_BATCH)).narrow(-1, 0, min(gradient.shape[-1], _MOST_FEATURES))


def _rms(x: torch.Tensor, dimensions: tuple[int, ...] | None) -> torch.Tensor:
    precision = torch.float64 if x.dtype is torch.float64 else torch.float32
    norm: torch.Tensor = torch.linalg.vector_norm(x, 2, dimensions, dtype=precision)
    count = x.numel() if dimensions is None else int(np.prod([x.shape[d] for d in dimensions]))
    return norm.mul_(count**-0.5)


def _counts(profile: _Profile) -> bool:
    return profile.regular and (profile.shape is None or max(profile.places) + 1 >= FEWEST_STEPS)


def _growth(places: _Places, values: _Places, length: int) -> float:
    """Decades from the last time step back to the first: the least-squares slope of log10 of the rms, times the way.

    Zeros, which padding, masks and underflow leave, and what is not finite are left out.
    """
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < FEWEST_POINTS:
        return float("nan")
    t, y = places[usable], np.log10(values[usable])
    t = t - t.mean()
    return float(-(t @ y) / (t @ t) * (length - 1))
