"""The module probe: what every module put out on a sampled step, and the gradient that came back to it.

One global forward hook sees all modules, so that nothing hangs on the model: copies, pickles and ``torch.save`` carry nothing,
and on unsampled steps there is no hook at all. Gradients come from a hook on the output tensor; a full backward hook would
raise where an in-place operation follows the module (pytorch#61519).
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import fields
from dataclasses import is_dataclass
from time import perf_counter
from typing import Any
from typing import final

import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gradscope.capture.arena import Arena
from gradscope.capture.roles import role_of
from gradscope.capture.sampling import Axes
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import block
from gradscope.records import Site

MOST_CALLS = 4  # calls of one module in one forward pass that get sites of their own; later ones are not sampled
MOST_INPUTS = 4
MOST_BLOCKS = 4096  # cached sets of offsets; sequence lengths that vary without end start it afresh

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by vmap or grad of torch.func
_last_dimension = frozenset({"linear", "embedding", "recurrent", "attention"})


@final
@dataclass
class _Watched:
    """A module that is watched, and where its calls stand in this forward pass."""

    module: weakref.ref[torch.nn.Module]
    path: str
    role: str
    batch_axis: int
    place: int  # among the model's modules, in the order of their definition
    slots: list[Slot]
    generation: int = -1
    calls: int = 0


@final
class Slot:
    """A site's rows: one for the output, one for its gradient; which device they lie on shows at the first call."""

    def __init__(self, site: Site, role: str, place: int) -> None:
        self.site = site
        self.role = role
        self.place = place  # of its module, in the order of definition
        self.forward: tuple[Arena, int] | None = None
        self.backward: tuple[Arena, int] | None = None
        self.generation = -1  # of the forward pass whose output lies in the row
        self.node = -1  # sequence number of the autograd node that made the output, on steps whose graph is read


