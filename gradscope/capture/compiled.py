"""What runs under ``torch.compile``: hooks do not hear it, so on sampled steps it runs as it would without the compiler.

What is compiled is guarded: with other hooks than it was compiled with it is compiled again. So the compiler never meets the
hooks of the watch. On a sampled step of a model that is known to be compiled, torch is told to run everything eagerly, which
leaves what is compiled alone; on all others the hooks are not there. Of a model that is not known to be, the hooks are
taken off before anything is compiled, and the graph of the first loss then tells.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from collections.abc import Container
from collections.abc import Iterator
from threading import RLock
from types import MethodType
from typing import Any
from typing import Protocol
from typing import final

import torch
from torch.nn.modules import module as hooked

from gradscope.capture.graph import Graph
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.naming import is_wrapper
from gradscope.capture.naming import unwrapped
from gradscope.capture.untraced import leave_out

EAGER_MEMORY = 4  # times what a compiled step takes for a while, that have to be free for an eager one
_EAGER = "force_eager"
_CAN_RUN_EAGERLY = "set_stance" in torch.compiler.__all__  # since torch 2.6
_MARKS_PARAMETERS = _CAN_RUN_EAGERLY  # not before torch 2.5, where modules were no inputs of a graph
_MARK = "_dynamo_static_input_type"  # what a parameter bears from the moment on at which the compiler met it
_COMPILED_NODE = "CompiledFunction"  # what a compiled region is in the graph of a loss


class Ear(Protocol):
    """What a watch wants to hear of the compiler."""

    def compile_begins(self) -> None:
        """Something is about to be compiled."""

    def called(self, module: torch.nn.Module) -> None:
        """What ``torch.compile(module)`` made is about to run."""


@final
class Compiler:
    """torch's compiler as the watches of the process use it. One instance, in this module.

    The stance is the process's, and so another model that is compiled runs eagerly as well while a step is sampled. It comes
    back as it was found, and a stance that somebody else has taken since then stays.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # models may train in threads of their own
        self._ears: tuple[Ear, ...] = ()
        self._holders: set[Ear] = set()  # who wants everything to run eagerly
        self._stance: Any = None  # ours, as torch keeps it; also after it was given back
        self._prior: Any = None  # whose place it has taken
        self._call: tuple[Any, Any] | None = None  # the wrapper's own ``__call__``, and ours around it

    @property
    def in_play(self) -> bool:
        """Whether anything was handed to the compiler in this process."""
        loaded = sys.modules.get("torch._dynamo.eval_frame")
        return loaded is not None and any(backend is not None for backend in loaded.cached_backends.values())

    def join(self, ear: Ear) -> None:
        """Hear of the compiler. It is imported here, as it is by the first optimizer that is made."""
        from torch._dynamo import callback
        from torch._dynamo import eval_frame

        with self._lock:
            self._ears = (*self._ears, ear)
            if len(self._ears) > 1:
                return
            callback.callback_handler.register_start_callback(self._compile_begins)
            original = eval_frame.OptimizedModule.__call__
            self._call = (original, _around_call(self, original))
            eval_frame.OptimizedModule.__call__ = self._call[1]  # type: ignore[method-assign]

    def leave(self, ear: Ear) -> None:
        from torch._dynamo import callback
        from torch._dynamo import eval_frame

        with self._lock:
            self.let_go(ear)
            if ear not in self._ears:
                return
            self._ears = tuple(other for other in self._ears if other is not ear)
            if self._ears:
                return
            if self._compile_begins in callback.callback_handler.start_callbacks:
                callback.callback_handler.remove_start_callback(self._compile_begins)
            if self._call is not None and eval_frame.OptimizedModule.__call__ is self._call[1]:
                eval_frame.OptimizedModule.__call__ = self._call[0]  # type: ignore[method-assign]

    def hold(self, ear: Ear) -> bool:
        """Run everything eagerly until ``let_go``; whether that can be."""
        if not _CAN_RUN_EAGERLY:
            return False
        with self._lock:
            self._holders.add(ear)
            current = _current_stance()
            if current is not self._stance and current.stance != _EAGER:
                # Made anew each time: one that somebody holds on to is told from one that is in force.
                torch.compiler.set_stance(_EAGER)
                self._prior, self._stance = current, _current_stance()
        return True

    def let_go(self, ear: Ear) -> None:
        """Put the stance back that was found, once nobody wants it otherwise."""
        with self._lock:
            self._holders.discard(ear)
            # Also where it is ours though nobody held it: someone took a stance amid a sampled step, and has put ours back.
            if not self._holders and self._stance is not None and _current_stance() is self._stance:
                _put_stance(self._prior)

    def called(self, module: torch.nn.Module) -> None:
        for ear in self._ears:
            ear.called(module)

    def _compile_begins(self, *_: Any) -> None:
        for ear in self._ears:
            ear.compile_begins()


COMPILER = Compiler()


