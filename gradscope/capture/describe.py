"""What is known of a run besides its numbers, as it becomes known: modules, parameters, optimizers, wiring."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.graph import Graph
from gradscope.capture.losses import read_broadcasts
from gradscope.capture.losses import read_losses
from gradscope.capture.naming import modules_of
from gradscope.capture.naming import names_of
from gradscope.capture.roles import describe_modules
from gradscope.capture.roles import describe_parameters
from gradscope.capture.slots import Slot
from gradscope.capture.strays import Strays
from gradscope.capture.transfer import number_at_hand
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import Origin
from gradscope.records import RunInfo
from gradscope.records import StepQuality
from gradscope.records import Stray
from gradscope.records import Wiring

_MOST_LOSSES = 8


@final
class Description:
    """The run's facts. ``info`` is replaced by a new value when more is known."""

    def __init__(self, info: RunInfo) -> None:
        self.info = info
        self._optimizers: dict[int, OptimizerInfo] = {}
        self._objects: dict[int, weakref.ref[Optimizer]] = {}
        self._strays = Strays()

    @property
    def has_optimizer(self) -> bool:
        """Whether an optimizer that holds parameters of the model has stepped."""
        return any(optimizer.parameters for optimizer in self._optimizers.values())

    def model(self, model: torch.nn.Module) -> None:
        """The model as it is now; what follows its modules stays known where they are still of the same type."""
        parameters = describe_parameters(model)
        first = next(model.parameters(), None)
        device = str(first.device) if first is not None else "cpu"
        known = {(m.path, m.type): m for m in self.info.modules}
        described = tuple(_as_known(m, known.get((m.path, m.type))) for m in describe_modules(model))
        self.info = replace(self.info, modules=described, parameters=parameters, device=device)

    def start_values(self, zero: Mapping[str, bool]) -> None:
        """Whether each of these parameters was all zero when the model was described, which a device had to tell."""
        parameters = tuple(replace(p, zero_at_start=zero.get(p.name, p.zero_at_start)) for p in self.info.parameters)
        self.info = replace(self.info, parameters=parameters)

    def optimizer(self, optimizer: Optimizer, names: tuple[str, ...], *, strangers: int) -> None:
        known = self._optimizers.get(id(optimizer))
        same = known is not None and self._objects[id(optimizer)]() is optimizer  # else a new one has taken its address
        if known is not None and same and known.parameters == names and known.strangers == strangers:
            return
        settings = _settings(optimizer)
        rate = settings.pop("lr", float("nan"))
        # One that holds what an earlier one held was made anew in its place.
        self._optimizers = {key: known for key, known in self._optimizers.items() if known.parameters != names}
        self._objects[id(optimizer)] = weakref.ref(optimizer)
        self._optimizers[id(optimizer)] = OptimizerInfo(type(optimizer).__name__, rate, names, strangers, settings)
        owners = [o for o in self._optimizers.values() if o.parameters]
        self.info = replace(self.info, optimizers=tuple(owners or self._optimizers.values()), by_hand=False)

    def steps_by_hand(self) -> None:
        """The loop moves the weights itself, and says when a step has ended."""
        if not self.info.by_hand:
            self.info = replace(self.info, by_hand=True)

    def losses_add_up(self, add_up: bool) -> None:
        """Whether a step's loss is the sum of those that its backward calls had."""
        self.info = replace(self.info, losses_add_up=add_up)

    def share_process(self) -> None:
        if not self.info.shared_process:
            self.info = replace(self.info, shared_process=True)

    def keep_company(self, ranks: int, note: str | None) -> None:
        """So many ranks' numbers are in the record, and what there is to say of that."""
        notes = self.info.notes if note is None or note in self.info.notes else (*self.info.notes, note)
        self.info = replace(self.info, ranks=ranks, notes=notes)

    def probed(self, sentence: str, found: StepQuality | None) -> None:
        """When the step-quality probe ran, or why it did not, and what it found."""
        probes = self.info.probes if found is None else (*self.info.probes, found)
        if self.info.probe != sentence or found is not None:
            self.info = replace(self.info, probe=sentence, probes=probes)

    def found_origin(self, origin: Origin) -> None:
        """Where the run's first value that is not finite came from."""
        self.info = replace(self.info, origin=origin)

    def graph(
        self,
        graph: Graph,
        model: torch.nn.Module,
        slots: Sequence[Slot],
        *,
        ungraded: Mapping[str, str],
        held: Callable[[], Collection[int]],
        scale_seen: bool = False,
    ) -> bool:
        """Read one loss's graph; whether it reaches any parameter of the model.

        ``ungraded`` has the modules that ran without gradients, each with the one that took what came of them; ``held`` tells
        by ``id`` which tensors any optimizer holds.
        """
        names = names_of(model)
        reached = {names[id(leaf)] for leaf in graph.leaves() if id(leaf) in names}
        if not reached:
            return False
        self._add_wiring(graph, reached, scale_seen=scale_seen)
        self._add_followers(graph, slots)
        self._add_seen(model, slots)
        self._add_cuts(slots, ungraded)
        self._add_strays(self._strays.look(graph, model, slots, held))
        return True

    def _add_wiring(self, graph: Graph, reached: set[str], *, scale_seen: bool) -> None:
        old = self.info.wiring or Wiring()
        order = [parameter.name for parameter in self.info.parameters]
        all_reached = reached.union(old.reached)
        new = Wiring(
            losses=_joined(old.losses, read_losses(graph, scale_seen=scale_seen)),
            broadcasts=tuple(dict.fromkeys((*old.broadcasts, *read_broadcasts(graph))))[:_MOST_LOSSES],
            residual_additions=max(old.residual_additions, graph.residual_additions()),
            norms=max(old.norms, graph.norms()),
            reached=tuple(name for name in order if name in all_reached),
            graphs=min(old.graphs + 1, 3),  # as many as matter: more would change the record at every reading
            cuts=old.cuts,
            strays=old.strays,
        )
        if new != old:
            self.info = replace(self.info, wiring=new)

    def _add_strays(self, strays: tuple[Stray, ...]) -> None:
        wiring = self.info.wiring or Wiring()
        if strays != wiring.strays:
            self.info = replace(self.info, wiring=replace(wiring, strays=strays))

    def _add_followers(self, graph: Graph, slots: Sequence[Slot]) -> None:
        numbers = {slot.node: slot.site.path for slot in slots if slot.node >= 0 and slot.site.call == 0}
        found = {numbers[number]: followers for number, followers in graph.follows(list(numbers)).items()}
        modules = tuple(
            replace(m, activation=found[m.path][0], norm_follows=found[m.path][1]) if m.path in found else m
            for m in self.info.modules
        )
        if modules != self.info.modules:
            self.info = replace(self.info, modules=modules)

    def _add_seen(self, model: torch.nn.Module, slots: Sequence[Slot]) -> None:
        """The type of each module's output, and the fewest values that a batch norm's statistics were taken over."""
        seen = {slot.site.path: slot for slot in slots if slot.site.call == 0 and slot.dtype is not None}
        found = dict(modules_of(model))
        modules = tuple(
            _with_seen(m, seen[m.path], found[m.path]) if m.path in seen and m.path in found else m for m in self.info.modules
        )
        if modules != self.info.modules:
            self.info = replace(self.info, modules=modules)

    def _add_cuts(self, slots: Sequence[Slot], ungraded: Mapping[str, str]) -> None:
        """Where, in execution order, modules that no loss reaches give way to modules that one does."""
        wiring = self.info.wiring or Wiring()
        trainable = {p.name for p in self.info.parameters if p.trainable}
        own = {m.path: [name for name in m.parameters if name in trainable] for m in self.info.modules}
        order = [slot.site.path for slot in slots if slot.site.call == 0 and own.get(slot.site.path)]
        reached = [any(name in wiring.reached for name in own[path]) for path in order]
        pairs = zip(order, reached, order[1:], reached[1:], strict=False)
        cuts = tuple((before, after) for before, first, after, second in pairs if not first and second)
        cuts += tuple({after: (before, after) for before, after in ungraded.items() if own.get(before)}.values())
        if cuts != wiring.cuts:
            self.info = replace(self.info, wiring=replace(wiring, cuts=cuts))
        if any(m.path in ungraded and not m.ungraded for m in self.info.modules):
            modules = tuple(replace(m, ungraded=True) if m.path in ungraded else m for m in self.info.modules)
            self.info = replace(self.info, modules=modules)


