"""Where the training loop shows itself: one wrapper of ``Tensor.backward`` and torch's global optimizer hooks.

They are there only while a model is watched, and once for all watched models of the process.
"""

from __future__ import annotations

import sys
from threading import RLock
from typing import Any
from typing import Protocol
from typing import final

import torch
from torch.optim.optimizer import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """What a watched model wants to hear of the loop."""

    def before_backward(self, loss: torch.Tensor, *, first: bool) -> None:
        """A backward pass starts from ``loss``; ``first`` since any optimizer stepped."""

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""


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
class Loop:
    """The process's training loop as its watched models hear it. One instance, in this module."""

    def __init__(self) -> None:
        self._lock = RLock()  # models may train in threads of their own, and each hears of all
        self._listeners: tuple[Listener, ...] = ()
        self._stand: Stand | None = None
        self._handles: list[RemovableHandle] = []
        self._backward: Any = None
        self._stepping: list[int] = []  # optimizers within whose step we are, outermost first
        self._stepped = True  # since the last backward
        self.nests = False  # whether an optimizer has stepped within another's step

    @property
    def listeners(self) -> tuple[Listener, ...]:
        return self._listeners

    @property
    def has_one_listener(self) -> bool:
        return len(self._listeners) == 1

    def join(self, listener: Listener) -> None:
        if self._stand is not None and self._listeners:
            self._stand.end()
        self._listeners = (*self._listeners, listener)
        if len(self._listeners) == 1:
            self._listen()

    def leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners = tuple(held for held in self._listeners if held is not listener)
            if not self._listeners:
                self._stop()

    def lull(self, stand: Stand) -> None:
        """Let ``stand`` hear in the place of all who listen, until ``rouse``."""
        self._stand = stand
        self.hear_starts(stand.hears_starts)

    def rouse(self, *, stepped: bool) -> None:
        """Those who listen hear again; ``stepped`` says whether an optimizer has since the last backward call."""
        self._stand = None
        self._stepping, self._stepped = [], stepped
        self.hear_starts(True)

    def hear_starts(self, wanted: bool) -> None:
        """Whether to hear of the starts of optimizers' steps. Only a stand may do without, where steps do not nest."""
        pre = self._handles[0] if self._handles else None
        table = pre.hooks_dict_ref() if pre is not None else None
        if pre is None or table is None:
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
        self._stepping, self._stepped = [], True
        self.hear_starts(self._stand is None or self._stand.hears_starts)
        original = torch.Tensor.backward
        loop = self

        def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            if loop.calls_through(backward):
                loop.before_backward(self)
            original(self, *args, **kwargs)  # type: ignore[no-untyped-call]

        backward.__doc__ = original.__doc__
        backward.__wrapped__ = original  # type: ignore[attr-defined]
        self._backward = (original, backward)
        torch.Tensor.backward = backward  # type: ignore[method-assign]

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        original, ours = self._backward
        self._backward = None
        if torch.Tensor.backward is ours:  # somebody may have wrapped ours since: then theirs stays, and calls ours
            torch.Tensor.backward = original  # type: ignore[method-assign]

    def calls_through(self, backward: Any) -> bool:
        """Whether this is the wrapper in force, and not one that another tool has kept from an earlier watch."""
        return self._backward is not None and self._backward[1] is backward

    def before_backward(self, loss: torch.Tensor) -> None:
        if self._stand is not None:
            self._stand.hear_backward(loss)
            return
        if self._stepping and not _within_a_step():
            self._stepping = []  # a step raised and never came back
        with self._lock:
            first, self._stepped = self._stepped, False
            for listener in self._listeners:
                listener.before_backward(loss, first=first)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._stand is not None:
            self._stand.hear_start(optimizer)
            return
        if id(optimizer) in self._stepping:  # its last step raised and never came back
            del self._stepping[self._stepping.index(id(optimizer)) :]
        self._stepping.append(id(optimizer))
        if len(self._stepping) > 1:
            self.nests = True
            return
        with self._lock:
            for listener in self._listeners:
                listener.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._stand is not None:
            self._stand.hear_step(optimizer)
            return
        if id(optimizer) in self._stepping:
            del self._stepping[self._stepping.index(id(optimizer)) :]
        if not self._stepping:
            with self._lock:
                self._stepped = True
                for listener in self._listeners:
                    listener.after_step(optimizer)


def _within_a_step() -> bool:
    """Whether an optimizer's ``step`` is being carried out now, as it is in a closure."""
    home = Optimizer.profile_hook_step.__code__.co_filename
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == home:
            return True
    return False


LOOP = Loop()
