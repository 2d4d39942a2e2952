"""The parameter probe: exact norms, and samples before and after the optimizer that show the true update."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Container
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple
from typing import final

import numpy as np
import torch

from gradscope.capture.gathered import stand_ins
from gradscope.capture.parameter_norms import NONE
from gradscope.capture.parameter_norms import Norms
from gradscope.capture.parameter_norms import Parts
from gradscope.capture.parameter_norms import norms_of
from gradscope.capture.parameter_norms import norms_of_gradients
from gradscope.capture.parameter_samples import Samples
from gradscope.capture.parameter_tables import Masks
from gradscope.capture.sampling import VECTOR_SAMPLES
from gradscope.capture.sampling import samples_for
from gradscope.capture.shards import is_spread
from gradscope.capture.shards import local_of
from gradscope.capture.transfer import to_device
from gradscope.capture.transfer import together
from gradscope.capture.turns import Turns
from gradscope.records import Array
from gradscope.records import Site
from gradscope.trends import Mask

MARKS = 16  # parameters whose versions are followed


class _HeldStep(NamedTuple):
    """What is kept of a sampled step until it is handed on, beside its samples. Made at every sampled step."""

    follows: bool  # the step before it was sampled too
    with_gradient: Mask  # [parameters]
    stepped: Mask  # [parameters]
    gradient_norms: torch.Tensor  # float32 [parameters with a gradient]
    weight_norms: torch.Tensor | None  # float32 [parameters]; of the last step that is held at most
    carried: torch.Tensor | None  # float32 [parameters], see ``_carried``; of the last step that is held at most
    gradients: bool  # whether they were sampled; in the last step that is held at most


@final
class ParameterProbe:
    """Watches the parameters of a model through the optimizer's steps."""

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], names: Mapping[int, str] | None = None, *, places: int = 1
    ) -> None:
        """``names`` are the parameters' by ``id``, with those of the leaves that stand for them in graphs."""
        self._turns = Turns(places)
        alike: dict[tuple[torch.device, bool], dict[str, torch.nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if _can_be_tracked(parameter):
                alike.setdefault((local_of(parameter).device, parameter.dim() > 1), {})[name] = parameter
        groups = {
            (device, matrices): Samples(
                device, self._turns, members, samples_for(len(parameters)) if matrices else VECTOR_SAMPLES
            )
            for (device, matrices), members in alike.items()
        }
        self._groups = tuple(groups.values())
        self._vectors = tuple(samples for (_, matrices), samples in groups.items() if not matrices)
        self._all_of_them = True
        self._chosen = self._groups  # what this step takes
        grouped = {t.name: place for place, t in enumerate(t for samples in self._groups for t in samples.tracked)}
        order = [name for name in parameters if name in grouped]
        self._order = np.array([grouped[name] for name in order], dtype=np.int64)  # from place among the groups' rows to site
        by_name = {t.name: t for samples in self._groups for t in samples.tracked}
        self._tracked = [by_name[name] for name in order]
        self._parameters = [t.parameter for t in self._tracked]
        self._ids = tuple(id(p) for p in self._parameters)
        self._smallest_first = sorted(self._parameters, key=torch.Tensor.numel)  # of most the first has a gradient that tells
        learning = [p for p in self._parameters if p.requires_grad and not p.is_inference()]
        self._marks = learning[:: max(1, len(learning) // MARKS)]  # a few stand for all
        self._home = next(
            (t.device for t in self._tracked if t.device.type != "cpu"), torch.device("cpu")
        )  # of all norms together
        self._by_id = dict(zip(self._ids, self._tracked, strict=True))
        self._every_name, self._all = frozenset(order), np.ones(len(order), dtype=bool)
        self._names = names if names is not None else {id(parameter): name for name, parameter in parameters.items()}
        self._is_spread = any(map(is_spread, self._parameters))
        self._parts = Parts.of(self._parameters, self._home) if self._is_spread else None
        self.sites = tuple(Site(t.name) for t in self._tracked)
        self._addresses: list[int] = []  # of the parameters, as they were described last
        self._weight_norms: torch.Tensor | None = None
        self._at_hand = NONE  # norms of gradients since the last global norm
        self._norms = NONE  # of the step's gradients
        self._last_norms: torch.Tensor | None = None  # float32 [parameters], of the sampled step before this one
        self._carried_norms: torch.Tensor | None = None  # the same as the step's first backward found them, where it was looked
        self._gradients_taken = False
        self._remembers = False  # the step before this one was sampled,
        self._left = -1  # and left the weights at this version
        self._moved_outside = False  # whether weights were seen to change between two steps
        self._held: list[_HeldStep] = []

    def describes(self, model: torch.nn.Module) -> bool:
        """Whether these are the model's parameters as they are now: none added, replaced, resized or on another device."""
        held = [p for module in model.modules() for p in module._parameters.values() if p is not None]
        if whole := stand_ins(model):
            held = [whole.get(id(p), p) for p in held]
        now = {id(p): p for p in held if _can_be_tracked(p)}
        known = self._by_id
        return now.keys() == known.keys() and all(t.describes(now[key]) for key, t in known.items())

    def names(self, parameters: Sequence[torch.Tensor]) -> tuple[str, ...]:
        """Which of these tensors are watched parameters."""
        return tuple(self._names[id(p)] for p in parameters if id(p) in self._names)

    def gradient_norm(self, parameters: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Exact global norm of the gradients of these parameters, a scalar on one of their devices; None without any.

        The norms of the single gradients are kept for ``take_norms``, which has to follow before any gradient changes.
        """
        found = self._at_hand = norms_of_gradients(parameters)
        return torch.linalg.vector_norm(found.together) if found.ids else None

    def forget_norms(self) -> None:
        """Let go of the norms of single gradients: this step is not sampled."""
        self._at_hand = NONE

    # -- one sampled step

    def start_step(self, *, all_of_them: bool) -> None:
        """A sampled step begins. It samples all parameters, or the matrices alone, which hold nearly all there is to see."""
        if all_of_them != self._all_of_them:
            self._all_of_them = all_of_them
            alone = len(self._vectors) == len(self._groups)
            for samples in self._vectors:
                samples.taking = all_of_them or alone
            self._chosen = tuple([samples for samples in self._groups if samples.taking])
        self._turns.to(len(self._held))
        self._norms, self._weight_norms = NONE, None
        self._carried_norms, self._gradients_taken = None, False

    @property
    def fits(self) -> bool:
        """Whether the offsets of every watched parameter still hold: none resized or on another device."""
        addresses = [p.data_ptr() for p in self._here()]
        if addresses == self._addresses:  # the rule, and asked at every sampled step
            return True
        self._addresses = addresses
        return all(t.describes(t.parameter) for t in self._tracked)

    def take_carried(self) -> None:
        """Before the step's first backward: the norms of gradients that are still there."""
        self._at_hand = NONE
        self._carried_norms = self._spread(norms_of_gradients(self._parameters))

    def weigh(self) -> None:
        """Before the optimizer's step, now and then: the exact norms of the weights. Reads all of the model's memory."""
        norms = together(norms_of([p.detach() for p in self._here()]))
        self._weight_norms = norms if self._parts is None else norms * self._parts.scales

    def _here(self) -> Sequence[torch.Tensor]:
        """What lies on this rank of the watched parameters."""
        return [local_of(p) for p in self._parameters] if self._is_spread else self._parameters

    def take_before(self) -> None:
        """Before the optimizer's step: sample the weights."""
        for samples in self._chosen:
            samples.take_weights(samples.before)

    def find_before(self) -> None:
        """The same in a row of light steps: where nothing has written to the weights since the last step's sample, and nothing
        was ever seen to between two steps, they are as that step left them, and are read once. A write by way of ``.data``
        shows at the next sample that is not a light one.
        """
        if self._remembers and not self._moved_outside and self.version == self._left:
            for samples in self._chosen:
                samples.find_before(len(self._held))
        else:
            self.take_before()

    def learn(self, columns: Mapping[str, Array]) -> None:
        """What samples have shown, once it is on the host."""
        self._moved_outside |= bool((columns["update.outside_change"] > 0).any())

    def take_norms(self) -> None:
        """Take the gradients' norms as they are now; again after a step that worked them out in a closure."""
        known, self._at_hand = self._at_hand, NONE
        if known.ids == self._ids:  # the rule
            self._norms = known
            return
        by_id = dict(zip(known.ids, known.norms, strict=True))
        rest = norms_of_gradients([p for p in self._parameters if id(p) not in by_id])
        by_id.update(zip(rest.ids, rest.norms, strict=True))
        self._norms = self._in_order(by_id)

    def take_more_norms(self) -> None:
        """Take the norms of the gradients that the last global norm was of; the others stay as they were taken."""
        known, self._at_hand = self._at_hand, NONE
        by_id = dict(zip(self._norms.ids, self._norms.norms, strict=True))
        by_id.update((key, norm) for key, norm in zip(known.ids, known.norms, strict=True) if key in self._by_id)
        self._norms = self._in_order(by_id)

    def _in_order(self, by_id: Mapping[int, torch.Tensor]) -> Norms:
        """Norms of the watched parameters that have one, in the order of these."""
        ids = tuple(key for key in self._ids if key in by_id)
        norms = tuple(by_id[key] for key in ids)
        return Norms(ids, norms, together(norms))

    def take_gradients(self) -> None:
        """Sample the gradients as they are now."""
        self._gradients_taken = True
        self._turns.gradient.to(0)
        for samples in self._chosen:
            samples.take_gradients()

    @property
    def ids(self) -> Container[int]:
        """The watched parameters by ``id``."""
        return self._names

    @property
    def tensors(self) -> list[torch.Tensor]:
        return list(self._parameters)

    @property
    def cleared(self) -> bool:
        """Whether no parameter holds a gradient, but zeros at most; what lies on an accelerator is not looked at."""
        return all(p.grad is None or _is_known_zero(p.grad) for p in self._smallest_first)

    @property
    def some_cleared(self) -> bool:
        """The same of any of the smallest parameters: a loop may clear the gradients of those alone that it moves."""
        return any(p.grad is None or _is_known_zero(p.grad) for p in self._smallest_first[:MARKS] if p.requires_grad)

    @property
    def on_host(self) -> bool:
        """Whether gradients can be looked at without waiting."""
        return self._home.type == "cpu"

    @property
    def version(self) -> int:
        """Another number once weights were written to."""
        return sum(p._version for p in self._marks)

    @property
    def has_gradients(self) -> bool:
        return bool(self._norms.ids)

    def take_after(self) -> None:
        """After the optimizer's step: sample the weights again."""
        for samples in self._chosen:
            samples.take_weights(samples.after)
        self._left = self.version

    def end_step(self, stepped: Collection[str]) -> None:
        """The sampled step is over. ``stepped`` are the parameters whose optimizers made it: only theirs is the update, and the
        carried gradient.
        """
        for samples in self._groups:
            samples.end_step(len(self._held))
        norms = self._spread(self._norms)
        with_gradient = np.isin(self._ids, self._norms.ids) if self._lacks_some(self._norms) else self._all
        step = _HeldStep(
            self._remembers, with_gradient, self._mask(stepped), self._norms.together, self._weight_norms, self._carried(norms),
            self._gradients_taken,
        )  # fmt: skip
        self._held.append(step)
        self._remembers = True
        self._last_norms, self._norms, self._weight_norms = norms, NONE, None

    def _carried(self, norms: torch.Tensor) -> torch.Tensor | None:
        """Whether each gradient was still there, unchanged, when the step began: 1, 0, or NaN where this or the last step had
        none. Float32 [parameters]; None where it was not looked. ``norms`` are those that the step ended with.
        """
        found, last = self._carried_norms, self._last_norms
        if found is None or last is None or not self._remembers:
            return None
        left = ((found == last) & (found > 0)).float()
        return left.where(~(norms + last).isnan(), float("nan"))

    def _spread(self, norms: Norms) -> torch.Tensor:
        """Norms of gradients as float32 [parameters] on one device, whatever is there, NaN where there is none."""
        found = to_device(norms.together, self._home)
        if not self._lacks_some(norms):
            return found
        there = torch.from_numpy(np.flatnonzero(np.isin(self._ids, norms.ids)))
        spread = torch.full((len(self._ids),), float("nan"), dtype=torch.float32, device=self._home)
        return spread.index_copy_(0, to_device(there, self._home), found)

    def _lacks_some(self, norms: Norms) -> bool:
        """Whether some of the watched parameters, of which these norms are, have none."""
        return len(norms.ids) < len(self._ids)

    def _mask(self, names: Collection[str]) -> Mask:
        """Which parameters have one of these names."""
        if len(names) == len(self._every_name) and self._every_name.issuperset(names):  # the rule
            return self._all
        return np.array([t.name in names for t in self._tracked], dtype=bool)

    def forget(self) -> None:
        """The step that has ended does not count as the one before the next sampled step."""
        self._remembers = False

    # -- the steps that are held

    def tables(self) -> list[torch.Tensor]:
        """All that they showed as tensors on their devices, for ``parameter_tables.columns`` once they are on the host."""
        last = self._held[-1]
        of_last = [values if values is not None else together(()) for values in (last.weight_norms, last.carried)]
        weighed = last.weight_norms is not None
        groups = [samples.tables(weighed=weighed, gradients=last.gradients) for samples in self._groups]
        return [*of_last, *(step.gradient_norms for step in self._held), *(table for tables in groups for table in tables)]

    def masks(self) -> Masks:
        """What of it was there."""
        follows = np.array([step.follows for step in self._held], dtype=bool)
        last = self._held[-1]
        return Masks(
            with_gradient=np.stack([step.with_gradient for step in self._held]),
            stepped=np.stack([step.stepped for step in self._held]),
            groups=tuple(samples.masks(follows, gradients=last.gradients) for samples in self._groups),
            order=self._order,
            here=self._all if self._parts is None else self._parts.here,
        )

    def let_go(self, *, amid: bool) -> None:
        """They were handed on; ``amid`` a step, which goes on."""
        for samples in self._groups:
            samples.let_go(len(self._held), amid=amid)
        self._turns.let_go(len(self._held), amid=amid)
        self._held = []


def _can_be_tracked(parameter: torch.nn.Parameter) -> bool:
    return parameter.is_floating_point() and parameter.layout is torch.strided and parameter.numel() > 0


def _is_known_zero(gradient: torch.Tensor) -> bool:
    plain = type(gradient) is torch.Tensor and gradient.is_cpu and gradient.layout is torch.strided
    return plain and not gradient.any()
