"""The watch over one model: hears the loop, runs the probes on sampled steps, and hands frames and pulses on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Sequence
from time import perf_counter
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.blackbox import BlackBox
from gradscope.capture.books import Books
from gradscope.capture.describe import Description
from gradscope.capture.ensemble import Ensemble
from gradscope.capture.graph import Graph
from gradscope.capture.graph import reaches
from gradscope.capture.holdings import Holdings
from gradscope.capture.holdings import tensors_of
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.light import LightSteps
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.norms import GlobalNorm
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import QuietStep
from gradscope.capture.quiet import QuietSteps
from gradscope.capture.quiet import Stretch
from gradscope.capture.quiet import rate_of
from gradscope.capture.sampled import SampledSteps
from gradscope.capture.sampled import places_for
from gradscope.capture.sampled import rows_of
from gradscope.capture.schedule import Governor
from gradscope.capture.sink import Sink
from gradscope.capture.steps import LOOP
from gradscope.capture.transfer import Mailbox
from gradscope.records import Frame
from gradscope.records import Origin
from gradscope.records import RunInfo

BACKWARDS_WITHOUT_STEP = 100  # backward calls after which a loop that never steps an optimizer is taken note of
STRANGE_STEPS = 3  # steps of an optimizer without our parameters, before the first with them, that are taken for ours


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
        probe: bool = True,
    ) -> None:
        self._model = weakref.ref(model)
        self._sink = sink
        self._guard = guard
        self._governor = Governor(info.budget, info.every, rows=rows_of(model))
        self._mailbox = Mailbox()
        self._hooks = ForwardHooks(guard)
        places = places_for(model) if info.every is not None else 1
        self._modules = ModuleProbe(model, include, exclude, self._hooks, guard, places=places)
        self._pulses = PulseMaker(self._mailbox, self._take_pulse)
        self._description = Description(info)
        self._holdings = Holdings(model, self._modules, self._description, self._mailbox, places=places)
        self._sampled = SampledSteps(
            model, self._description, self._hooks, self._modules, self._holdings, self._mailbox, self._pulses,
            self._take_frames, guard, probe=probe, places=places,
        )  # fmt: skip
        self._blackbox = BlackBox(model, self._modules, self._put_down)
        self._books = Books(self._pulses, self._governor)
        self._norms = GlobalNorm(self._holdings, self._governor, self._blackbox)
        self._light = LightSteps(self._holdings, self._norms, self._sampled, guard)
        self._quiet: QuietSteps | None = None  # who listens in our place
        self._was_plain = False  # whether the last step had one backward call, with no loss scale
        self._urgent = False  # whether the step's end is to be on the disk at once
        self._attentive = True  # whether this step is sampled, or its gradient norm taken
        self._own_seconds = 0.0
        self._last_end = perf_counter()
        self._ensemble = Ensemble()
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
        self._rouse()
        LOOP.leave(self)
        self._sampled.leave()
        try:
            self.settle()
        finally:
            self._holdings.release()  # the model's memory is the user's again
            self._modules.release()
            self._hooks.release()

    def settle(self) -> None:
        """Hand over everything that finished steps have shown. Waits for the device."""
        self._rouse()
        self._sampled.send(amid=True)
        self._pulses.flush()
        self._mailbox.drain()
        self._tell()

    @property
    def step(self) -> int:
        """The step that is being made."""
        return self._books.step + (self._quiet.made if self._quiet is not None else 0)

    @property
    def info(self) -> RunInfo:
        return self._description.info

    def owns_some_of(self, optimizer: Optimizer) -> bool:
        return bool(self._holdings.names(optimizer))

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
            if self._holdings.names(optimizer) or self._strange_steps >= STRANGE_STEPS - 1:
                self._see_step(optimizer)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def after_step(self, optimizer: Optimizer) -> None:
        started = perf_counter()
        try:
            names = self._holdings.names(optimizer)
            ended = self._after_own_step(optimizer, names) if names else self._after_strange_step(optimizer)
            self._own_seconds += perf_counter() - started
            if ended:
                self._finish(learning_rate=rate_of(optimizer), foreign=not names)
                self._sleep(optimizer)
        except Exception:
            self._guard()

    def manual_step(self) -> None:
        """The user says that a step has ended, in a loop with no ``torch.optim.Optimizer``."""
        started = perf_counter()
        try:
            self._rouse()
            parameters = self._holdings.parameters()
            self._take_norm(parameters.tensors)
            if self._sampled.on:
                self._sampled.take_gradients()
            self._manual = True
            self._own_seconds += perf_counter() - started
            self._finish(learning_rate=float("nan"))
        except Exception:
            self._guard()

    def observe_loss(self, loss: float | torch.Tensor) -> None:
        """Take a loss that no ``backward`` showed."""
        self._rouse()
        self._pulses.observe(loss)

    # -- quiet steps

    def wake(self, steps: list[QuietStep], pending: torch.Tensor | float | None, *, between: bool) -> None:
        """Listen again, and catch up with ``steps`` that were made meanwhile; ``pending`` is the loss of the one under way.

        A sampled step that is under way goes on as it is; ``between`` two steps the next one begins.
        """
        started = perf_counter()
        quiet, self._quiet = self._quiet, None
        try:
            if quiet is not None:
                LOOP.rouse(stepped=pending is None)
            self._catch_up(steps, begin=between or not self._sampled.on)
            if pending is not None:
                self._begun = True
                self._pulses.resume(pending)
            elif steps and quiet is not None and (optimizer := quiet.optimizer) is not None:
                self._sleep(optimizer)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def _catch_up(self, steps: list[QuietStep], *, begin: bool) -> None:
        if not steps:
            return
        sampled_next = self._books.close_quiet(steps, sampled=self._sampled.on)
        self._last_end += sum(quiet.seconds for quiet in steps)
        if begin:
            self._sampled.send_if_full()
            self._begin_step(sampled=sampled_next)
        self._mailbox.poll()
        self._sink.step_done()

    def _rouse(self) -> None:
        if self._quiet is not None:
            self._quiet.end()

    def _sleep(self, optimizer: Optimizer) -> None:
        """Let someone else listen to steps that need little, where the loop is as simple as most are."""
        sampled, step = self._sampled.on, self._books.step
        most = min(self._governor.light_steps(step), self._sampled.room) if sampled else self._governor.quiet_steps(step)
        plain = LOOP.has_one_listener and not self.info.shared_process and len(self.info.optimizers) == 1
        if most > 1 and plain and not (self._stopped or self._urgent) and self._was_plain:
            norm_in, norm_every = self._governor.norm_in(step), self._governor.norm_every
            stretch = Stretch(step, self._holdings.names(optimizer), sampled, most, norm_in, norm_every, *self._pulses.limits)
            own, self._own_seconds = self._own_seconds, 0.0
            self._quiet = QuietSteps(self, self._light, optimizer, stretch, last_end=self._last_end, own=own)
            LOOP.lull(self._quiet)

    # -- steps

    def _see_backward(self, loss: torch.Tensor, *, first: bool) -> None:
        if self._ensemble.playing and first:
            self._ensemble.give_up()
            self._finish(learning_rate=float("nan"))
        if self._sampled.on and not self._begun:
            self._sampled.follow_changes()
        parameters = self._holdings.parameters()
        first = first or not self._begun or parameters.cleared  # with its gradients, an earlier loss was thrown away
        self._begun = True
        if first:
            self._pulses.restart()  # what came before another model's step was that model's loss
        if self._sampled.on and first:
            self._sampled.take_carried()
            if not self._description.has_optimizer:  # none may come: then the step lies between two backward calls
                self._sampled.take_before(thorough=self._governor.thorough)
        suspicious = self._pulses.is_suspicious(loss)
        self._books.prompt |= suspicious
        graph = self._sampled.graph(loss)
        ours = self._is_ours(loss, graph)
        if self._sampled.on and ours:
            self._sampled.before_backward(loss, graph, suspicious=suspicious)
        self._pulses.backward(loss, ours=ours)
        if ours and self._pulses.is_broken and self._pulses.loss_scale is None:  # else its scaler lowers the scale
            self._blackbox.loss(loss, self._books.step)
        if self._sampled.on and ours:
            self._sampled.probe.before_backward(loss, self._pulses.loss_scale, first=first)
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
            self._take_norm(tensors_of(optimizer))
        if self._sampled.on:
            self._sampled.before_step(optimizer)
            if not follows:
                self._sampled.take_before(thorough=self._governor.thorough)

    def _after_own_step(self, optimizer: Optimizer, names: tuple[str, ...]) -> bool:
        """Whether the training's step has ended with this optimizer's."""
        if self._attentive:
            self._description.optimizer(optimizer, names, strangers=self._holdings.strangers(optimizer))
        if self._pulses.backwards == 0 and self._ensemble.comes_late(optimizer):
            self._holdings.parameters().forget()  # the last step's frame was made before all of it had happened
            return False
        if self._attentive and self._in_closure:
            self._take_norm(tensors_of(optimizer))
            if self._sampled.on:
                self._sampled.take_gradients()
        if self._sampled.on:
            self._sampled.after_step(optimizer)
        return self._ensemble.add(optimizer, names)

    def _after_strange_step(self, optimizer: Optimizer) -> bool:
        """Whether a step has ended that the watched model's own optimizer should have made."""
        others = [listener for listener in LOOP.listeners if isinstance(listener, Watch) and listener is not self]
        if self._description.has_optimizer or any(other.owns_some_of(optimizer) for other in others):
            self._description.share_process()
            if self._sampled.on:
                self._sampled.start_afresh()
            return False
        self._strange_steps += 1
        if self._strange_steps < STRANGE_STEPS or not self._pulses.backwards:
            return False
        self._description.optimizer(optimizer, (), strangers=self._holdings.strangers(optimizer))
        return True

    def _take_norm(self, tensors: list[torch.Tensor]) -> None:
        if self._sampled.on or self._governor.wants_norm(self._books.step):
            self._pulses.norm(self._norms.of(tensors, self.step, sampled=self._sampled.on))

    def _put_down(self, origin: Origin) -> None:
        """Put an origin on the disk with all that came before, as the training may die of it; the step follows at its end."""
        self._description.found_origin(origin)
        self._urgent = True
        self._sink.flush()

    def _tell(self) -> None:
        if self.info is not self._told:
            self._told = self.info
            self._sink.info(self.info)

    def _finish(self, *, learning_rate: float, foreign: bool = False) -> None:
        """The step is over: send off what it showed, and decide about the next."""
        started = perf_counter()
        self._tell()  # before the frame that it explains
        if self._sampled.on:
            self._books.prompt |= self._sampled.end(self._books.step, self._ensemble.parameters)
        self._ensemble.end_step()
        now = perf_counter()
        own = self._own_seconds + self._sampled.seconds + (now - started)
        seconds = now - self._last_end
        if self._unstepped >= BACKWARDS_WITHOUT_STEP and not self._description.has_optimizer:
            self._pulses.backwards = self._unstepped
        self._was_plain = self._pulses.is_plain
        sampled_next = self._books.close(learning_rate, seconds=seconds, own=own, sampled=self._sampled.on, foreign=foreign)
        self._last_end = now
        self._own_seconds = 0.0
        if self._sampled.on:
            self._books.probed(self._sampled.look_closer(self._books.step - 1, learning_rate))
        self._begin_step(sampled=sampled_next)
        self._mailbox.poll()
        self._sink.step_done()
        if self._urgent:
            self._urgent = False
            self._sink.flush()
        self._own_seconds += perf_counter() - now

    def _begin_step(self, *, sampled: bool) -> None:
        sampled = sampled and not self._stopped and self._model() is not None
        self._attentive = sampled or self._governor.wants_norm(self._books.step) or not self._description.has_optimizer
        self._begun = False
        self._unstepped = 0
        if sampled:
            self._sampled.begin(self._books.step, thorough=self._governor.thorough, light=self._governor.light)
        elif self._sampled.on:
            self._sampled.leave()

    # -- what is known

    def _is_ours(self, loss: torch.Tensor, graph: Graph | None) -> bool:
        """Whether a loss reaches the model; where nothing else trains in the loop, asked only where the graph is read."""
        if graph is not None:
            return self._sampled.read(graph)
        alone = LOOP.has_one_listener and not self.info.shared_process
        return alone or loss.grad_fn is None or reaches(loss.grad_fn, self._holdings.parameters().ids)

    def _take_frames(self, frames: Sequence[Frame]) -> None:
        self._sampled.probe.frame(frames[-1], self.info)
        for frame in frames:
            self._blackbox.frame(frame)
            self._sink.frame(frame)

    def _take_pulse(self, row: tuple[float, ...], *, alarming: bool) -> None:
        if alarming:
            self._governor.alarm()
            self.alarmed = True
        self._sampled.probe.pulse(row, alarming=alarming)
        self._sink.pulse(row)
        origin = self._blackbox.pulse(row, self.info)
        if origin is not None:  # not put down from here: this may be a flush
            self._description.found_origin(origin)
            self._urgent = True
