"""One model's steps as the loop shows them: which backward calls and which optimizers make a step, and when it ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from math import nan
from time import perf_counter
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.books import Books
from gradscope.capture.byhand import StepsByHand
from gradscope.capture.ensemble import Ensemble
from gradscope.capture.graph import Graph
from gradscope.capture.graph import reaches
from gradscope.capture.holdings import tensors_of
from gradscope.capture.light import LightSteps
from gradscope.capture.norms import GlobalNorm
from gradscope.capture.parts import Parts
from gradscope.capture.pulses import QuietStep
from gradscope.capture.quiet import QuietSteps
from gradscope.capture.quiet import Stretch
from gradscope.capture.quiet import rate_of
from gradscope.capture.scaling import is_held_back
from gradscope.capture.scaling import unscales_itself
from gradscope.capture.steps import LOOP
from gradscope.capture.strangers import Strangers

BACKWARDS_WITHOUT_STEP = 100  # backward calls after which a loop that never steps an optimizer is taken note of


@final
class Stepping:
    """Hears the loop for one watch. Every method that the loop calls keeps its failures to itself: see ``guard``."""

    def __init__(self, parts: Parts, *, guard: Callable[[], None], tell: Callable[[], None]) -> None:
        self._model = parts.model
        self._governor = parts.governor
        self._mailbox = parts.mailbox
        self._modules = parts.modules
        self._pulses = parts.pulses
        self._description = parts.description
        self._holdings = parts.holdings
        self._sampled = parts.sampled
        self._blackbox = parts.blackbox
        self._sink = parts.sink
        self._guard = guard  # called from an except clause: reports the failure and ends the watching
        self._tell = tell  # what is known of the run, before a frame that it explains
        self._books = Books(self._pulses, self._governor)
        self._norms = GlobalNorm(self._holdings, self._governor, self._blackbox)
        self._light = LightSteps(self._holdings, self._norms, self._sampled, guard)
        self._ensemble = Ensemble()
        self._strangers = Strangers()
        self._by_hand = StepsByHand(self._description, self._holdings, self._sampled, self._pulses, self._take_norm, guard)
        self._quiet: QuietSteps | None = None  # who listens in our place
        self.urgent = False  # whether the step's end is to be on the disk at once
        self._was_plain = False  # whether the last step had one backward call, with no loss scale
        self._attentive = True  # whether this step is sampled, or its gradient norm taken
        self._own_seconds, self._last_end = 0.0, perf_counter()
        self._begun = False  # whether the step has had a backward call,
        self._version: int | None = None  # and of the weights, at the first of them; None where nobody looked
        self._unstepped = 0  # backward calls since the last step, with those whose gradients were thrown away
        self._skips = 0  # rounds since the last step whose gradients a GradScaler let no optimizer use
        self._gradients_late = False  # whether the optimizer's step works out its own gradients, or their scale
        self._rate = nan  # the largest of the optimizers that have made this step
        self._steps_unheard = False  # whether compiled code has made steps
        self._optimizer: Callable[[], Optimizer | None] = lambda: None  # the last that was heard
        self._stopped = False

    @property
    def step(self) -> int:
        """The step that is being made."""
        return self._books.step + (self._quiet.made if self._quiet is not None else 0)

    @property
    def asleep(self) -> bool:
        """Whether someone else listens in our place."""
        return self._quiet is not None

    def start(self, first_step: int) -> None:
        """Begin the first step, which has this number; again before anything was heard, where it turns out to be another."""
        self._books.step = first_step
        self._governor.begin_at(first_step)
        self.begin_step(sampled=self._governor.first())

    def stop(self) -> None:
        """Begin no further sampled step, and let nobody listen in our place."""
        self._stopped = True
        self._by_hand.stop()
        self.rouse()

    def owns_some_of(self, optimizer: Optimizer) -> bool:
        """Whether it holds parameters of the watched model."""
        return bool(self._holdings.names(optimizer))

    # -- what the loop tells

    def before_backward(self, loss: torch.Tensor) -> None:
        started = perf_counter()
        try:
            self._see_backward(loss)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def before_step(self, optimizer: Optimizer) -> None:
        if not self._attentive or is_held_back(optimizer):
            return
        started = perf_counter()
        try:
            if self._holdings.names(optimizer) or self._strangers.are_next_taken_for_ours:
                self._see_step(optimizer)
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def after_step(self, optimizer: Optimizer) -> None:
        if is_held_back(optimizer):
            return
        started = perf_counter()
        try:
            names = self._holdings.names(optimizer)
            ended = self._after_own_step(optimizer, names) if names else self._after_strange_step(optimizer)
            self._own_seconds += perf_counter() - started
            self._rate = max(rate_of(optimizer), self._rate)  # in this order, which passes over NaN
            if ended:
                self._optimizer = weakref.ref(optimizer)
                self._finish(learning_rate=self._rate, foreign=not names)
                self._sleep(optimizer)
        except Exception:
            self._guard()

    def after_compiled_steps(self) -> None:
        """Torch's hooks are not called in compiled steps: of one the time, the loss and the new weights are known."""
        started = perf_counter()
        try:
            known = self._holdings.known
            looked = known is not None and self._version is not None
            if self._begun and (self._version != known.version if looked and known else LOOP.is_single):
                self._steps_unheard = True
                self._own_seconds += perf_counter() - started
                self._finish_unheard()
        except Exception:
            self._guard()

    def after_update(self, scale: torch.Tensor) -> None:
        """A GradScaler's round is over: see ``scaling``."""
        started = perf_counter()
        try:
            alone = LOOP.is_single and not self._description.info.shared_process
            if self._pulses.is_scaled_by(scale) or (alone and self._pulses.loss_scale is not None):  # it may copy its scale
                self._end_round()
        except Exception:
            self._guard()
        self._own_seconds += perf_counter() - started

    def manual_step(self) -> None:
        """The user says that a step has ended, in a loop with no ``torch.optim.Optimizer``."""
        started = perf_counter()
        try:
            self.rouse()
            self._by_hand.end()
            self._own_seconds += perf_counter() - started
            self._finish(learning_rate=nan)
            self._by_hand.begin(thorough=self._governor.thorough)
        except Exception:
            self._guard()

    # -- quiet steps

    def wake(self, steps: list[QuietStep], pending: torch.Tensor | float | None, *, between: bool) -> None:
        """Listen again, and catch up with ``steps`` that were made meanwhile; ``pending`` is the loss of the one under way.

        A sampled step that is under way goes on as it is; ``between`` two steps the next one begins.
        """
        started = perf_counter()
        quiet, self._quiet = self._quiet, None
        try:
            if quiet is not None:
                LOOP.rouse()
            self._catch_up(steps, begin=between or not self._sampled.on)
            if pending is not None:
                self._begun, self._version = True, None
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
            self.begin_step(sampled=sampled_next)
        self._mailbox.poll()
        self._sink.step_done()

    def rouse(self) -> None:
        """Listen again, if someone else does in our place."""
        if self._quiet is not None:
            self._quiet.end()

    def _sleep(self, optimizer: Optimizer) -> None:
        """Let someone else listen to steps that need little, where the loop is as simple as most are."""
        sampled, step = self._sampled.on, self._books.step
        most = min(self._governor.light_steps(step), self._sampled.room) if sampled else self._governor.quiet_steps(step)
        plain = (
            not self._steps_unheard
            and LOOP.is_single
            and not self._description.info.shared_process
            and len(self._description.info.optimizers) == 1
        )
        if most > 1 and plain and not (self._stopped or self.urgent) and self._was_plain:
            norm_in, norm_every = self._governor.norm_in(step), self._governor.norm_every
            stretch = Stretch(step, self._holdings.names(optimizer), sampled, most, norm_in, norm_every, *self._pulses.limits)
            own, self._own_seconds = self._own_seconds, 0.0
            self._quiet = QuietSteps(self, self._light, optimizer, stretch, last_end=self._last_end, own=own)
            LOOP.lull(self._quiet)

    # -- steps

    def _see_backward(self, loss: torch.Tensor) -> None:
        if self._ensemble.playing and self._is_ours(loss, None):
            self._ensemble.give_up()
            self._finish(learning_rate=float("nan"))
        if self._sampled.on and not self._begun:
            self._sampled.follow_changes()
        graph = self._sampled.graph(loss)
        if not self._is_ours(loss, graph):
            return
        first = self._takes_its_place()
        suspicious = self._pulses.is_suspicious(loss)
        self._books.prompt |= suspicious
        if self._sampled.on:
            self._strangers.see(loss)
            self._sampled.before_backward(loss, graph, suspicious=suspicious)
        self._pulses.backward(loss)
        if self._pulses.is_broken and self._pulses.loss_scale is None:  # else its scaler lowers the scale
            self._blackbox.loss(loss, self._books.step)
        if self._sampled.on:
            self._sampled.probe.before_backward(loss, self._pulses.loss_scale, first=first)
        self._unstepped += 1
        self._modules.keep_last |= self._pulses.loss_scale is not None
        if self._unstepped >= BACKWARDS_WITHOUT_STEP and not self._by_hand.told and not self._description.has_optimizer:
            self._finish(learning_rate=float("nan"))

    def _end_round(self) -> None:
        """All optimizers that were to step with the last backward calls have, but for those that a GradScaler held back."""
        if self._ensemble.playing:
            self._finish(learning_rate=self._rate)
        elif self._pulses.backwards:
            self._skips += 1
            self._unstepped = self._skips
            self._begun = False
            self._pulses.restart()
            if self._sampled.on:
                self._sampled.start_again(self._books.step)

    def _takes_its_place(self) -> bool:
        """Whether a loss is the first of the step, or takes the place of those before it, whose gradients were thrown away."""
        parameters = self._holdings.parameters()
        moved = self._begun and self._version is not None and parameters.version != self._version
        unclear = self._strangers.stepped and not parameters.on_host  # it may have been theirs, and cleared with zeros
        first = not self._begun or unclear or self._holdings.cleared
        if moved:  # a line search, or a look at the weights nearby: the step's loss is that which it began with
            self._pulses.repeat()
        elif first:
            self._begun, self._version = True, parameters.version
            self._pulses.restart()
            self._strangers.begin()
            if self._sampled.on:
                self._sampled.take_carried()
                if not (self._description.has_optimizer or self._by_hand.told):  # then it lies between two backward calls
                    self._sampled.take_before(thorough=self._governor.thorough)
        return first

    def _see_step(self, optimizer: Optimizer) -> None:
        follows = self._ensemble.playing
        self._gradients_late = self._pulses.backwards == 0 or unscales_itself(optimizer)
        if not follows:
            self._pulses.norm(None)
        if not self._gradients_late:
            self._take_norm(tensors_of(optimizer))
        if self._sampled.on:
            self._sampled.before_step(optimizer)
            if not follows:
                self._sampled.take_before(thorough=self._governor.thorough)
            elif self._pulses.loss_scale is not None and not self._gradients_late:
                self._sampled.take_more_gradients()  # they had their scale when the first optimizer stepped

    def _after_own_step(self, optimizer: Optimizer, names: tuple[str, ...]) -> bool:
        """Whether the training's step has ended with this optimizer's."""
        if self._attentive:
            self._description.optimizer(optimizer, names, strangers=self._holdings.strangers(optimizer))
        if self._pulses.backwards == 0 and self._ensemble.comes_late(optimizer):
            self._holdings.parameters().forget()  # the last step's frame was made before all of it had happened
            return False
        if self._attentive and self._gradients_late:
            self._take_norm(tensors_of(optimizer))
            if self._sampled.on:
                self._sampled.take_gradients()
        if self._sampled.on:
            self._sampled.after_step(optimizer)
        return self._ensemble.add(optimizer, names)

    def _after_strange_step(self, optimizer: Optimizer) -> bool:
        """Whether a step has ended that the watched model's own optimizer should have made."""
        mingled = self._strangers.add(optimizer) or not self._begun
        if self._description.has_optimizer or any(other.owns_some_of(optimizer) for other in LOOP.listeners):
            self._description.share_process()
            if self._sampled.on and mingled:
                self._sampled.start_afresh()
            return False
        if not self._strangers.are_taken_for_ours() or not self._pulses.backwards:
            return False
        self._description.optimizer(optimizer, (), strangers=self._holdings.strangers(optimizer))
        return True

    def _take_norm(self, tensors: list[torch.Tensor]) -> None:
        if self._sampled.on or self._governor.wants_norm(self._books.step):
            self._pulses.norm(self._norms.of(tensors, self.step, sampled=self._sampled.on))

    def _finish(self, *, learning_rate: float, foreign: bool = False) -> None:
        """The step is over: send off what it showed, and decide about the next."""
        started = perf_counter()
        self._tell()  # before the frame that it explains
        if self._sampled.on:
            self._books.prompt |= self._sampled.end(self._books.step, self._ensemble.parameters)
        self._own_seconds += perf_counter() - started
        sampled_next = self._close(learning_rate, sampled=self._sampled.on, foreign=foreign)
        now = self._last_end
        if self._sampled.on:
            self._books.probed(self._sampled.look_closer(self._books.step - 1, learning_rate))
        self.begin_step(sampled=sampled_next)
        self._mailbox.poll()
        self._sink.step_done()
        if self.urgent:
            self.urgent = False
            self._sink.flush()
        self._own_seconds += perf_counter() - now

    def _close(self, learning_rate: float, *, sampled: bool, foreign: bool = False) -> bool:
        """Enter the step that is over into the books; whether the next one is sampled."""
        self._ensemble.end_step()
        now = perf_counter()
        own = self._own_seconds + self._sampled.seconds + self._by_hand.take_seconds()
        seconds = now - self._last_end
        if self._unstepped >= BACKWARDS_WITHOUT_STEP and not self._description.has_optimizer:
            self._pulses.backwards = self._unstepped
        self._was_plain = self._pulses.is_plain
        sampled_next = self._books.close(learning_rate, seconds=seconds, own=own, sampled=sampled, foreign=foreign)
        self._last_end = now
        self._own_seconds = 0.0
        return sampled_next

    def _finish_unheard(self) -> None:
        """A step is over, and the forward pass of the next one as well, which began with nobody listening.

        So where the next one is to be sampled, the one after it is: that begins as it should.
        """
        stepped = self._optimizer()
        rate = float("nan") if stepped is None else rate_of(stepped)
        if self._sampled.is_late:
            self._close(rate, sampled=False)
            self._sampled.is_in_time()
            self._begun, self._unstepped, self._skips = False, 0, 0
        else:
            self._finish(learning_rate=rate)
            self._sampled.comes_late()

    def begin_step(self, *, sampled: bool) -> None:
        """A step begins, sampled or not."""
        sampled = sampled and not self._stopped and self._model() is not None
        self._attentive = sampled or self._governor.wants_norm(self._books.step) or not self._description.has_optimizer
        self._begun = False
        self._unstepped = self._skips = 0
        self._rate = nan
        if sampled:
            self._sampled.begin(self._books.step, thorough=self._governor.thorough, light=self._governor.light)
        elif self._sampled.on:
            self._sampled.leave()

    # -- what is known

    def _is_ours(self, loss: torch.Tensor, graph: Graph | None) -> bool:
        """Whether a loss reaches the model; where nothing else trains in the loop, asked only where the graph is read."""
        alone = LOOP.is_single and not self._description.info.shared_process
        if alone and not self._holdings.parameters().tensors:  # there is nothing to reach
            return True
        if graph is not None:
            return self._sampled.read(graph)
        return alone or loss.grad_fn is None or reaches(loss.grad_fn, self._holdings.parameters().ids)
