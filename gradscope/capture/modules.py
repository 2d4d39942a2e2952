"""The module probe: what every module put out on a sampled step, and the gradient that came back to it.

Gradients come from a hook on the output tensor; a full backward hook would
raise where an in-place operation follows the module (pytorch#61519).
"""

from __future__ import annotations

import re
import weakref
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Iterator
from functools import partial
from sys import getrefcount
from time import perf_counter
from typing import Any
from typing import final

import torch
from torch import is_grad_enabled

from gradscope.capture.arena import Arena
from gradscope.capture.arena import Row
from gradscope.capture.blocks import Blocks
from gradscope.capture.entrance import Entrance
from gradscope.capture.functions import bare
from gradscope.capture.functions import is_within
from gradscope.capture.functions import numbers_of
from gradscope.capture.functions import outside
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.naming import modules_of
from gradscope.capture.outputs import can_be_sampled
from gradscope.capture.outputs import largest
from gradscope.capture.roles import batch_axis
from gradscope.capture.roles import role_of
from gradscope.capture.sampling import samples_for
from gradscope.capture.shards import part_here
from gradscope.capture.slots import Slot
from gradscope.capture.slots import Watched
from gradscope.capture.turns import Turn
from gradscope.capture.unsupported import Unsupported
from gradscope.records import Site

MOST_CALLS = 4  # calls of one module in one forward pass that get sites of their own; later ones are not sampled
MOST_INPUTS = 4

# Bound once: between two operations of a training every name that is looked up costs a miss of the caches.
_current_graph_task_id = torch._C._current_graph_task_id
_set_grad_enabled = torch._C._set_grad_enabled
_weak = weakref.ref
# Of hooks that a slot keeps: most loops hold on to a step's loss, and so to its graph, until they have the next one.
_TABLES = 2
_OURS_ALONE = 2  # references to a table that no graph holds: ours, and that of the question


