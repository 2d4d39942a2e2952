"""What a step is surrounded by: forward passes with and without gradients, and the mode that dropout and batch norms ran in."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import final

import numpy as np
import torch
from torch import is_grad_enabled
from torch import nn

from gradscope.capture.graph import Graph
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.records import Array
from gradscope.records import Site

MOST_NORMS = 8  # batch norms in evaluation mode whose running statistics are looked at in one step
REFRESH = 8  # switchings on after which the model's modules are looked through again

_current_graph_task_id = torch._C._current_graph_task_id
_Modules = weakref.ref[nn.Module]


@final
class _Pass:
    """Which modules with a mode, dropout and batch norms, ran in a forward pass."""

    def __init__(self) -> None:
        self.ran = 0
        self.evaluated = 0
        self.norms: dict[int, _Modules] = {}  # batch norms that evaluated, by ``id``

    def add(self, other: _Pass) -> None:
        self.ran += other.ran
        self.evaluated += other.evaluated
        self.norms.update(other.norms)

    def note(self, module: nn.Module, held: _Modules) -> None:
        self.ran += 1
        if not module.training:
            self.evaluated += 1
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.norms[id(module)] = held


@final
class Surroundings(Instrument):
    """Fills the columns of kind ``step`` about forward passes and modes."""

    def __init__(self, model: nn.Module, hooks: ForwardHooks) -> None:
        self._model = weakref.ref(model)
        self._hooks = hooks
        self._modes: dict[int, _Modules] = {}  # the model itself and its modules with a mode
        self._on = False
        self._switchings = 0
        self._forget()

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {}

    def switch_on(self) -> None:
        model = self._model()
        if self._on or model is None:
            return
        self._on = True
        if self._switchings % REFRESH == 0:
            self._modes = {
                id(module): weakref.ref(module) for module in model.modules() if module is model or _has_mode(module)
            }
            self._hooks.listen(self, after=dict.fromkeys(self._modes, self._after_forward), before={}, light=False)
        self._switchings += 1

    def switch_off(self) -> None:
        self._on = False
        self._forget()

    def start_step(self, samples: int) -> None:
        self._forget()

    def _forget(self) -> None:
        self._forwards = 0
        self._idle_training = 0
        self._trained_idly = False  # whether a module in training mode ran without gradients since the last whole pass
        self._now = _Pass()  # what ran since the last whole pass
        self._last: _Pass | None = None  # the last whole pass with gradients, until a backward pass has come
        self._total = _Pass()  # the passes that backward passes went through

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        last, self._last = self._last, None
        if last is None:  # models whose parts are called one by one have no whole passes
            last, self._now = self._now, _Pass()
        self._total.add(last)

    def _after_forward(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        held = self._modes[id(module)]
        if held() is module:
            self._note(module, held)

    def _note(self, module: nn.Module, held: _Modules) -> None:
        whole = module is self._model()
        if _current_graph_task_id() != -1:  # a checkpoint runs it again, or for the first time with gradients
            if not whole and is_grad_enabled():
                self._total.note(module, held)
            return
        if not whole or _has_mode(module):
            if is_grad_enabled():
                self._now.note(module, held)
            else:
                self._trained_idly |= module.training
        if whole:
            self._end_pass()

    def _end_pass(self) -> None:
        if is_grad_enabled():
            self._forwards += 1
            self._last, self._now = self._now, _Pass()
        else:
            self._idle_training += self._trained_idly
        self._trained_idly = False

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        ran = self._total.ran
        values = {
            "step.forwards": self._forwards,
            "step.evaluating": self._total.evaluated / ran if ran else float("nan"),
            "step.idle_training_forwards": self._idle_training,
        }
        means, variances = _statistics(self._total.norms.values())

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            untouched = bool(arrays) and bool(np.any((arrays[0] == 0) & (arrays[1] == 1)))
            found = {**values, "step.untouched_statistics": float(untouched)}
            return {name: np.array([value], dtype=np.float32) for name, value in found.items()}

        if not means:
            return Reading((), columns)
        largest = (torch.stack(torch._foreach_norm(tensors, float("inf"))) for tensors in (means, variances))
        return Reading(tuple(largest), columns)


def _has_mode(module: nn.Module) -> bool:
    """Whether training mode changes what the module does."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _statistics(norms: Iterable[_Modules]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Running means and variances of a few batch norms on one device."""
    found = [
        (module.running_mean.detach(), module.running_var.detach())
        for held in norms
        if isinstance(module := held(), nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
        and not module.running_mean.is_meta
    ]
    here = [pair for pair in found if pair[0].device == found[0][0].device][:MOST_NORMS]
    return [mean for mean, _ in here], [variance for _, variance in here]
