"""The forward passes of a model's modules, as those who listen in one watch hear of them.

torch's global hooks fire for every module there is. One pair of them, there only while a step is sampled, asks who wants to
hear of a module: each module pays for one look-up. What is compiled never meets them, see ``compiled``.
Nothing hangs on the model itself, so that copies, pickles and ``torch.save`` carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from time import perf_counter
from typing import Any
from typing import final

import torch
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.module import _global_forward_hooks_with_kwargs
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from gradscope.capture.cuda_graphs import CAPTURES
from gradscope.capture.untraced import leave_out

After = Callable[[torch.nn.Module, Any, Any, Any], None]  # module, args, kwargs, output
Before = Callable[[torch.nn.Module, Any], Any]  # module, args; what it returns, if anything, takes the place of args
_Heard = tuple[Mapping[int, After], Mapping[int, Before], bool]
_Afters = dict[int, tuple[After, ...]]
_Befores = dict[int, tuple[Before, ...]]

_is_tracing = torch._C._is_tracing  # bound once: between two operations every name that is looked up misses the caches


@final
class ForwardHooks:
    """One watch's hooks. Those who listen check for themselves that ``id`` still stands for their module."""

    def __init__(self, guard: Callable[[], None]) -> None:
        self._guard = guard  # called from an except clause: reports the failure and ends the watching
        self._by_listener: dict[object, _Heard] = {}
        self._tables: dict[bool, tuple[_Afters, _Befores]] = {}  # of all who listen, or of those alone who do on light steps
        self._after: _Afters = {}
        self._before: _Befores = {}
        self._forward: RemovableHandle | None = None  # the same for as long as this lives
        self._forward_pre: RemovableHandle | None = None
        self.on = False
        self._light = False
        self._changed = False  # who listens, since the hooks were put there
        self.seconds = 0.0  # spent in here since the last ``start_step``
        self.calls = 0  # hooks that fired since then

    def listen(self, listener: object, *, after: Mapping[int, After], before: Mapping[int, Before], light: bool) -> None:
        """What one listener wants to hear from now on, by ``id`` of the module, in the place of what it wanted before; on
        ``light`` steps too or not.
        """
        self._by_listener[listener] = (after, before, light)
        self._tables.clear()
        self._changed = True
        if self.on:
            self.switch_on(light=self._light)

    def switch_on(self, *, light: bool) -> None:
        """Be called from now on. Each hook keeps its number, and stays whoever listens."""
        if self.on and not self._changed and light == self._light:
            return
        self._light = light
        self._after, self._before = self._heard(light=light)
        if self.on and not self._changed:
            return
        self.on, self._changed = True, False
        if self._forward is None:
            self._forward = register_module_forward_hook(self._after_forward, with_kwargs=True)
        _put(self._forward, self._after_forward)
        if self._heard(light=False)[1]:
            self._forward_pre = self._forward_pre or register_module_forward_pre_hook(self._before_forward)
            _put(self._forward_pre, self._before_forward)
        elif self._forward_pre is not None:
            self._forward_pre.remove()

    def _heard(self, *, light: bool) -> tuple[_Afters, _Befores]:
        """Who is called for which module."""
        if light not in self._tables:
            after: _Afters = {}
            before: _Befores = {}
            for afters, befores, always in self._by_listener.values():
                for key, call in afters.items() if always or not light else ():
                    after[key] = (*after.get(key, ()), call)
                for key, first in befores.items() if always or not light else ():
                    before[key] = (*before.get(key, ()), first)
            self._tables[light] = (after, before)
        return self._tables[light]

    def switch_off(self) -> None:
        self.on = False
        for handle in (self._forward, self._forward_pre):
            if handle is not None:
                handle.remove()

    def start_step(self) -> None:
        """Count the time afresh."""
        self.seconds, self.calls = 0.0, 0

    def release(self) -> None:
        """Let go of everyone."""
        self.switch_off()
        if self._forward is not None:
            _global_forward_hooks_with_kwargs.pop(self._forward.id, None)  # which a handle forgets to take back
        self._by_listener.clear()
        self._tables.clear()
        self._after, self._before = {}, {}

    def _after_forward(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if is_dynamo_compiling():  # first of all, lest the compiler trace further and give up on the model
            return
        calls = self._after.get(id(module))
        if calls is None or _is_tracing() or (CAPTURES.possible and CAPTURES.running()):
            return
        started = perf_counter()
        try:
            for call in calls:
                call(module, args, kwargs, output)
        except Exception:
            self._guard()
        self.calls += 1
        self.seconds += perf_counter() - started

    def _before_forward(self, module: torch.nn.Module, args: Any) -> Any:
        if is_dynamo_compiling():
            return None
        calls = self._before.get(id(module))
        if calls is None or _is_tracing() or (CAPTURES.possible and CAPTURES.running()):
            return None
        started = perf_counter()
        given = None
        try:
            for call in calls:
                replaced = call(module, args if given is None else given)
                given = given if replaced is None else replaced
        except Exception:
            self._guard()
        self.calls += 1
        self.seconds += perf_counter() - started
        return given


leave_out(ForwardHooks._after_forward, ForwardHooks._before_forward)


def _put(handle: RemovableHandle, hook: Callable[..., Any]) -> None:
    """Put a hook back whose handle has taken it off."""
    table = handle.hooks_dict_ref()
    if table is not None:
        table[handle.id] = hook
