"""Where the training loop shows itself: one wrapper of ``torch.autograd.backward`` and torch's global optimizer hooks.

They are there only while a model is watched, and once for all watched models of the process.
"""

from __future__ import annotations

import sys
from threading import RLock
from threading import get_ident
from threading import local
from typing import Any
from typing import Protocol
from typing import final

import torch
from torch.compiler import is_dynamo_compiling
from torch.optim.optimizer import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from gradscope.capture.cuda_graphs import CAPTURES
from gradscope.capture.untraced import leave_out

_current_graph_task_id = torch._C._current_graph_task_id


class Listener(Protocol):
    """What a watched model wants to hear of the loop."""

    def before_backward(self, loss: torch.Tensor) -> None:
        """A backward pass starts from ``loss``."""

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""

    def owns_some_of(self, optimizer: Optimizer) -> bool:
        """Whether it holds parameters of the watched model."""

    def after_compiled_steps(self) -> None:
        """One optimizer or several have stepped as compiled code, since the last backward pass or the last time of asking."""


class Awaiting(Protocol):
    """Who wants to hear of the ends of backward passes."""

    def after_backward(self) -> None:
        """A backward pass is over."""


class Stand(Protocol):
    """Who listens in the place of the only listener to a loop as plain as most are, and touches as little as may be."""

    hears_starts: bool  # of the steps of optimizers

    def hear_backward(self, loss: torch.Tensor) -> None:
        """A backward pass starts from ``loss``."""

    def hear_step(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""

    def hear_start(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def end(self) -> None:
        """Give the place back."""


@final
class _Here(local):
    """Where the loop of one thread is."""

    def __init__(self) -> None:
        self.stepping: list[int] = []  # optimizers within whose step it is, outermost first


@final
class _Trace:
    """What code that the compiler has made leaves behind of a step."""

    __slots__ = ("stepped",)

    def __init__(self) -> None:
        self.stepped = False


@final
class Loop:
    """The process's training loop as its watched models hear it. One instance, in this module."""

    def __init__(self) -> None:
        self._lock = RLock()  # models may train in threads of their own, and each hears of all
        self._listeners: tuple[Listener, ...] = ()
        self._awaiting: tuple[Awaiting, ...] = ()  # the ends of backward passes
        self._stand: Stand | None = None
        self._handles: list[RemovableHandle] = []
        self._backward: tuple[Any, Any] = (None, None)  # torch's own, and the wrapper in force
        self._here = _Here()
        self._trace = _Trace()
        self._thread = 0  # that was heard last; 0 before any was
        self._in_threads = False  # whether several were heard
        self.nests = False  # whether an optimizer has stepped within another's step

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return self._listeners

    @property
    def is_single(self) -> bool:
        """Whether one model is watched, and all that was heard so far was heard in one thread."""
        return len(self._listeners) == 1 and not self._in_threads

    def join(self, listener: Listener) -> None:
        if self._stand is not None and self._listeners:
            self._stand.end()
        self._listeners = (*self._listeners, listener)
        if len(self._listeners) == 1:
            self._listen()

    def tell_of_ends(self, awaiting: Awaiting, *, wanted: bool) -> None:
        """Whether to tell this one of the ends of backward passes."""
        others = tuple(held for held in self._awaiting if held is not awaiting)
        self._awaiting = (*others, awaiting) if wanted else others

    def leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners = tuple(held for held in self._listeners if held is not listener)
            if not self._listeners:
                self._stop()

    def lull(self, stand: Stand) -> None:
        """Let ``stand`` hear in the place of all who listen, until ``rouse``."""
        self._stand = stand
        self.hear_starts(stand.hears_starts)

    def rouse(self) -> None:
        """Those who listen hear again."""
        self._stand = None
        self._here.stepping = []
        self.hear_starts(True)

    def hear_starts(self, wanted: bool) -> None:
        """Whether to hear of the starts of optimizers' steps. Only a stand may do without, where steps do not nest."""
        pre = self._handles[0] if self._handles else None
        table = pre.hooks_dict_ref() if pre is not None else None
        if pre is None or table is None or wanted == (pre.id in table):
            return
        if wanted:
            table[pre.id] = self._before_step
        else:
            table.pop(pre.id, None)

    def _listen(self) -> None:
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._here.stepping = []
        self._thread, self._in_threads = 0, False
        self.hear_starts(self._stand is None or self._stand.hears_starts)
        original = torch.autograd.backward  # which ``Tensor.backward`` calls too
        loop = self

        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            # Another tool may have kept a wrapper of an earlier watch; checkpoints call backward within another.
            outermost = loop._backward[1] is backward and _current_graph_task_id() == -1
            if outermost:
                loop.before_backward_of(tensors)
            original(tensors, *args, **kwargs)
            if outermost and loop._awaiting:
                loop.after_backward()

        leave_out(backward, all_within=False)
        backward.__doc__ = original.__doc__
        backward.__wrapped__ = original  # type: ignore[attr-defined]
        self._backward = (original, backward)
        torch.autograd.backward = backward

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        original, ours = self._backward
        self._backward = (None, None)
        if torch.autograd.backward is ours:  # somebody may have wrapped ours since: then theirs stays, and calls ours
            torch.autograd.backward = original

    def before_backward_of(self, tensors: Any) -> None:
        """A backward pass starts from one tensor or from several, whose sum it then goes down."""
        if CAPTURES.possible and CAPTURES.running():
            return
        if isinstance(tensors, torch.Tensor):
            self.before_backward(tensors)
        elif isinstance(tensors, list | tuple):  # any other is read but once, and not by us
            for root in _added([tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]):
                self.before_backward(root)

    def tell_of_compiled_steps(self) -> None:
        """Tell those who listen of steps that they could not hear."""
        if not self._trace.stepped:
            return
        self._trace.stepped = False
        if self._stand is not None:
            self._stand.end()
        with self._lock:
            for listener in self._listeners:
                listener.after_compiled_steps()

    def before_backward(self, loss: torch.Tensor) -> None:
        if self._trace.stepped:
            self.tell_of_compiled_steps()
        with self._lock:
            stand = self._stand if get_ident() == self._thread else self._hear()
            if stand is not None:
                stand.hear_backward(loss)
                return
        if self._here.stepping and not _within_a_step():
            self._here.stepping = []  # a step raised and never came back
        with self._lock:
            for listener in self._listeners:
                listener.before_backward(loss)

    def after_backward(self) -> None:
        if not CAPTURES.running():
            with self._lock:
                for awaiting in self._awaiting:
                    awaiting.after_backward()

    def _hear(self) -> Stand | None:
        """Who is to hear in the place of those who listen, if anyone; nobody from where another thread is heard."""
        here = get_ident()
        if here != self._thread:
            self._in_threads |= self._thread != 0
            self._thread = here
            if self._in_threads and self._stand is not None:
                self._stand.end()
        return self._stand

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if is_dynamo_compiling() or (CAPTURES.possible and CAPTURES.running()):
            return
        with self._lock:
            stand = self._stand if get_ident() == self._thread else self._hear()
            if stand is not None:
                stand.hear_start(optimizer)
                return
        stepping = self._here.stepping
        if id(optimizer) in stepping:  # its last step raised and never came back
            del stepping[stepping.index(id(optimizer)) :]
        stepping.append(id(optimizer))
        if len(stepping) > 1:
            self.nests = True
            return
        with self._lock:
            for listener in self._listeners:
                listener.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if is_dynamo_compiling():  # what is traced here runs with the compiled step: it neither breaks its graph nor guards it
            self._trace.stepped = True
            return
        if CAPTURES.possible and CAPTURES.running():
            return
        with self._lock:
            stand = self._stand if get_ident() == self._thread else self._hear()
            if stand is not None:
                stand.hear_step(optimizer)
                return
        stepping = self._here.stepping
        if id(optimizer) in stepping:
            del stepping[stepping.index(id(optimizer)) :]
        if not stepping:
            with self._lock:
                for listener in self._listeners:
                    listener.after_step(optimizer)


def _added(roots: list[torch.Tensor]) -> list[torch.Tensor]:
    """Losses of one backward pass as their sum, where they are such that nothing can speak against adding them."""
    alike = {(type(root), root.numel(), root.device, root.dtype) for root in roots}
    if len(roots) < 2 or len(alike) > 1 or type(roots[0]) is not torch.Tensor or roots[0].numel() != 1:
        return roots
    with torch.enable_grad():
        return [torch.stack([root.reshape(()) for root in roots]).sum()]


def _within_a_step() -> bool:
    """Whether an optimizer's ``step`` is being carried out now, as it is in a closure."""
    home = Optimizer.profile_hook_step.__code__.co_filename
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == home:
            return True
    return False


leave_out(Loop.before_backward_of, Loop.before_backward, Loop.after_backward, Loop._before_step, Loop._after_step)

LOOP = Loop()
