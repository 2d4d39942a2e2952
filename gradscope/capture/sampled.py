"""What is done on sampled steps and on no others: hooks on the modules, instruments, samples of the parameters, the probe."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from time import perf_counter
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.compiled import CompiledSteps
from gradscope.capture.describe import Description
from gradscope.capture.frames import FrameMaker
from gradscope.capture.graph import Graph
from gradscope.capture.holdings import Holdings
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.instruments.panel import Panel
from gradscope.capture.instruments.standard import instruments
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.probe.probe import Probe
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.transfer import Mailbox
from gradscope.records import Frame

GRAPHS_EARLY = (0, 1, 2, 6, 12)  # sampled steps whose graphs are read, then one in GRAPHS_EVERY
GRAPHS_EVERY = 25
MOST_HELD = 16  # sampled steps that are held back and reduced together,
MOST_SECONDS = 0.5  # and for how long: what a crash may cost
MOST_ROWS = 2048  # of 4 KiB, that the places of the steps that are held back may take in all
HOOK_SECONDS = 1.5e-6  # what torch takes to call one hook, which the hook itself cannot see


@final
class SampledSteps:
    """Takes a sampled step from its forward pass to its frame. Between ``begin`` and ``leave`` the hooks are on."""

    def __init__(
        self,
        model: torch.nn.Module,
        description: Description,
        hooks: ForwardHooks,
        modules: ModuleProbe,
        holdings: Holdings,
        mailbox: Mailbox,
        pulses: PulseMaker,
        deliver: Callable[[Sequence[Frame]], None],
        guard: Callable[[], None],
        *,
        probe: bool,
        places: int,
    ) -> None:
        self._model = weakref.ref(model)
        self._description = description
        self._hooks = hooks
        self._modules = modules
        self._holdings = holdings
        self._pulses = pulses
        self._panel = Panel(instruments(model, modules, hooks, pulses, guard))
        self._frames = FrameMaker(modules, mailbox, deliver)
        self._places = places  # steps that the arenas have room for
        self._samples = 0
        self._graph_at = 0  # samples after which a graph is read
        self._held_since = 0.0  # on perf_counter's clock
        self._light = False  # whether this step takes little
        self._read = False  # whether the instruments are read at this step
        self._compiled = CompiledSteps(model, self._hear, self._fall_silent, guard)
        self.probe = Probe(hooks, enabled=probe)
        self.on = False  # whether the step that is being made is sampled
        self.is_late = False  # whether it has begun without anyone listening, and the next one is sampled in its place

    # -- life

    def begin(self, step: int, *, thorough: bool, light: bool) -> None:
        """The step to come is sampled; a thorough one also takes what is dear and changes slowly, a light one hooks alone."""
        self.on = True
        self._light = light
        self._modules.start_step(self._frames.held)
        self._modules.reading_graph = self._is_graph_due()
        self._hooks.start_step()
        self._read = self.is_late = False
        self._compiled.begin()
        self.probe.begin_step(self._model(), step, sampled=True)
        if self._holdings.known is not None:
            self._holdings.known.start_step(all_of_them=thorough)

    def _hear(self) -> None:
        """The modules' calls can be heard from now on."""
        if not (self._light or self._read):
            self._read = True
            self._panel.start_step(self._samples)
        self._hooks.switch_on(light=self._light)

    def _fall_silent(self) -> None:
        """Hooks and wrappers are not to be there for what comes now, until the step is over."""
        self._read = False
        self._hooks.switch_off()
        self._panel.switch_off()

    def comes_late(self) -> None:
        """The step began before it was known to: what listens is there for the next one, and this one is passed over.

        What is compiled may still be at work on this step, so what it would meet is not there yet.
        """
        if self.on:
            self.is_late = True
            self._read = False
            self._panel.switch_off()

    def is_in_time(self) -> None:
        """The step that was awaited has run its forward pass."""
        self.is_late = False
        if self._hooks.on:
            self._hear()

    def _is_graph_due(self) -> bool:
        if self._light or self._samples < self._graph_at:
            return False
        later = (self._samples // GRAPHS_EVERY + 1) * GRAPHS_EVERY
        self._graph_at = next((early for early in GRAPHS_EARLY if early > self._samples), later)
        return True

    def leave(self) -> None:
        """The step to come is not sampled: take every hook off."""
        self.on = self.is_late = False
        self._fall_silent()
        self._compiled.end()
        self.probe.release()
        self._hooks.start_step()
        if self._holdings.known is not None:
            self._holdings.known.forget()

    def stop(self) -> None:
        """Leave for good."""
        self.leave()
        self._compiled.stop()

    def start_afresh(self) -> None:
        """What ran so far in this step was for another model's."""
        if self._modules.gradient_seen:
            self._modules.start_step(self._frames.held)

    def start_again(self, step: int) -> None:
        """What ran so far in this step came to nothing: no optimizer was allowed to use its gradients."""
        self._modules.start_step(self._frames.held)
        if self._read:
            self._panel.start_step(self._samples)
        self.probe.begin_step(self._model(), step, sampled=True)

    def follow_changes(self) -> None:
        """Start afresh with parameters that were added, replaced, resized or moved since the last step that looked for them."""
        if self._holdings.have_changed(thorough=not self._light):
            self.send(amid=True)
            self._holdings.start_afresh()

    @property
    def seconds(self) -> float:
        """What hooks have taken of this step."""
        return self._hooks.seconds + self._hooks.calls * HOOK_SECONDS

    # -- in the order of a step

    def graph(self, loss: torch.Tensor) -> Graph | None:
        """The graph under a loss, on the steps that can afford to read it in full."""
        return Graph(loss) if self.on and self._modules.reading_graph and loss.grad_fn is not None else None

    def read(self, graph: Graph) -> bool:
        """Learn from the graph of a loss; whether it reaches the model at all."""
        model = self._model()
        if model is None:
            return True
        self._compiled.read(graph, self._holdings.parameters().ids)
        self._modules.unsupported.read(graph, model, self._modules.slots)
        reaches = self._description.graph(
            graph, model, self._modules.slots, ungraded=self._modules.cuts, held=self._holdings.held,
            scale_seen=self._pulses.scale_seen,
        )  # fmt: skip
        self._frames.learn({m.path: (m.type, m.activation) for m in self._description.info.modules})
        return reaches

    def before_backward(self, loss: torch.Tensor, graph: Graph | None, *, suspicious: bool) -> None:
        """The instruments look at a ``suspicious`` loss in any case."""
        if self._light and suspicious:
            self._light = False
            if self._hooks.on:
                self._hear()  # those that listen to the forward pass have missed it
        if self._read:
            self._panel.before_backward(loss, graph)

    def before_step(self, optimizer: Optimizer) -> None:
        if self._read:
            self._panel.before_step(optimizer)
        self.probe.before_step(optimizer, self._description.info)

    def take_carried(self) -> None:
        """Before the first backward: look at gradients that are still there."""
        if not self._light:
            self._holdings.parameters().take_carried()

    def take_before(self, *, thorough: bool) -> None:
        """Sample the weights and gradients as the optimizer finds them."""
        self.take_weights(thorough=thorough)
        self.take_gradients()

    def take_before_light(self) -> None:
        """The same at a light step in a row of such."""
        parameters = self._holdings.parameters()
        parameters.find_before()
        parameters.take_norms()

    def take_weights(self, *, thorough: bool) -> None:
        """Sample the weights as they are before what moves them; a thorough step takes their exact norms too."""
        self._holdings.parameters().take_before()
        if thorough:
            self._holdings.parameters().weigh()

    def take_gradients(self) -> None:
        """Take the gradients as they are now: their norms, and samples where the step is not a light one."""
        parameters = self._holdings.parameters()
        parameters.take_norms()
        if not self._light:
            parameters.take_gradients()

    def take_more_gradients(self) -> None:
        """Another optimizer is about to step: take its gradients as they are now, and leave the others as they were taken."""
        parameters = self._holdings.parameters()
        parameters.take_more_norms()
        if not self._light:
            parameters.take_gradients()

    def after_step(self, optimizer: Optimizer) -> None:
        if self._read:
            self._panel.after_step(optimizer)

    def end(self, step: int, stepped: Collection[str]) -> bool:
        """The step is over; whether what it showed was sent off, and not held back until a few more have ended.

        ``stepped`` are the parameters whose optimizers made it; none known: all.
        """
        parameters = self._holdings.parameters()
        if not parameters.has_gradients:
            self.take_gradients()
        parameters.take_after()
        parameters.end_step(stepped or {site.path for site in parameters.sites})
        self._modules.unsupported.tell()
        if not self._frames.held:
            self._held_since = perf_counter()
        self._frames.hold(step, loss_scale=self._pulses.loss_scale, scale_seen=self._pulses.scale_seen)
        self._samples += 1
        has_room = self._frames.held < self._places and perf_counter() - self._held_since < MOST_SECONDS
        if self._light and has_room:
            return False
        self._frames.send(parameters, self._panel if self._read else None, amid=False)
        return True

    @property
    def room(self) -> int:
        """How many light steps can be held back before a full one; 0 where the one that begins is not light, or is probed."""
        return self._places - 1 - self._frames.held if self._light and self.probe.is_idle else 0

    def end_light(self, step: int, stepped: Collection[str]) -> float:
        """A light step is over, and is held back; the next one begins, a light one. The seconds that hooks took of it."""
        seconds = self.seconds
        parameters = self._holdings.parameters()
        parameters.take_after()
        parameters.end_step(stepped)
        if not self._frames.held:
            self._held_since = perf_counter()
        self._frames.hold(step, loss_scale=None, scale_seen=False)
        self._samples += 1
        self._modules.start_step(self._frames.held)
        self._hooks.start_step()
        parameters.start_step(all_of_them=False)
        return seconds

    def send_if_full(self) -> None:
        """Send off what is held back where there is no room for another step, or it was held for long."""
        if self._frames.held >= self._places or (self._frames.held and perf_counter() - self._held_since > MOST_SECONDS):
            self.send(amid=False)

    def send(self, *, amid: bool) -> None:
        """Send off what steps showed that are held back; ``amid`` a sampled step that is being made."""
        if self._frames.held:
            self._frames.send(self._holdings.parameters(), None, amid=amid and self.on)

    def look_closer(self, step: int, learning_rate: float) -> float:
        """Let the step-quality probe look at the step that has ended; the seconds that it took."""
        if not self.probe.holds:
            return 0.0
        started = perf_counter()
        found = None
        if self.probe.wants(step, self._description.info):  # no hook of ours is on while it replays
            self._hooks.switch_off()
            self._panel.switch_off()
            found = self.probe.measure(step, learning_rate, self._description.info)
        self._description.probed(self.probe.sentence, found)
        return perf_counter() - started


def places_for(model: torch.nn.Module) -> int:
    """How many sampled steps of a model are held back at most: fewer the more rows each has."""
    return max(1, min(MOST_HELD, MOST_ROWS // rows_of(model)))


def rows_of(model: torch.nn.Module) -> int:
    """How many rows a sampled step has at most, about: one a module and its gradient, and five a parameter."""
    return 2 * sum(1 for _ in model.modules()) + 5 * sum(1 for _ in model.parameters())
