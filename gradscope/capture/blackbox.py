"""The black box: where the run's first value that is not finite came from, found while the step that has it is still there."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import numpy as np
import torch

from gradscope.capture.graph import Graph
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.naming import names_of
from gradscope.capture.naming import parameters_of
from gradscope.capture.nonfinite import in_graph
from gradscope.capture.nonfinite import is_finite
from gradscope.capture.nonfinite import is_wrong
from gradscope.capture.nonfinite import largest_finite
from gradscope.capture.nonfinite import short_dtype
from gradscope.capture.shards import local_of
from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import Origin
from gradscope.records import RunInfo

_WATCHED = ("weight", "input", "activation", "activation_gradient", "weight_gradient")
_STEP, _LOSS, _NORM, _BACKWARDS = map(PULSE_FIELDS.index, ("step", "loss", "gradient_norm", "backwards"))


@final
class BlackBox:
    """Keeps the origin once it is found. On the CPU it is looked for at every step, elsewhere where a frame shows it.

    ``found`` is called with the origin at once where the training is still within the step that it is of.
    """

    def __init__(self, model: torch.nn.Module, modules: ModuleProbe, found: Callable[[Origin], None]) -> None:
        self._model = weakref.ref(model)
        self._modules = modules
        self._found = found
        self._origin: Origin | None = None
        self._lost = False  # whether a loss broke on a sampled step that does not show where: what breaks later came of it
        self._waiting: deque[Frame] = deque()  # for the pulses of their steps
        self._often: dict[str, np.ndarray] = {}  # kind -> sites that were not finite in frames before, and did no harm

    def loss(self, loss: torch.Tensor, step: int) -> None:
        """A backward pass begins from a loss that is not finite: its graph is still there."""
        model = self._model()
        if self._origin is not None or model is None:
            return
        found = _in_parameters(model, step)
        if found is None and loss.grad_fn is not None:
            names = {key: name.rpartition(".")[0] for key, name in names_of(model).items()}
            nodes = {slot.node: slot.site.path for slot in self._modules.slots if slot.node >= 0}
            with torch.no_grad():
                found = _within(in_graph(Graph(loss), names, nodes, step), self._modules.given())
        self._found(self._keep(found or Origin(step, "loss", dtype=short_dtype(loss.dtype))))

    def gradients(self, step: int) -> None:
        """The optimizer is about to step with a gradient that is not finite."""
        model = self._model()
        if self._origin is None and model is not None:
            found = _in_gradients(model, step, [slot.site.path for slot in self._modules.slots])
            if found is not None:
                self._found(self._keep(self._by_input(found)))

    def _by_input(self, found: Origin) -> Origin:
        """What broke the way back is an input that is not finite, where there is one: gates saturate, and hide it forward."""
        given, harmless = self._modules.given(), self._often.get("input")
        often = harmless is not None and bool(harmless.any())
        wrong = any(not is_finite(t) if len(given) == 1 else is_wrong(t) for t in given)
        return Origin(found.step, "input", dtype=found.dtype) if wrong and not often else found

    def frame(self, frame: Frame) -> None:
        """A frame has reached the host, before the pulse of its step."""
        self._waiting.append(frame)

    def pulse(self, row: Sequence[float], info: RunInfo) -> Origin | None:
        """A pulse has reached the host; the origin where it is new, or known better than before."""
        loss, norm = row[_LOSS], row[_NORM]
        while self._waiting and self._waiting[0].step < row[_STEP]:
            self._pass(self._waiting.popleft())
        if math.isfinite(loss) and not math.isinf(norm):  # nearly always
            return None
        broken = (row[_BACKWARDS] > 0 and not math.isfinite(loss)) or math.isinf(norm)
        if not broken or not self._waiting or self._waiting[0].step != row[_STEP]:
            return None
        return self._look(self._waiting[0], info, loss_is_finite=math.isfinite(loss))

    def _pass(self, frame: Frame) -> None:
        """Nothing broke at this step: what was not finite in it did no harm."""
        for kind in _WATCHED if self._origin is None else ():
            bad = frame.columns[f"{kind}.nonfinite"] > 0
            before = self._often.get(kind)
            self._often[kind] = bad | before if before is not None and len(before) == len(bad) else bad

    def _look(self, frame: Frame, info: RunInfo, *, loss_is_finite: bool) -> Origin | None:
        if self._origin is None and not self._lost:
            found = _in_frame(frame, self._often, loss_is_finite=loss_is_finite)
            self._lost = found is None and not loss_is_finite
            return self._keep(found) if found is not None else None
        if self._origin is not None and self._origin.step == frame.step and self._origin.place in ("between", "loss"):
            return self._placed(self._origin, frame, info)
        return None

    def _placed(self, origin: Origin, frame: Frame, info: RunInfo) -> Origin | None:
        """The origin in the module without parameters whose output was the first that is not finite: a softmax, say."""
        fresh = _fresh(frame, "activation", self._often)
        place = int(np.argmax(fresh)) if fresh.any() else None
        path = frame.schema.modules[place].path if place is not None else ""
        leaf = any(m.path == path and not m.parameters and m.role in ("activation", "other") for m in info.modules)
        if place is None or not leaf:
            return None
        return self._keep(replace(origin, place="forward", module=path, before=_previous(frame, place)))

    def _keep(self, origin: Origin) -> Origin:
        self._origin = origin
        return origin


def _within(found: Origin | None, given: Sequence[torch.Tensor]) -> Origin | None:
    """What a module took is no input of the model's where the model was given finite numbers: it made the others itself."""
    if found is None or found.place != "input" or not given or not all(is_finite(tensor) for tensor in given):
        return found
    return replace(found, place="between", before=None, node=None, largest=largest_finite(given))


