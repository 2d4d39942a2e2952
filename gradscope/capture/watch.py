"""The watch over one model: what it is made of, its beginning and end, and what it hands on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Sequence
from typing import final

import torch

from gradscope.capture.blackbox import BlackBox
from gradscope.capture.describe import Description
from gradscope.capture.holdings import Holdings
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.parts import Parts
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.ranks.gathering import Gathering
from gradscope.capture.sampled import SampledSteps
from gradscope.capture.sampled import places_for
from gradscope.capture.sampled import rows_of
from gradscope.capture.scaling import SCALERS
from gradscope.capture.schedule import Governor
from gradscope.capture.sink import Sink
from gradscope.capture.stepping import Stepping
from gradscope.capture.steps import LOOP
from gradscope.capture.transfer import Mailbox
from gradscope.records import Frame
from gradscope.records import Origin
from gradscope.records import RunInfo


@final
class Watch:
    """Watches one model's training: puts together what it takes, and hands on what that sees."""

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
        ranks: Gathering | None = None,
    ) -> None:
        self._model = weakref.ref(model)
        self._sink: Sink = sink if ranks is None else ranks
        self._ranks = ranks  # who stands between us and the sink where other processes may train the model too
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
        parts = Parts(
            self._model, self._governor, self._mailbox, self._modules, self._pulses, self._description, self._holdings,
            self._sampled, self._blackbox, self._sink,
        )  # fmt: skip
        self._stepping = Stepping(parts, guard=guard, tell=self._tell)
        self._told: RunInfo | None = None
        self.alarmed = False

    # -- life

    def start(self) -> None:
        if self._ranks is not None:
            try:
                self._ranks.begin(self, self._model, self._governor)
                self._listen_for_wrapper(self._ranks)
            except Exception:
                self._guard()
                return
        self._stepping.start(0)
        self._modules.unsupported.attached(self._model())
        LOOP.join(self._stepping)
        SCALERS.join(self._stepping)

    def _listen_for_wrapper(self, ranks: Gathering) -> None:
        """One that was put around the model after it was given to us shows when it calls the model."""
        key = [id(self._model())] if not ranks.is_settled else []
        self._hooks.listen(ranks, after=dict.fromkeys(key, ranks.called), before={}, light=True)

    def fetch(self) -> None:
        """Bring what finished steps have shown to the host, and hand it on. Waits for the device."""
        self._pulses.flush()
        self._mailbox.drain()

    def keep_company(self, ranks: int, note: str | None) -> None:
        """It is known whose numbers are in the record."""
        self._description.keep_company(ranks, note)
        if self._ranks is not None:
            self._listen_for_wrapper(self._ranks)

    def follow(self, *, first_step: int, losses_add_up: bool) -> None:
        """Count as a trainer does, see ``Scope.follow``; before the first step."""
        self._pulses.losses_add_up = losses_add_up
        self._description.losses_add_up(losses_add_up)
        self._stepping.start(first_step)
        self._tell()

    def stop(self) -> None:
        """Take every hook off and hand over what is still on its way. Waits for the device."""
        self._stepping.stop()
        LOOP.tell_of_compiled_steps()
        LOOP.leave(self._stepping)
        SCALERS.leave(self._stepping)
        self._sampled.stop()
        try:
            self.settle()
        finally:
            self._holdings.release()  # the model's memory is the user's again
            self._modules.release()
            self._hooks.release()

    def settle(self) -> None:
        """Hand over everything that finished steps have shown. Waits for the device."""
        self._stepping.rouse()
        LOOP.tell_of_compiled_steps()
        self._sampled.send(amid=True)
        self._pulses.flush()
        self._mailbox.drain()
        self._tell()

    @property
    def step(self) -> int:
        """The step that is being made."""
        return self._stepping.step

    @property
    def asleep(self) -> bool:
        """Whether the loop is heard by someone who touches as little as may be; see ``quiet``."""
        return self._stepping.asleep

    @property
    def info(self) -> RunInfo:
        return self._description.info

    def watches(self, model: torch.nn.Module) -> bool:
        return self._model() is model

    # -- what the user tells

    def manual_step(self) -> None:
        """A step has ended, in a loop with no ``torch.optim.Optimizer``."""
        self._stepping.manual_step()

    def observe_loss(self, loss: float | torch.Tensor) -> None:
        """Take a loss that no ``backward`` showed."""
        self._stepping.rouse()
        self._pulses.observe(loss)

    # -- what is handed on

    def _put_down(self, origin: Origin) -> None:
        """Put an origin on the disk with all that came before, as the training may die of it; the step follows at its end."""
        self._description.found_origin(origin)
        self._stepping.urgent = True
        self._sink.flush()

    def _tell(self) -> None:
        if self.info is not self._told:
            self._told = self.info
            self._sink.info(self.info)

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
            self._stepping.urgent = True