def _as_known(module: ModuleInfo, known: ModuleInfo | None) -> ModuleInfo:
    """A module with what forward passes have shown of one of that name and type."""
    if known is None:
        return module
    return replace(
        module,
        activation=known.activation,
        norm_follows=known.norm_follows,
        dtype=known.dtype,
        samples=known.samples,
        ungraded=known.ungraded,
    )


def _with_seen(info: ModuleInfo, slot: Slot, module: torch.nn.Module) -> ModuleInfo:
    dtype = str(slot.dtype).removeprefix("torch.")
    samples = info.samples
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and slot.shape is not None and module.training:
        now = slot.shape.numel() // slot.shape[1]
        samples = now if samples is None else min(samples, now)
    return info if (info.dtype, info.samples) == (dtype, samples) else replace(info, dtype=dtype, samples=samples)


def _joined(known: tuple[LossInfo, ...], found: tuple[LossInfo, ...]) -> tuple[LossInfo, ...]:
    """The losses in the order in which they first came, as they were first seen."""
    first: dict[LossInfo, LossInfo] = {}
    for loss in (*known, *found):
        first.setdefault(replace(loss, reduction=None, baseline=None, input_shape=None, target_shape=None), loss)
    return tuple(first.values())[:_MOST_LOSSES]


def _settings(optimizer: Optimizer) -> dict[str, float]:
    """The settings of the first parameter group that rules look at."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    plain = {k: float(v) for k, v in group.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    betas = group.get("betas")
    if isinstance(betas, tuple | list) and len(betas) == 2 and all(isinstance(beta, float) for beta in betas):
        plain.update(beta1=betas[0], beta2=betas[1])
    rate = group.get("lr")
    if isinstance(rate, torch.Tensor) and (number := number_at_hand(rate)) is not None:
        plain["lr"] = number
    return {k: v for k, v in plain.items() if k in ("lr", "momentum", "dampening", "beta1", "beta2", "eps", "weight_decay")}