def _in_parameters(model: torch.nn.Module, step: int) -> Origin | None:
    for name, parameter in parameters_of(model):
        if not is_finite(parameter):
            module = name.rpartition(".")[0]
            return Origin(
                step,
                "parameter",
                module,
                dtype=short_dtype(parameter.dtype),
                largest=largest_finite([local_of(parameter).detach()]),
            )
    return None


def _in_gradients(model: torch.nn.Module, step: int, order: Sequence[str]) -> Origin | None:
    """The parameter nearest to the loss whose gradient is not finite: the way back comes by it first."""
    places = {path: place for place, path in enumerate(order)}
    held = [(name.rpartition(".")[0], p.grad) for name, p in parameters_of(model) if p.grad is not None]
    held.sort(key=lambda pair: places.get(pair[0], -1))
    bad = [place for place, (_, gradient) in enumerate(held) if not is_finite(gradient)]
    if not bad:
        return None  # the squares overflowed, and not the gradient
    module, gradient = held[bad[-1]]
    before = next((name for name, _ in held[bad[-1] + 1 :] if name != module), None)
    return Origin(
        step,
        "backward",
        module,
        before=before,
        dtype=short_dtype(gradient.dtype),
        largest=largest_finite([local_of(gradient).detach()]),
    )


def _in_frame(frame: Frame, often: Mapping[str, np.ndarray], *, loss_is_finite: bool) -> Origin | None:
    """The first that is not finite, in the order in which it was worked out."""
    parameters = [site.path.rpartition(".")[0] for site in frame.schema.parameters]
    fresh = {kind: _fresh(frame, kind, often) for kind in _WATCHED}
    if fresh["weight"].any():
        return Origin(frame.step, "parameter", parameters[int(np.argmax(fresh["weight"]))])
    if fresh["input"].any():
        return Origin(frame.step, "input")
    if fresh["activation"].any():
        place = int(np.argmax(fresh["activation"]))
        return Origin(frame.step, "forward", frame.schema.modules[place].path, before=_previous(frame, place))
    if not loss_is_finite:
        seen = np.isfinite(frame.columns["activation.nonfinite"]).any()  # else it may be any layer, or what went in
        return Origin(frame.step, "loss", before=_previous(frame, len(frame.schema.modules))) if seen else None
    if fresh["weight_gradient"].any():
        place = int(np.flatnonzero(fresh["weight_gradient"])[-1])
        return Origin(frame.step, "backward", parameters[place], before=next(iter(parameters[place + 1 :]), None))
    return None


def _fresh(frame: Frame, kind: str, often: Mapping[str, np.ndarray]) -> np.ndarray:
    values: Array = frame.columns[f"{kind}.nonfinite"]
    bad = values > 0
    before = often.get(kind)
    return bad & ~before if before is not None and len(before) == len(bad) else bad


def _previous(frame: Frame, place: int) -> str | None:
    return frame.schema.modules[place - 1].path if place else None