@final
class CompiledSteps:
    """Says of each sampled step of one model whether its modules can be heard, and sees to it that they are."""

    def __init__(
        self, model: torch.nn.Module, hear: Callable[[], None], fall_silent: Callable[[], None], guard: Callable[[], None]
    ) -> None:
        self._model = weakref.ref(model)
        self._hear = hear  # called where hooks may be there from now on,
        self._fall_silent = fall_silent  # and where they may not
        self._guard = guard
        self._compiled = False  # whether compiled code is known to run the model
        self._strangers: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # compiled, with nothing of the model in them
        self._first: bool | None = None  # whether the sampled step under way is the first; None before that
        self._on = False

    def begin(self) -> None:
        """A sampled step begins."""
        if self._first is None:
            COMPILER.join(self)
        self._first = self._first is None
        self._on = True
        self._compiled = self._compiled or self._has_compiled_parts()
        heard = self._hold() if self._compiled else not (self._first and self._may_be_compiled())
        (self._hear if heard else self._fall_silent)()

    def end(self) -> None:
        """The step to come is not sampled."""
        self._on = False
        COMPILER.let_go(self)

    def stop(self) -> None:
        """Nothing is sampled any more."""
        self.end()
        COMPILER.leave(self)

    def read(self, graph: Graph, parameters: Container[int]) -> None:
        """Learn from the graph of a loss whether compiled code runs the model: its region takes the parameters themselves."""
        if self._compiled or not COMPILER.in_play:
            return
        sources = {i for node in graph.nodes if node.name == _COMPILED_NODE for i in node.inputs if i is not None}
        self._compiled = any(id(graph.nodes[i].variable) in parameters for i in sources if i < len(graph.nodes))

    def _has_compiled_parts(self) -> bool:
        model = self._model()
        if model is None or not COMPILER.in_play:
            return False
        return any(module._compiled_call_impl is not None or is_wrapper(module) for module in model.modules())

    def _may_be_compiled(self) -> bool:
        """Whether the compiler has met the model's parameters, so that a function may hold a graph of it already."""
        model = self._model()
        if model is None or not COMPILER.in_play:
            return False
        return not _MARKS_PARAMETERS or any(_MARK in parameter.__dict__ for parameter in model.parameters())

    def _hold(self) -> bool:
        """Have everything run eagerly, where there is room for that."""
        model = self._model()
        if model is not None and has_room(model, untrained=bool(self._first)) and COMPILER.hold(self):
            return True
        COMPILER.let_go(self)
        return False

    # -- what the compiler tells

    def compile_begins(self) -> None:
        self._fall_silent()

    def called(self, module: torch.nn.Module) -> None:
        """Where the model is not known to be compiled, this is the last moment before the compiler would meet the hooks."""
        if self._compiled or module in self._strangers:
            return
        try:
            model = self._model()
            self._compiled = any(part is model for part in module.modules()) or (
                model is not None and any(part is module for part in model.modules())
            )
            if not self._compiled:
                self._strangers.add(module)
            elif self._on and self._hold():
                self._hear()
            else:
                self._fall_silent()
        except Exception:
            self._guard()


def has_room(model: torch.nn.Module, *, untrained: bool) -> bool:
    """Whether a step can run eagerly without the compiler's savings of memory. Waits for no device.

    Eagerly, each operation keeps what the compiler would have fused or worked out again. That is taken where ``EAGER_MEMORY``
    times what a compiled step had beyond what is held now is free; so an ``untrained`` model's first step runs compiled.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type in ("cuda", "xpu")}
    return not devices or (not untrained and all(_has_room_on(device) for device in devices))


def _has_room_on(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    held = int(module.memory_allocated(device))
    passing = int(module.max_memory_allocated(device)) - held
    free = int(module.mem_get_info(device)[0]) + int(module.memory_reserved(device)) - held
    return 0 < EAGER_MEMORY * passing <= free


def _current_stance() -> Any:
    from torch._dynamo import eval_frame

    return eval_frame._stance


def _put_stance(stance: Any) -> None:
    from torch._dynamo import eval_frame

    eval_frame._set_stance(stance)


def _around_call(compiler: Compiler, original: Callable[..., Any]) -> Callable[..., Any]:
    """The call of what ``torch.compile(module)`` made, which else warns of hooks on all modules, ours too."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiler.called(unwrapped(self))
        if all(map(_is_ours, _hooks_on_all_modules())):
            return torch.nn.Module.__call__(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    leave_out(call, all_within=False)
    call.__doc__ = original.__doc__
    call.__wrapped__ = original  # type: ignore[attr-defined]
    return call


def _hooks_on_all_modules() -> Iterator[Any]:
    for table in (
        hooked._global_forward_hooks, hooked._global_forward_pre_hooks,
        hooked._global_backward_hooks, hooked._global_backward_pre_hooks,
    ):  # fmt: skip
        yield from table.values()


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, MethodType) and isinstance(hook.__self__, ForwardHooks)


leave_out(Compiler.called, Compiler._compile_begins, _hooks_on_all_modules, _is_ours, unwrapped)
