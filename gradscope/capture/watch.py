"""The watch over one model: hears the loop, runs the probes on sampled steps, and hands frames and pulses on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Protocol
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.describe import Description
from gradscope.capture.ensemble import Ensemble
from gradscope.capture.frames import FrameMaker
from gradscope.capture.graph import Graph
from gradscope.capture.graph import reaches
from gradscope.capture.instruments import instruments
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.panel import Panel
from gradscope.capture.parameters import ParameterProbe
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.schedule import Governor
from gradscope.capture.steps import LOOP
from gradscope.capture.transfer import Mailbox
from gradscope.records import Frame
from gradscope.records import RunInfo

GRAPHS_DENSE = 3  # sampled steps whose graphs are read from the start, then one in GRAPHS_EVERY
GRAPHS_EVERY = 25
BACKWARDS_WITHOUT_STEP = 100  # backward calls after which a loop that never steps an optimizer is taken note of
STRANGE_STEPS = 3  # steps of an optimizer without our parameters, before the first with them, that are taken for ours
HOOK_SECONDS = 1.5e-6  # what torch takes to call one hook, which the hook itself cannot see


class Sink(Protocol):
    """Who takes what the watch sees."""

    def frame(self, frame: Frame) -> None:
        """A sampled step's numbers have arrived."""

    def pulse(self, row: tuple[float, ...]) -> None:
        """A step's cheap scalars have arrived, in the order of PULSE_FIELDS."""

    def info(self, info: RunInfo) -> None:
        """More is known of the run."""

    def step_done(self) -> None:
        """A step has ended; what it showed may still be on its way."""