@final
class ModuleProbe:
    """Samples module outputs and their gradients into arenas while it is switched on."""

    def __init__(self, model: torch.nn.Module, include: str | None, exclude: str | None, guard: Callable[[], None]) -> None:
        self._include = re.compile(include) if include else None
        self._exclude = re.compile(exclude) if exclude else None
        self._guard = guard  # called from an except clause: reports the failure and ends the watching
        self._root = weakref.ref(model)
        self._watched: dict[int, _Watched] = {}
        self._blocks: dict[tuple[Any, ...], Block] = {}
        self._unit_axes: dict[tuple[int, ...], int] = {}  # by shape, as modules that declare theirs have shown
        self._forward_arenas: dict[torch.device, Arena] = {}
        self._backward_arenas: dict[torch.device, Arena] = {}
        self._input_arenas: dict[torch.device, Arena] = {}
        self._handle: RemovableHandle | None = None
        self._generation = 0
        self.gradient_seen = False  # since the last ``start_step``
        self._last: Callable[[], torch.Tensor | None] = lambda: None
        self._last_version = -1
        self.slots: list[Slot] = []  # in execution order
        self.inputs: list[Slot] = []
        self.keep_last = (
            False  # sample the last forward pass of a step, not the first: what came before may have been thrown away
        )
        self.reading_graph = False  # whether to note which autograd node each output comes from
        self.seconds = 0.0  # spent in here since the last ``start_step``
        self.calls = 0  # hooks that fired since the last ``start_step``
        self.refresh(model)

    def refresh(self, model: torch.nn.Module) -> None:
        """Look again which modules there are; sites keep their places."""
        known = {watched.path: watched for watched in self._watched.values()}
        self._watched = {}
        for place, (path, module) in enumerate(model.named_modules()):
            if path and self._left_out(path):
                continue
            slots = known[path].slots if path in known else []
            watched = _Watched(weakref.ref(module), path, role_of(module), _batch_axis(module), place, slots)
            self._watched[id(module)] = watched

    def _left_out(self, path: str) -> bool:
        missing = self._include is not None and not self._include.search(path)
        return missing or (self._exclude is not None and self._exclude.search(path) is not None)

    # -- switching

    @property
    def on(self) -> bool:
        return self._handle is not None

    def switch_on(self) -> None:
        if self._handle is None:
            self._handle = register_module_forward_hook(self._after_forward, with_kwargs=True)

    def switch_off(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def release(self) -> None:
        """Let go of the arenas and the slots: nothing is sampled any more."""
        self._watched.clear()
        self.slots, self.inputs = [], []
        for arenas in (self._forward_arenas, self._backward_arenas, self._input_arenas):
            arenas.clear()

    def start_step(self) -> None:
        """Forget what the rows hold: the next forward pass is a new step's."""
        self._generation += 1
        self.gradient_seen = False
        self.seconds = 0.0
        self.calls = 0
        for arena in self.arenas():
            arena.clear()

    def arenas(self) -> Iterator[Arena]:
        for _, _, arenas in self.by_kind():
            yield from arenas

    def by_kind(self) -> Iterator[tuple[str, list[tuple[Arena, int] | None], list[Arena]]]:
        """Each kind of site with the rows of its slots, in their order, and the arenas that the rows lie in."""
        yield "input", [slot.forward for slot in self.inputs], list(self._input_arenas.values())
        yield "activation", [slot.forward for slot in self.slots], list(self._forward_arenas.values())
        yield "activation_gradient", [slot.backward for slot in self.slots], list(self._backward_arenas.values())

    # -- hooks

    def _after_forward(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # first of all, lest the compiler trace further and give up on the model
            return
        watched = self._watched.get(id(module))
        if watched is None or not torch.is_grad_enabled() or torch._C._is_tracing():
            return
        started = perf_counter()
        try:
            if watched.module() is module:
                self._sample(watched, args, kwargs, output)
        except Exception:
            self._guard()
        self.calls += 1
        self.seconds += perf_counter() - started

    def _sample(self, watched: _Watched, args: Any, kwargs: Any, output: Any) -> None:
        # Inside a backward pass a forward is a checkpoint's recompute: it is sampled only where the first could not be.
        recompute = torch._C._current_graph_task_id() != -1
        if self.gradient_seen and not recompute:
            if not self.keep_last:
                return  # a later micro-batch of the same step
            self._generation += 1
            self._gradient_seen = False
        if watched.generation != self._generation:
            watched.generation, watched.calls = self._generation, 0
        tensor = output if isinstance(output, torch.Tensor) else _largest(output)
        if tensor is not None and _can_be_sampled(tensor):
            self._take(watched, tensor, recompute)
        if watched.path == "" and not recompute:
            self._take_inputs(args, kwargs)
            self._generation += 1

    def _take(self, watched: _Watched, tensor: torch.Tensor, recompute: bool) -> None:
        if self._last() is tensor and self._last_version == tensor._version:
            return  # a container that hands on its child's tensor
        self._last, self._last_version = weakref.ref(tensor), tensor._version
        call = watched.calls
        watched.calls += 1
        if call >= MOST_CALLS:
            return
        slot = self._slot(watched, call, recompute)
        if recompute and slot.generation >= self._generation - 1 and slot.forward and slot.forward[0].filled[slot.forward[1]]:
            return
        detached = tensor.detach()
        arena, row = slot.forward or self._first_time(slot, tensor.device)
        arena.gather(row, detached, self._block(watched, detached))
        slot.generation = self._generation
        node = tensor.grad_fn
        if node is None:
            return
        if self.reading_graph:
            slot.node = node._sequence_nr()
        tensor.register_hook(_GradientHook(self, slot, self._generation, watched))  # type: ignore[no-untyped-call]

    def _slot(self, watched: _Watched, call: int, recompute: bool) -> Slot:
        if call < len(watched.slots):
            return watched.slots[call]
        slot = Slot(Site(watched.path, call), watched.role, watched.place)
        watched.slots.append(slot)
        # Checkpoints are recomputed last to first: what shows only then stands where its definition does.
        later = (i for i, other in enumerate(self.slots) if recompute and other.place > slot.place)
        self.slots.insert(next(later, len(self.slots)), slot)
        return slot

    def _first_time(self, slot: Slot, device: torch.device) -> tuple[Arena, int]:
        slot.forward = _new_row(self._forward_arenas, device)
        slot.backward = _new_row(self._backward_arenas, device)
        return slot.forward

    def take_gradient(self, slot: Slot, generation: int, watched: _Watched, gradient: torch.Tensor) -> None:
        """Called by the hook on an output tensor, inside the backward pass."""
        if slot.generation != generation or slot.backward is None or not self.on:
            return
        started = perf_counter()
        try:
            self.gradient_seen = True
            if _can_be_sampled(gradient) and gradient.device == slot.backward[0].device:
                detached = gradient.detach()
                slot.backward[0].gather(slot.backward[1], detached, self._block(watched, detached))
        except Exception:
            self._guard()
        self.calls += 1
        self.seconds += perf_counter() - started

    def _take_inputs(self, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and _can_be_sampled(leaf)]
        for place, tensor in enumerate(tensors[:MOST_INPUTS]):
            if place == len(self.inputs):
                self.inputs.append(Slot(Site("(input)", place), "input", place))
                self.inputs[place].forward = _new_row(self._input_arenas, tensor.device)
            held = self.inputs[place].forward
            if held is not None and held[0].device == tensor.device:
                detached = tensor.detach()
                axes = _axes(detached.shape, 1 if detached.dim() > 3 else detached.dim() - 1, 0)
                held[0].gather(held[1], detached, self._cached(detached, axes))

    # -- which elements

    def _block(self, watched: _Watched, tensor: torch.Tensor) -> Block:
        shape = tuple(tensor.shape)
        if watched.role in _last_dimension:
            unit = len(shape) - 1
            self._unit_axes[shape] = unit
        elif watched.role == "conv":
            unit = 1
            self._unit_axes[shape] = unit
        else:
            unit = self._unit_axes.get(shape, 1 if len(shape) > 3 else len(shape) - 1)
        return self._cached(tensor, _axes(shape, unit, watched.batch_axis))

    def _cached(self, tensor: torch.Tensor, axes: Axes) -> Block:
        key = (tensor.shape, tensor.stride(), axes.unit, axes.batch, tensor.device)
        found = self._blocks.get(key)
        if found is None:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            found = self._blocks[key] = block(tuple(tensor.shape), tensor.stride(), axes, tensor.device)
        return found


@final
class _GradientHook:
    """Takes the gradient of one output of one forward pass; returns None, so the gradient goes on as it came."""

    __slots__ = ("_generation", "_probe", "_slot", "_watched")
    __torch_unserializable__ = True  # torch.save leaves it out of a saved output without a warning

    def __init__(self, probe: ModuleProbe, slot: Slot, generation: int, watched: _Watched) -> None:
        self._probe = probe
        self._slot = slot
        self._generation = generation
        self._watched = watched

    def __call__(self, gradient: torch.Tensor) -> None:
        self._probe.take_gradient(self._slot, self._generation, self._watched, gradient)


def _new_row(arenas: dict[torch.device, Arena], device: torch.device) -> tuple[Arena, int]:
    if device not in arenas:
        arenas[device] = Arena(device)
    return arenas[device], arenas[device].add_row()


def _can_be_sampled(tensor: torch.Tensor) -> bool:
    kind = type(tensor)
    if kind is not torch.Tensor and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False  # a fake or distributed tensor, whose values are not here
    if tensor.is_meta or _is_wrapped(tensor):
        return False
    return tensor.layout is torch.strided and tensor.is_floating_point() and tensor.numel() > 0


def _largest(output: Any) -> torch.Tensor | None:
    """The floating-point tensor of an output of any make-up (tuple, dict, dataclass) that holds the most elements."""
    found = [leaf for leaf in _leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return max(found, key=torch.Tensor.numel, default=None)


def _leaves(tree: Any, *, depth: int = 4) -> Iterator[Any]:
    leaf: Any
    for leaf in tree_leaves(tree):
        if depth and is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _leaves([getattr(leaf, part.name, None) for part in fields(leaf)], depth=depth - 1)
        else:
            yield leaf


def _axes(shape: Iterable[int], unit: int, batch: int) -> Axes:
    dimensions = len(tuple(shape))
    if dimensions == 0:
        return Axes(None, None)
    if dimensions == 1:  # features of one sample, or one feature of a batch; either way no unit shares a batch with another
        return Axes(0, None)
    return Axes(min(unit, dimensions - 1), batch if batch != unit else None)


def _batch_axis(module: torch.nn.Module) -> int:
    sequence_first = isinstance(module, torch.nn.RNNBase | torch.nn.MultiheadAttention) and not module.batch_first
    return 1 if sequence_first else 0
