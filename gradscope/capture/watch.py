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
from gradscope.capture.frames import FrameMaker
from gradscope.capture.modules import ModuleProbe
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
        self, model: torch.nn.Module, info: RunInfo, sink: Sink, *, include: str | None, exclude: str | None, guard: Callable[[], None]
    ) -> None:
        self._model = weakref.ref(model)
        self._sink = sink
        self._guard = guard
        self._governor = Governor(info.budget, info.every)
        self._mailbox = Mailbox()
        self._modules = ModuleProbe(model, include, exclude, guard)
        self._parameters: ParameterProbe | None = None
        self._frames = FrameMaker(self._modules, self._mailbox, sink.frame)
        self._pulses = PulseMaker(self._mailbox, self._take_pulse)
        self._description = Description(info)
        self._sampling = False
        self._graphs_read = 0
        self._samples = 0
        self._step = 0
        self._own_seconds = 0.0
        self._last_end = perf_counter()
        self._stepped: list[int] = []  # own optimizers that have stepped since the last finished step
        self._stepping: frozenset[str] = frozenset()  # the parameters that they hold
        self._companions: dict[int, frozenset[int]] = {}  # optimizers that step after this one without a backward between
        # How many tensors each optimizer holds, and which of them are ours.
        self._owned: weakref.WeakKeyDictionary[Optimizer, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()
        self._leader: int | None = None  # the optimizer that ended the last step
        self._told: RunInfo | None = None
        self._strange_steps = 0
        self._manual = False
        self.alarmed = False

    # -- life

    def start(self) -> None:
        self._begin_step(sampled=self._governor.first())
        LOOP.join(self)

    def stop(self) -> None:
        """Take every hook off and hand over what is still on its way. Waits for the device."""
        LOOP.leave(self)
        self._modules.switch_off()
        self.settle()

    def settle(self) -> None:
        """Hand over everything that finished steps have shown. Waits for the device."""
        self._pulses.flush()
        self._mailbox.drain()

    @property
    def info(self) -> RunInfo:
        return self._description.info

    def owns_some_of(self, optimizer: Optimizer) -> bool:
        return bool(self._owned_by(optimizer))

    def spend(self, seconds: float) -> None:
        """Charge the current step with time that gradscope took elsewhere: rules, writing."""
        self._own_seconds += seconds

    # -- what the loop tells

    def before_backward(self, loss: torch.Tensor, *, first: bool) -> None:
        started = perf_counter()
        try:
            if self._stepped and first:
                self._learn_companions()
            parameters = self._parameters_now()
            if first:
                self._pulses.restart()  # what came before another model's step was that model's loss
            if self._sampling and first:
                parameters.take_carried()
                if not self._description.has_optimizer:  # none may come: then the step lies between two backward calls
                    parameters.take_before()
            ours = self._read_graph(loss) if self._reading_graph else True
            self._pulses.backward(loss, ours=ours)
            if self._pulses.backwards >= BACKWARDS_WITHOUT_STEP and not self._manual and not self._description.has_optimizer:
                self._finish(learning_rate=float("nan"))
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def before_step(self, optimizer: Optimizer) -> None:
        started = perf_counter()
        try:
            names = self._owned_by(optimizer)
            if (names or self._strange_steps >= STRANGE_STEPS - 1) and not self._stepped:
                self._take_norm(optimizer)
                if self._sampling:
                    self._parameters_now().take_before()
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def after_step(self, optimizer: Optimizer) -> None:
        started = perf_counter()
        try:
            names = self._owned_by(optimizer)
            if names:
                self._after_own_step(optimizer, names, started)
            else:
                self._after_strange_step(optimizer, started)
        except Exception:
            self._guard()
            self._own_seconds += perf_counter() - started

    def manual_step(self) -> None:
        """The user says that a step has ended, in a loop with no ``torch.optim.Optimizer``."""
        started = perf_counter()
        try:
            parameters = self._parameters_now()
            if self._sampling:
                if self._manual:
                    parameters.take_gradients()
                else:
                    parameters.forget()
            self._manual = True
            self._own_seconds += perf_counter() - started
            self._finish(learning_rate=float("nan"))
        except Exception:
            self._guard()

    def observe_loss(self, loss: float | torch.Tensor) -> None:
        """Take a loss that no ``backward`` showed."""
        self._pulses.observe(loss)

    # -- steps

    def _after_own_step(self, optimizer: Optimizer, names: tuple[str, ...], started: float) -> None:
        self._description.optimizer(optimizer, names, strangers=self._owned[optimizer][0] - len(names))
        if not self._pulses.has_norm:  # the gradients came in a closure, inside the step
            self._take_norm(optimizer)
        late_companion = self._pulses.backwards == 0 and not self._stepped and self._last_of(optimizer)
        self._own_seconds += perf_counter() - started
        if late_companion:
            return
        self._stepped.append(id(optimizer))
        self._stepping |= frozenset(names)
        if self._companions.get(self._stepped[0], frozenset()) <= set(self._stepped):
            self._finish(learning_rate=_learning_rate(optimizer))

    def _take_norm(self, optimizer: Optimizer) -> None:
        if self._sampling or self._governor.wants_norm(self._step):
            started = perf_counter()
            self._pulses.norm(self._parameters_now().gradient_norm(_tensors(optimizer)))
            self._governor.norm_took(perf_counter() - started)

    def _last_of(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer steps right behind the one that ended the last step: then it belongs to that step."""
        leader = self._leader
        if leader is None or leader == id(optimizer):
            return False
        self._companions[leader] = self._companions.get(leader, frozenset()) | {id(optimizer)}
        return True

    def _learn_companions(self) -> None:
        """A companion that was waited for did not come: end the step without it, and wait for it no more."""
        self._companions[self._stepped[0]] = frozenset(self._stepped[1:])
        self._finish(learning_rate=float("nan"))

    def _after_strange_step(self, optimizer: Optimizer, started: float) -> None:
        others = [listener for listener in LOOP.listeners if isinstance(listener, Watch) and listener is not self]
        if any(other.owns_some_of(optimizer) for other in others) or self._description.has_optimizer:
            self._description.share_process()
            if self._sampling and self._modules.gradient_seen:
                self._modules.start_step()  # what ran so far was for the other step
            return
        self._strange_steps += 1
        if self._strange_steps >= STRANGE_STEPS and self._pulses.backwards:
            self._description.optimizer(optimizer, (), strangers=self._owned[optimizer][0])
            self._own_seconds += perf_counter() - started
            self._finish(learning_rate=_learning_rate(optimizer), foreign=True)

    def _finish(self, *, learning_rate: float, foreign: bool = False) -> None:
        """The step is over: send off what it showed, and decide about the next."""
        started = perf_counter()
        self._leader = self._stepped[0] if self._stepped else None
        self._stepped = []
        sampled = self._sampling
        if sampled:
            parameters = self._parameters_now()
            if not parameters.has_gradients:
                parameters.take_gradients()
            parameters.take_after()
            self._frames.make(self._step, parameters, self._stepping or {site.path for site in parameters.sites})
            self._samples += 1
        self._stepping = frozenset()
        self._mailbox.poll()
        now = perf_counter()
        own = self._own_seconds + self._modules.seconds + self._modules.calls * HOOK_SECONDS + (now - started)
        seconds = now - self._last_end
        self._pulses.end(self._step, learning_rate, seconds=seconds, own=own, sampled=sampled, foreign=foreign)
        if self.info is not self._told:
            self._told = self.info
            self._sink.info(self.info)
        self._step += 1
        self._last_end = now
        self._own_seconds = 0.0
        self._begin_step(sampled=self._governor.after(self._step - 1, seconds=seconds, own=own, sampled=sampled))
        self._sink.step_done()
        self._own_seconds += perf_counter() - now

    def _begin_step(self, *, sampled: bool) -> None:
        model = self._model()
        if sampled and model is not None:
            self._modules.start_step()
            self._modules.reading_graph = self._reads_graph_next()
            self._modules.switch_on()
        else:
            self._modules.switch_off()
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

    def _read_graph(self, loss: torch.Tensor) -> bool:
        """Read the graph of a loss; whether it reaches the model at all."""
        model = self._model()
        if model is None or loss.grad_fn is None:
            return True
        reaches = self._description.graph(loss, model, self._modules.slots)
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


