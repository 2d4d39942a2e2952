"""What is done on sampled steps and on no others: hooks on the modules, instruments, samples of the parameters, the probe."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Collection
from time import perf_counter
from typing import final

import torch
from torch.optim.optimizer import Optimizer

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

GRAPHS_DENSE = 3  # sampled steps whose graphs are read from the start, then one in GRAPHS_EVERY
GRAPHS_EVERY = 25
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
        deliver: Callable[[Frame], None],
        guard: Callable[[], None],
        *,
        probe: bool,
    ) -> None:
        self._model = weakref.ref(model)
        self._description = description
        self._hooks = hooks
        self._modules = modules
        self._holdings = holdings
        self._panel = Panel(instruments(model, modules, hooks, guard))
        self._frames = FrameMaker(modules, mailbox, deliver)
        self._samples = 0
        self.probe = Probe(hooks, enabled=probe)
        self.on = False  # whether the step that is being made is sampled

    # -- life

    def begin(self, step: int, *, thorough: bool) -> None:
        """The step to come is sampled; a thorough one also takes what is dear and changes slowly."""
        self.on = True
        self._modules.start_step()
        self._modules.reading_graph = self._samples < GRAPHS_DENSE or self._samples % GRAPHS_EVERY == 0
        self._panel.start_step()
        self._hooks.start_step()
        self._hooks.switch_on()
        self.probe.begin_step(self._model(), step, sampled=True)
        if self._holdings.known is not None:
            self._holdings.known.choose(all_of_them=thorough)

    def leave(self) -> None:
        """The step to come is not sampled: take every hook off."""
        self.on = False
        self._hooks.switch_off()
        self._panel.switch_off()
        self.probe.release()
        self._hooks.start_step()
        if self._holdings.known is not None:
            self._holdings.known.forget()

    def start_afresh(self) -> None:
        """What ran so far in this step was for another model's."""
        if self._modules.gradient_seen:
            self._modules.start_step()

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
        reaches = self._description.graph(graph, model, self._modules.slots, ungraded=self._modules.cuts)
        self._frames.learn({m.path: (m.type, m.activation) for m in self._description.info.modules})
        return reaches

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        self._panel.before_backward(loss, graph)

    def before_step(self, optimizer: Optimizer) -> None:
        self._panel.before_step(optimizer)
        self.probe.before_step(optimizer)

    def take_before(self, *, thorough: bool) -> None:
        """Sample the weights and gradients as the optimizer finds them."""
        parameters = self._holdings.parameters()
        parameters.take_before()
        if thorough:
            parameters.weigh()

    def after_step(self, optimizer: Optimizer) -> None:
        self._panel.after_step(optimizer)

    def make_frame(self, step: int, stepped: Collection[str], pulses: PulseMaker) -> None:
        """Send off what the step showed. ``stepped`` are the parameters whose optimizers made it; none known: all."""
        parameters = self._holdings.parameters()
        if not parameters.has_gradients:
            parameters.take_gradients()
        parameters.take_after()
        stepped = stepped or {site.path for site in parameters.sites}
        scale, seen = pulses.loss_scale, pulses.scale_seen
        self._frames.make(step, parameters, stepped, self._panel, loss_scale=scale, scale_seen=seen)
        self._samples += 1

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