@final
class ModuleProbe:
    """Samples module outputs and their gradients into arenas while it is switched on."""

    def __init__(
        self,
        model: torch.nn.Module,
        include: str | None,
        exclude: str | None,
        hooks: ForwardHooks,
        guard: Callable[[], None],
        *,
        places: int,
    ) -> None:
        self._include = re.compile(include) if include else None
        self._exclude = re.compile(exclude) if exclude else None
        self.guard = guard  # called from an except clause: reports the failure and ends the watching
        self.hooks = hooks
        self.unsupported = Unsupported(self._left_out)
        self._root = weakref.ref(model)
        self._watched: dict[int, Watched] = {}
        self._forward_arenas: dict[torch.device, Arena] = {}
        self._backward_arenas: dict[torch.device, Arena] = {}
        self._input_arenas: dict[torch.device, Arena] = {}
        self._turn = Turn(places)  # a place for each step that may be held back
        self._samples = samples_for(sum(1 for _ in model.modules()))  # of each unit
        self._blocks = Blocks(self._samples)
        self._generation = 0
        self.gradient_seen = False  # since the last ``start_step``
        self._last: Callable[[], torch.Tensor | None] = lambda: None
        self._last_version = -1
        self._ungraded: dict[str, None] = {}  # what ran without gradients since a module last ran with them
        self._ungraded_last: Callable[[], torch.Tensor | None] = lambda: None  # what the last of them put out
        self.cuts: dict[str, str] = {}  # module that ran without gradients -> the one with gradients that took what came of it
        self.slots: list[Slot] = []  # in execution order
        self.inputs: list[Slot] = []
        self._entrance = Entrance()
        self._given: list[weakref.ref[torch.Tensor]] = []  # what the model was given on the last sampled step
        # Whether to sample the last forward pass of a step, not the first: what came before may have been thrown away.
        self.keep_last = False
        self.reading_graph = False  # whether to note which autograd node each output comes from
        self.refresh(model)

    def refresh(self, model: torch.nn.Module) -> None:
        """Look again which modules there are; sites keep their places."""
        known = {watched.path: watched for watched in self._watched.values()}
        self._watched = {}
        for place, (path, module) in enumerate(modules_of(model)):
            if self._left_out(path):
                continue
            slots = known[path].sites if path in known else []
            axis, first = batch_axis(module), slots[0] if slots else None
            watched = Watched(weakref.ref(module), path, role_of(module), axis, place, slots, first)
            if path in known:
                watched.generation, watched.calls = known[path].generation, known[path].calls
            self._watched[id(module)] = watched
        heard = {key: partial(self._after_forward, watched) for key, watched in self._watched.items()}
        self.hooks.listen(self, after=heard, before={}, light=True)

    def _left_out(self, path: str) -> bool:
        """Whether the user wants nothing of this module; the model itself is never left out."""
        if not path:
            return False
        missing = self._include is not None and not self._include.search(path)
        return missing or (self._exclude is not None and self._exclude.search(path) is not None)

    def release(self) -> None:
        """Let go of the arenas and the slots: nothing is sampled any more."""
        self._watched, self.slots, self.inputs = {}, [], []
        for arenas in (self._forward_arenas, self._backward_arenas, self._input_arenas):
            arenas.clear()

    def start_step(self, place: int) -> None:
        """Forget what the rows hold at this place: the next forward pass is a new step's."""
        self._generation += 1
        if self._include is None and self._exclude is None:  # else another part may come before those that are watched
            self._entrance.begin(self._generation, self._watched.values(), self.slots)
        self.gradient_seen = False
        self._ungraded = {}
        self._given = []
        self._turn.to(place)

    def let_go(self, held: int, *, amid: bool) -> None:
        """So many steps were handed on; ``amid`` a step, which goes on at the first place."""
        for arena in self._arenas() if amid else ():
            arena.move(held, 0)
        if amid:
            self._turn.moved(held, 0)
            self._turn.place = 0

    def _arenas(self) -> Iterator[Arena]:
        for by_device in (self._input_arenas, self._forward_arenas, self._backward_arenas):
            yield from by_device.values()

    def kinds(self) -> Iterator[tuple[str, int, list[Arena]]]:
        """Each kind of site with how many there are, and the arenas that their rows lie in."""
        yield "input", len(self.inputs), list(self._input_arenas.values())
        yield "activation", len(self.slots), list(self._forward_arenas.values())
        yield "activation_gradient", len(self.slots), list(self._backward_arenas.values())

    def rows(self, kind: str) -> list[Row | None]:
        """The rows of a kind of site, in the order of the sites."""
        if kind == "activation_gradient":
            return [slot.backward for slot in self.slots]
        return [slot.forward for slot in (self.inputs if kind == "input" else self.slots)]

    # -- hooks

    def _after_forward(self, watched: Watched, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """What most calls need stands here in one piece. Between two operations of a training, each function entered and each
        object touched has to come back to the caches first, and takes three times as long as in a loop.
        """
        if watched.module() is not module:
            return
        slot, generation = watched.first, self._generation
        tensor = watched.sampled_of(output) if type(output) is tuple else output
        block = slot.block_of(tensor) if slot is not None and watched.generation != generation else None
        usual = is_grad_enabled() and _current_graph_task_id() == -1 and not (self._ungraded or self.gradient_seen)
        if block is None or slot is None or slot.forward is None or not usual or self._last() is tensor:
            (self._hear_within if is_within() else self._hear)(watched, args, kwargs, output)
            return
        self._last, self._last_version = _weak(tensor), tensor._version
        watched.generation, watched.calls, slot.generation = generation, 1, generation
        _set_grad_enabled(False)  # cheaper than to detach every tensor
        try:
            slot.forward.gather(tensor, block)
        finally:
            _set_grad_enabled(True)
        node = tensor.grad_fn
        if node is not None:
            if self.reading_graph:
                slot.node = node._sequence_nr()
            self._hang(tensor, node, slot, generation)
        if watched.path == "":
            self._end_pass(args, kwargs)
        elif watched.path == self._entrance.path:
            self._enter(watched, args, kwargs)

    def _hear(self, watched: Watched, args: Any, kwargs: Any, output: Any) -> None:
        """The same, whatever the call is like."""
        self.unsupported.hear(watched, output)
        if not is_grad_enabled():
            if self.reading_graph:
                self._note_ungraded(watched, output)
            return
        if self._ungraded:
            self._note_cut(watched, args)
        # Inside a backward pass a forward is a checkpoint's recompute: it is sampled only where the first could not be.
        recompute = _current_graph_task_id() != -1
        if self.gradient_seen and not recompute:
            if not self.keep_last:
                return  # a later micro-batch of the same step
            self._generation += 1
            self.gradient_seen = False
        if watched.generation != self._generation:
            watched.generation, watched.calls = self._generation, 0
        tensor = output if type(output) is torch.Tensor else largest(output)
        if tensor is not None:
            watched.remember(output, tensor)
            if not (self._last() is tensor and self._last_version == tensor._version):
                self._take(watched, tensor, recompute)  # else a container hands on its child's tensor
        if watched.path == "" and not recompute:
            self._end_pass(args, kwargs)
        elif watched.path == self._entrance.path and not recompute:
            self._enter(watched, args, kwargs)

    def _hear_within(self, watched: Watched, args: Any, kwargs: Any, output: Any) -> None:
        """The same within a transform of torch.func: what wrappers hold is sampled where the transform does not reach."""
        tensor = largest(output)
        if tensor is None or (held := bare(tensor)) is None:  # of vmap, where many samples are one tensor
            self._hear(watched, args, kwargs, output)
            return
        handed_on = self._last() is tensor and self._last_version == tensor._version
        with outside():
            self._hear(watched, args, kwargs, tensor if handed_on else held)
        self._last, self._last_version = _weak(tensor), tensor._version

    def _end_pass(self, args: Any, kwargs: Any) -> None:
        self._entrance.called_whole()
        self._take_inputs(numbers_of(args, kwargs))
        self._generation += 1

    def _enter(self, watched: Watched, args: Any, kwargs: Any) -> None:
        """The part of the model was called that takes what goes into it; what has a gradient was made by another part."""
        given = numbers_of(args, kwargs)
        if watched.calls <= 1 and not any(tensor.requires_grad for tensor in given):
            self._take_inputs(given)

    def _note_ungraded(self, watched: Watched, output: Any) -> None:
        if watched.path == "":
            self._ungraded = {}  # a whole pass without gradients is a validation, or another's target
        elif isinstance(output, torch.Tensor):
            self._ungraded[watched.path] = None
            self._ungraded_last = weakref.ref(output)

    def _note_cut(self, watched: Watched, args: Any) -> None:
        """The first module with gradients after some without: whether it took what these put out.

        A reentrant checkpoint runs without gradients too, but what it puts out has a gradient.
        """
        last, ran, self._ungraded = self._ungraded_last(), self._ungraded, {}
        for taken in args:
            whole = taken if not isinstance(taken, torch.Tensor) or taken._base is None else taken._base
            if last is not None and (taken is last or whole is last) and not taken.requires_grad:
                self.cuts.update(dict.fromkeys(ran, watched.path))

    def _take(self, watched: Watched, tensor: torch.Tensor, recompute: bool) -> None:
        part = part_here(tensor)
        if part is None:
            return
        call = watched.calls
        slot = watched.sites[call] if call < len(watched.sites) else None
        block = slot.block_of(part) if slot is not None else None
        if block is None:
            if not can_be_sampled(part):
                return
            slot = self._slot(watched, call, recompute) if call < MOST_CALLS else None
        self._last, self._last_version = _weak(tensor), tensor._version
        watched.calls = call + 1
        if slot is None:
            return
        if recompute and slot.generation >= self._generation - 1 and slot.forward and slot.forward.is_filled:
            return
        row = slot.forward or self._first_time(slot, part)
        _set_grad_enabled(False)  # as gradients are on: cheaper than to detach every tensor
        try:
            row.gather(part, block or self._blocks.of_output(slot, watched, part))
        finally:
            _set_grad_enabled(True)
        slot.generation = self._generation
        node = tensor.grad_fn
        if node is None:
            return
        if self.reading_graph:
            slot.node = node._sequence_nr()
        if part is tensor:
            self._hang(tensor, node, slot, self._generation)
        else:
            tensor.register_hook(_GradientHook(self, slot, self._generation))  # type: ignore[no-untyped-call]

    def _slot(self, watched: Watched, call: int, recompute: bool) -> Slot:
        if call < len(watched.sites):
            return watched.sites[call]
        self.unsupported.look_up(self._watched)
        slot = Slot(Site(watched.path, call), watched.role, watched.place)
        watched.sites.append(slot)
        watched.first = watched.sites[0]
        # Checkpoints are recomputed last to first: what shows only then stands where its definition does.
        later = (i for i, other in enumerate(self.slots) if recompute and other.place > slot.place)
        self.slots.insert(next(later, len(self.slots)), slot)
        return slot

    def _first_time(self, slot: Slot, tensor: torch.Tensor) -> Row:
        slot.forward = self._new_row(self._forward_arenas, tensor.device, room=len(self._watched))
        slot.backward = self._new_row(self._backward_arenas, tensor.device, room=len(self._watched))
        return slot.forward

    def _new_row(self, arenas: dict[torch.device, Arena], device: torch.device, *, room: int) -> Row:
        if device not in arenas:
            arenas[device] = Arena(device, self._turn, samples=self._samples, room=room)
        return arenas[device].add_row()

    def take_gradient(self, slot: Slot, row: Row, gradient: torch.Tensor) -> None:
        """Inside the backward pass: sample a gradient that is not like its output, or has a graph of its own."""
        part = part_here(gradient)
        if part is not None and can_be_sampled(part) and part.device == row.arena.device:
            detached = part.detach()
            row.gather(detached, slot.block_of(detached) or self._blocks.of(detached, slot.axes))

    def _take_inputs(self, tensors: list[torch.Tensor]) -> None:
        self._given = [_weak(tensor) for tensor in tensors]
        for place, tensor in enumerate(tensors[:MOST_INPUTS]):
            if place == len(self.inputs):
                self.inputs.append(Slot(Site("(input)", place), "input", place))
                self.inputs[place].forward = self._new_row(self._input_arenas, tensor.device, room=MOST_INPUTS)
            slot = self.inputs[place]
            row = slot.forward
            if row is not None and row.arena.device == tensor.device:
                row.gather(tensor.detach(), slot.block_of(tensor) or self._blocks.of_input(slot, tensor))

    def given(self) -> list[torch.Tensor]:
        """What the model was given in the forward pass of this step; empty where that was not seen or is gone."""
        found = [tensor for reference in self._given if (tensor := reference()) is not None] if self.hooks.on else []
        return found if len(found) == len(self._given) else []

    def _hang(self, tensor: torch.Tensor, node: Any, slot: Slot, generation: int) -> None:
        """``tensor.register_hook`` without a handle to take it off again, whose making takes three quarters of the time between
        the operations of a training, when nothing of it is in a cache.

        A table of hooks is used again where no graph holds it any more, and nobody has put a hook of theirs into it: what is
        made anew for each of thousands of modules sets off Python's collector of garbage.
        """
        if tensor._backward_hooks is not None:
            hook = _GradientHook(self, slot, generation)
            tensor._backward_hooks[hook] = hook  # type: ignore[index]
            return
        hung = slot.hung.pop(0) if len(slot.hung) == _TABLES else None
        if hung is None or getrefcount(hung[1]) != _OURS_ALONE or len(hung[1]) != 1:
            hook = _GradientHook(self, slot, generation)
            hung = (hook, OrderedDict({hook: hook}))
        else:
            hung[0].generation = generation
        slot.hung.append(hung)
        tensor._backward_hooks = hung[1]
        node._register_hook_dict(tensor)


@final
class _GradientHook:
    """Takes the gradient of one output of one forward pass; returns None, so the gradient goes on as it came.

    In one piece, as ``ModuleProbe._after_forward`` is.
    """

    __slots__ = ("_probe", "_slot", "generation")
    __torch_unserializable__ = True  # torch.save leaves it out of a saved output without a warning

    def __init__(self, probe: ModuleProbe, slot: Slot, generation: int) -> None:
        self._probe = probe
        self._slot = slot
        self.generation = generation  # of the forward pass that it hangs in

    def __call__(self, gradient: torch.Tensor) -> None:
        probe, slot = self._probe, self._slot
        hooks, row = probe.hooks, slot.backward
        if slot.generation != self.generation or row is None or not hooks.on:
            return  # else another forward pass's output lies in the row
        started = perf_counter()
        try:
            probe.gradient_seen = True
            block = slot.block_of(gradient)
            if block is None or gradient.requires_grad:
                probe.take_gradient(slot, row, gradient)
            else:
                row.gather(gradient, block)
        except Exception:
            probe.guard()
        hooks.calls += 1
        hooks.seconds += perf_counter() - started
