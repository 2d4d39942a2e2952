"""The parameter probe: exact norms, and samples before and after the optimizer that show the true update."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Container
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import Arena
from gradscope.capture.parameter_norms import NONE
from gradscope.capture.parameter_norms import Norms
from gradscope.capture.parameter_norms import norms_of
from gradscope.capture.parameter_norms import norms_of_gradients
from gradscope.capture.parameter_tables import GRADIENT_ROWS
from gradscope.capture.parameter_tables import WEIGHT_ROWS
from gradscope.capture.parameter_tables import GroupMasks
from gradscope.capture.parameter_tables import Masks
from gradscope.capture.parameter_tables import gradient_table
from gradscope.capture.parameter_tables import weight_table
from gradscope.capture.parameter_views import Sampled
from gradscope.capture.parameter_views import Views
from gradscope.capture.parameter_views import views_of
from gradscope.capture.sampling import SAMPLES
from gradscope.capture.sampling import VECTOR_SAMPLES
from gradscope.capture.sampling import Block
from gradscope.capture.sampling import Grid
from gradscope.capture.sampling import parameter_block
from gradscope.capture.sampling import parameter_grid
from gradscope.capture.transfer import to_device
from gradscope.capture.transfer import together
from gradscope.capture.turns import Turns
from gradscope.records import Site
from gradscope.trends import Mask


@final
class _Samples:
    """What is sampled of the matrices, or of the vectors, on one device, of as many steps as are held back.

    Rows are the same in every arena.
    """

    def __init__(self, device: torch.device, turns: Turns, parameters: Mapping[str, torch.nn.Parameter], samples: int) -> None:
        self.device = device
        self.taking = True  # in this step
        room = len(parameters)
        self.before = Arena(device, turns.before, samples=samples, room=room)  # weights at the start of the optimizer's step
        self.after = Arena(device, turns.after, samples=samples, room=room)  # weights at the end of the optimizer's step
        self.gradient = Arena(device, turns.gradient, samples=samples, room=room)
        patterns: dict[tuple[Any, ...], Grid | Block] = {}
        self.tracked = [self._add(name, parameter, patterns) for name, parameter in parameters.items()]
        self._weights = Views((), (), (), ())
        self._of: range | None = None  # the held steps from the first to the last in which anything was taken

    def _add(self, name: str, parameter: torch.nn.Parameter, patterns: dict[tuple[Any, ...], Grid | Block]) -> Sampled:
        row = min(arena.add_row().index for arena in (self.before, self.after, self.gradient))  # the same in all
        layout = (tuple(parameter.shape), parameter.stride())
        if layout not in patterns:
            patterns[layout] = parameter_grid(*layout) or parameter_block(*layout, self.device)
        return Sampled(name, parameter, row, patterns[layout], parameter.shape, parameter.device)

    def take_weights(self, arena: Arena) -> None:
        """Sample the weights, which stay where they are from step to step, as a rule."""
        addresses = tuple([t.parameter.data_ptr() for t in self.tracked])
        if self._weights.addresses != addresses:
            self._weights = views_of([(t, t.parameter) for t in self.tracked])
        self._weights.copy_into(arena)

    def take_gradients(self) -> None:
        """Sample the gradients that are there, and laid out as their parameters are."""
        there = ((t, t.parameter.grad) for t in self.tracked)
        views_of([(t, gradient) for t, gradient in there if gradient is not None and t.fits(gradient)]).copy_into(self.gradient)

    def end_step(self, place: int) -> None:
        if self.taking:
            self._of = range(place if self._of is None else self._of.start, place + 1)

    def tables(self, *, weighed: bool, gradients: bool) -> list[torch.Tensor]:
        """Of the weights in the held steps in which anything was taken; where wanted, of the last step's gradients."""
        if self._of is None:
            return [torch.zeros(rows, 0, dtype=torch.float32, device="cpu") for rows in (WEIGHT_ROWS, GRADIENT_ROWS)]
        now, later = self._of, range(self._of.start + 1, self._of.stop + 1)
        spread_from = (len(now) - weighed) * len(self.tracked)
        weights = weight_table(self.before.held(now), self.after.held(later), self.after.held(now), spread_from=spread_from)
        return [weights, gradient_table(self.gradient.held(range(gradients)))]

    def masks(self, follows: Mask, *, gradients: bool) -> GroupMasks:
        """``follows`` says of each held step whether the step before it was sampled too."""
        now = self._of if self._of is not None else range(0)
        later = range(now.start + 1, now.stop + 1)
        arenas = ((self.before, now), (self.after, later), (self.after, now))
        filled = np.array([arena.filled_at(places) for arena, places in arenas], dtype=bool)
        before, after, after_last = filled.reshape(3, len(now), len(self.tracked))
        after_last &= follows[now.start : now.stop, None]
        there = self.gradient.filled_at(_FIRST)[0] if gradients and self._of is not None else []
        return GroupMasks(now.start, before, after, after_last, np.array(there, dtype=bool))

    def let_go(self, held: int, *, amid: bool) -> None:
        """The first ``held`` steps were handed on: what the last of them left moves up, and so does the step that is made."""
        self.after.move(held, 0)
        if amid:
            self.after.move(held + 1, 1)
            self.before.move(held, 0)
        self._of = None


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

    def __init__(self, parameters: dict[str, torch.nn.Parameter], *, places: int = 1) -> None:
        self._turns = Turns(places)
        alike: dict[tuple[torch.device, bool], dict[str, torch.nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if _can_be_tracked(parameter):
                alike.setdefault((parameter.device, parameter.dim() > 1), {})[name] = parameter
        groups = {
            (device, matrices): _Samples(device, self._turns, members, SAMPLES if matrices else VECTOR_SAMPLES)
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
        self._home = next((p.device for p in self._parameters if not p.is_cpu), torch.device("cpu"))  # of all norms together
        self._by_id = dict(zip(self._ids, self._tracked, strict=True))
        self._every_name, self._all = frozenset(order), np.ones(len(order), dtype=bool)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.sites = tuple(Site(t.name) for t in self._tracked)
        self._addresses: list[int] = []  # of the parameters, as they were described last
        self._weight_norms: torch.Tensor | None = None
        self._at_hand = NONE  # norms of gradients since the last global norm
        self._norms = NONE  # of the step's gradients
        self._last_norms: torch.Tensor | None = None  # float32 [parameters], of the sampled step before this one
        self._carried_norms: torch.Tensor | None = None  # the same as the step's first backward found them, where it was looked
        self._gradients_taken = False
        self._remembers = False  # the step before this one was sampled
        self._held: list[_HeldStep] = []

    def describes(self, model: torch.nn.Module) -> bool:
        """Whether these are the model's parameters as they are now: none added, replaced, resized or on another device."""
        held = [p for module in model.modules() for p in module._parameters.values() if p is not None]
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
        addresses = [p.data_ptr() for p in self._parameters]
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
        self._weight_norms = together(norms_of([p.detach() for p in self._parameters]))

    def take_before(self) -> None:
        """Before the optimizer's step: sample the weights."""
        for samples in self._chosen:
            samples.take_weights(samples.before)

    def take_norms(self) -> None:
        """Take the gradients' norms as they are now; again after a step that worked them out in a closure."""
        known, self._at_hand = self._at_hand, NONE
        if known.ids == self._ids:  # the rule
            self._norms = known
            return
        by_id = dict(zip(known.ids, known.norms, strict=True))
        rest = norms_of_gradients([p for p in self._parameters if id(p) not in by_id])
        by_id.update(zip(rest.ids, rest.norms, strict=True))
        ids = tuple(key for key in self._ids if key in by_id)
        norms = tuple(by_id[key] for key in ids)
        self._norms = Norms(ids, norms, together(norms))

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
        """Whether no parameter holds a gradient."""
        return all(p.grad is None for p in self._parameters)

    @property
    def has_gradients(self) -> bool:
        return bool(self._norms.ids)

    def take_after(self) -> None:
        """After the optimizer's step: sample the weights again."""
        for samples in self._chosen:
            samples.take_weights(samples.after)

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
        )

    def let_go(self, *, amid: bool) -> None:
        """They were handed on; ``amid`` a step, which goes on."""
        for samples in self._groups:
            samples.let_go(len(self._held), amid=amid)
        self._turns.let_go(len(self._held), amid=amid)
        self._held = []


def _can_be_tracked(parameter: torch.nn.Parameter) -> bool:
    return parameter.is_floating_point() and parameter.layout is torch.strided and parameter.numel() > 0


_FIRST = range(1)