@final
class Watch:
    """Watches one model's training. Every method that the loop calls keeps its failures to itself: see ``guard``."""

    def __init__(
        self,
        model: torch.nn.Module,
        info: RunInfo,
        sink: Sink,
        *,
        include: str | None,
        exclude: str | None,
        guard: Callable[[], None],
    ) -> None:
        self._model = weakref.ref(model)
        self._sink = sink
        self._guard = guard
        self._governor = Governor(info.budget, info.every)
        self._mailbox = Mailbox()
        self._modules = ModuleProbe(model, include, exclude, guard)
        self._parameters: ParameterProbe | None = None
        self._panel = Panel(instruments(model))
        self._frames = FrameMaker(self._modules, self._mailbox, sink.frame)
        self._pulses = PulseMaker(self._mailbox, self._take_pulse)
        self._description = Description(info)
        self._sampling = False
        self._attentive = True  # whether this step is sampled, or its gradient norm taken
        self._samples = 0
        self._step = 0
        self._own_seconds = 0.0
        self._last_end = perf_counter()
        self._ensemble = Ensemble()
        # How many tensors each optimizer holds, and which of them are ours.
        self._owned: weakref.WeakKeyDictionary[Optimizer, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()
        self._told: RunInfo | None = None
        self._strange_steps = 0
        self._manual = False
        self._begun = False  # whether the step has had a backward call
        self._unstepped = 0  # backward calls since the last step, with those whose gradients were thrown away
        self._in_closure = False  # whether the optimizer's step works out its own gradients
        self._stopped = False
        self.alarmed = False

    # -- life

    def start(self) -> None:
        self._begin_step(sampled=self._governor.first())
        LOOP.join(self)

    def stop(self) -> None:
        """Take every hook off and hand over what is still on its way. Waits for the device."""
        self._stopped = True
        LOOP.leave(self)
        self._modules.switch_off()
        self._panel.switch_off()
        try:
            self.settle()
        finally:
            self._parameters = None  # the model's memory is the user's again
            self._modules.release()

    def settle(self) -> None:
        """Hand over everything that finished steps have shown. Waits for the device."""
        self._pulses.flush()
        self._mailbox.drain()

    @property
    def step(self) -> int:
        """The step that is being made."""
        return self._step

    @property
    def info(self) -> RunInfo:
        return self._description.info

    def owns_some_of(self, optimizer: Optimizer) -> bool:
        return bool(self._owned_by(optimizer))

    # -- what the loop tells

    def before_backward(self, loss: torch.Tensor, *, first: bool) -> None:
        started = perf_counter()
        try:
            self._see_backward(loss, first=first)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def before_step(self, optimizer: Optimizer) -> None:
        if not self._attentive:
            return
        started = perf_counter()
        try:
            if self._owned_by(optimizer) or self._strange_steps >= STRANGE_STEPS - 1:
                self._see_step(optimizer)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def after_step(self, optimizer: Optimizer) -> None:
        started = perf_counter()
        try:
            names = self._owned_by(optimizer)
            ended = self._after_own_step(optimizer, names) if names else self._after_strange_step(optimizer)
            self._own_seconds += perf_counter() - started
            if ended:
                self._finish(learning_rate=_learning_rate(optimizer), foreign=not names)
        except Exception:
            self._guard()

    def manual_step(self) -> None:
        """The user says that a step has ended, in a loop with no ``torch.optim.Optimizer``."""
        started = perf_counter()
        try:
            parameters = self._parameters_now()
            self._take_norm(parameters.tensors)
            if self._sampling:
                parameters.take_gradients()
            self._manual = True
            self._own_seconds += perf_counter() - started
            self._finish(learning_rate=float("nan"))
        except Exception:
            self._guard()

    def observe_loss(self, loss: float | torch.Tensor) -> None:
        """Take a loss that no ``backward`` showed."""
        self._pulses.observe(loss)

    # -- steps

    def _see_backward(self, loss: torch.Tensor, *, first: bool) -> None:
        if self._ensemble.playing and first:
            self._ensemble.give_up()
            self._finish(learning_rate=float("nan"))
        if self._sampling and not self._begun:
            self._follow_changes()
        parameters = self._parameters_now()
        first = first or not self._begun or parameters.cleared  # with its gradients, an earlier loss was thrown away
        self._begun = True
        if first:
            self._pulses.restart()  # what came before another model's step was that model's loss
        if self._sampling and first:
            parameters.take_carried()
            if not self._description.has_optimizer:  # none may come: then the step lies between two backward calls
                parameters.take_before()
        graph = Graph(loss) if self._reading_graph and loss.grad_fn is not None else None
        ours = self._is_ours(loss, graph)
        if self._sampling and ours:
            self._panel.before_backward(loss, graph)
        self._pulses.backward(loss, ours=ours)
        self._unstepped += ours
        self._modules.keep_last |= self._pulses.loss_scale is not None
        if self._unstepped >= BACKWARDS_WITHOUT_STEP and not self._manual and not self._description.has_optimizer:
            self._finish(learning_rate=float("nan"))

    def _see_step(self, optimizer: Optimizer) -> None:
        follows = self._ensemble.playing
        self._in_closure = self._pulses.backwards == 0
        if not follows:
            self._pulses.norm(None)
        if not self._in_closure:
            self._take_norm(_tensors(optimizer))
        if self._sampling:
            self._panel.before_step(optimizer)
            if not follows:
                self._parameters_now().take_before()

    def _after_own_step(self, optimizer: Optimizer, names: tuple[str, ...]) -> bool:
        """Whether the training's step has ended with this optimizer's."""
        if self._attentive:
            self._description.optimizer(optimizer, names, strangers=self._owned[optimizer][0] - len(names))
        if self._pulses.backwards == 0 and self._ensemble.comes_late(optimizer):
            self._parameters_now().forget()  # the last step's frame was made before all of it had happened
            return False
        if self._attentive and self._in_closure:
            self._take_norm(_tensors(optimizer))
            if self._sampling:
                self._parameters_now().take_gradients()
        if self._sampling:
            self._panel.after_step(optimizer)
        return self._ensemble.add(optimizer, names)

    def _after_strange_step(self, optimizer: Optimizer) -> bool:
        """Whether a step has ended that the watched model's own optimizer should have made."""
        others = [listener for listener in LOOP.listeners if isinstance(listener, Watch) and listener is not self]
        if self._description.has_optimizer or any(other.owns_some_of(optimizer) for other in others):
            self._description.share_process()
            if self._sampling and self._modules.gradient_seen:
                self._modules.start_step()  # what ran so far was for the other step
            return False
        self._strange_steps += 1
        if self._strange_steps < STRANGE_STEPS or not self._pulses.backwards:
            return False
        self._description.optimizer(optimizer, (), strangers=self._owned[optimizer][0])
        return True

    def _take_norm(self, tensors: list[torch.Tensor]) -> None:
        if self._sampling or self._governor.wants_norm(self._step):
            started = perf_counter()
            self._pulses.norm(self._parameters_now().gradient_norm(tensors))
            self._governor.norm_took(perf_counter() - started)

    def _finish(self, *, learning_rate: float, foreign: bool = False) -> None:
        """The step is over: send off what it showed, and decide about the next."""
        started = perf_counter()
        if self.info is not self._told:  # before the frame that it explains
            self._told = self.info
            self._sink.info(self.info)
        if self._sampling:
            self._make_frame()
        self._ensemble.end_step()
        now = perf_counter()
        own = self._own_seconds + self._modules.seconds + self._modules.calls * HOOK_SECONDS + (now - started)
        seconds = now - self._last_end
        if self._unstepped >= BACKWARDS_WITHOUT_STEP and not self._description.has_optimizer:
            self._pulses.backwards = self._unstepped
        self._pulses.end(self._step, learning_rate, seconds=seconds, own=own, sampled=self._sampling, foreign=foreign)
        sampled_next = self._governor.after(self._step, seconds=seconds, own=own, sampled=self._sampling)
        self._step += 1
        self._last_end = now
        self._own_seconds = 0.0
        self._begin_step(sampled=sampled_next)
        self._mailbox.poll()
        self._sink.step_done()
        self._own_seconds += perf_counter() - now

    def _make_frame(self) -> None:
        parameters = self._parameters_now()
        if not parameters.has_gradients:
            parameters.take_gradients()
        parameters.take_after()
        stepped = self._ensemble.parameters or {site.path for site in parameters.sites}
        self._frames.make(self._step, parameters, stepped, self._panel, loss_scale=self._pulses.loss_scale)
        self._samples += 1

    def _begin_step(self, *, sampled: bool) -> None:
        sampled = sampled and not self._stopped and self._model() is not None
        self._attentive = sampled or self._governor.wants_norm(self._step) or not self._description.has_optimizer
        self._begun = False
        self._unstepped = 0
        if not sampled and not self._sampling:
            return
        if sampled:
            self._modules.start_step()
            self._modules.reading_graph = self._reads_graph_next()
            self._modules.switch_on()
            self._panel.start_step()
        else:
            self._modules.switch_off()
            self._panel.switch_off()
            self._modules.seconds, self._modules.calls = 0.0, 0
        if not sampled and self._parameters is not None:
            self._parameters.forget()
        self._sampling = sampled

    # -- what is known

    def _parameters_now(self) -> ParameterProbe:
        model = self._model()
        if self._parameters is None and model is not None:  # not at attach: parameters may be lazy, or still move to a device
            self._modules.refresh(model)
            self._parameters = ParameterProbe(dict(model.named_parameters()))
            self._description.model(model)
        if self._parameters is None:
            raise RuntimeError("the watched model was deleted within a step")
        return self._parameters

    def _follow_changes(self) -> None:
        """Start afresh with parameters that were added, replaced, resized or moved since the last sampled step."""
        model = self._model()
        if self._parameters is not None and model is not None and not self._parameters.describes(model):
            self._parameters = None
            self._owned.clear()

    def _owned_by(self, optimizer: Optimizer) -> tuple[str, ...]:
        tensors = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._owned.get(optimizer)
        if known is None or known[0] != tensors:
            known = self._owned[optimizer] = (tensors, self._parameters_now().names(_tensors(optimizer)))
        return known[1]

    @property
    def _reading_graph(self) -> bool:
        return self._sampling and self._modules.reading_graph

    def _reads_graph_next(self) -> bool:
        return self._samples < GRAPHS_DENSE or self._samples % GRAPHS_EVERY == 0

    def _is_ours(self, loss: torch.Tensor, graph: Graph | None) -> bool:
        """Whether a loss reaches the model; where nothing else trains in the loop, asked only where the graph is read."""
        if graph is not None:
            return self._read(graph)
        alone = LOOP.has_one_listener and not self.info.shared_process
        return alone or loss.grad_fn is None or reaches(loss.grad_fn, self._parameters_now().ids)

    def _read(self, graph: Graph) -> bool:
        """Read the graph of a loss; whether it reaches the model at all."""
        model = self._model()
        if model is None:
            return True
        reaches = self._description.graph(graph, model, self._modules.slots)
        self._frames.learn({m.path: (m.type, m.activation) for m in self.info.modules})
        return reaches

    def _take_pulse(self, row: tuple[float, ...], *, alarming: bool) -> None:
        if alarming:
            self._governor.alarm()
            self.alarmed = True
        self._sink.pulse(row)


def _tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _learning_rate(optimizer: Optimizer) -> float:
    """The largest of the groups'; NaN where one is a tensor on an accelerator, which reading would wait for."""
    rates = [group.get("lr", float("nan")) for group in optimizer.param_groups]
    if any(isinstance(rate, torch.Tensor) and rate.device.type != "cpu" for rate in rates):
        return float("nan")
    return max((float(rate) for rate in rates), default=float("nan"))
