"""Frames and pulses as columns: what rules look back on, and the gates that they share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.lacking import lacking
from gradscope.lacking import lacking_fact
from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.trends import as_high_before
from gradscope.trends import carried_on
from gradscope.trends import falls
from gradscope.trends import level_start
from gradscope.trends import median_of
from gradscope.trends import smoothed
from gradscope.trends import spans_of
from gradscope.weighing import changes
from gradscope.weighing import factors
from gradscope.weighing import in_a_step
from gradscope.weighing import most_of_mean
from gradscope.weighing import of_all
from gradscope.weighing import usual_variance

CREEP = 0.005  # share of the loss that a hundred steps take off it, below which it stands still
FEW_TERMS = 8  # numbers that a loss is the mean of, below which it is noisy
_CLASSIFICATIONS = frozenset(("cross_entropy", "nll", "bce", "bce_with_logits"))

# E[f²] and E[f'²] for a standard normal pre-activation, by numeric integration; 1/sqrt(E[f²]) is the gain of He et al. 2015.
ACTIVATION_ENERGY = {
    "relu": 0.500, "leaky_relu": 0.500, "tanh": 0.394, "sigmoid": 0.293, "gelu": 0.425,
    "silu": 0.356, "elu": 0.645, "selu": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A matrix layer: a leaf module with a weight of two or more dimensions, at its first call in a forward pass."""

    module: ModuleInfo
    weight: ParameterInfo
    site: int  # its index among the module sites
    parameter: int  # its weight's index among the parameter sites

    @property
    def gain_squared(self) -> float:
        """The factor of He's rule for the activation that follows: 2 for ReLU, 1 where none does."""
        return 1.0 / ACTIVATION_ENERGY[self.module.activation] if self.module.activation in ACTIVATION_ENERGY else 1.0


@final
class Timeline:
    """All that is known of one run, as columns of steps by sites. Rules read it; nothing but capture and replay adds to it.

    ``frames`` and ``pulses`` come in the order of their steps; of a long run they are those that ``memory.history.History``
    holds on to, with gaps as sparse sampling leaves them. A column is built when it is first asked for and kept.
    """

    def __init__(
        self,
        info: RunInfo,
        frames: Iterable[Frame] = (),
        pulses: npt.NDArray[np.float64] | None = None,
        *,
        sampled: int | None = None,
    ) -> None:
        """``sampled`` is how many frames were recorded, where that is more than are held."""
        self.info = info
        self.frames = tuple(frames)
        self.sampled_steps = len(self.frames) if sampled is None else sampled
        empty = np.zeros((0, len(PULSE_FIELDS)))
        self._pulses = empty if pulses is None or not len(pulses) else np.asarray(pulses, dtype=np.float64)
        self._columns: dict[str, Array] = {}
        self._held: dict[str, Array] = {}

    # -- columns

    @cached_property
    def steps(self) -> npt.NDArray[np.int64]:
        """The sampled steps, rising."""
        return np.array([frame.step for frame in self.frames], dtype=np.int64)

    @property
    def step_count(self) -> int:
        """Optimizer steps that the run has made."""
        return int(max((steps[-1] for steps in (self.pulse("step"), self.steps) if len(steps)), default=-1)) + 1

    @cached_property
    def schema(self) -> Schema:
        """All sites of the run in execution order; a site that came later stands after those that were there."""
        # By identity first: frames share their schema, and hashing one costs as much as a rule.
        schemas = list(dict.fromkeys({id(frame.schema): frame.schema for frame in self.frames}.values()))
        if len(schemas) == 1:
            return schemas[0]
        return Schema(
            *(
                tuple(dict.fromkeys(site for schema in schemas for site in schema.sites(kind)))
                for kind in ("input", "activation", "weight", "loss", "attention")
            )
        )

    def column(self, name: str) -> Array:
        """``activation.rms`` and the like: float32 [sampled steps, sites of its kind], NaN where it was not captured."""
        if name not in self._columns:
            self._columns[name] = self._build(name)
        return self._columns[name]

    def held(self, name: str) -> Array:
        """A column whose gaps hold what was captured last: of what changes slowly and is not captured on every step."""
        if name not in self._held:
            self._held[name] = carried_on(self.column(name))
        return self._held[name]

    def _build(self, name: str) -> Array:
        kind = name.partition(".")[0]
        sites = self.schema.sites(kind)
        table = np.full((len(self.frames), len(sites)), np.nan, dtype=np.float32)
        places: dict[int, npt.NDArray[np.int64] | slice] = {id(self.schema): slice(None)}
        index: dict[Site, int] = {}
        for row, frame in zip(table, self.frames, strict=True):
            values = frame.columns.get(name)
            if values is None:
                continue
            if id(frame.schema) not in places:
                index = index or {site: i for i, site in enumerate(sites)}
                places[id(frame.schema)] = np.array([index[site] for site in frame.schema.sites(kind)], dtype=np.int64)
            row[places[id(frame.schema)]] = values
        return table

    def pulse(self, field: str) -> npt.NDArray[np.float64]:
        """One field of every step's pulse, see ``records.PULSE_FIELDS``."""
        return self._pulses[:, PULSE_FIELDS.index(field)]

    @property
    def spans(self) -> npt.NDArray[np.int64]:
        """How many steps each pulse stands for: its own, and those before it that are not held."""
        return spans_of(self.pulse("step").astype(np.int64))

    # -- facts

    def lack(self, need: str) -> str | None:
        """Why ``need`` (a column, ``pulse.<field>`` or ``fact.<name>``) is not there; None where it is."""
        kind, _, name = need.partition(".")
        if kind == "fact":
            return lacking_fact(self.info, name)
        if kind == "pulse":
            held = np.isfinite(self.pulse(name)) | ((name == "loss") & (self.pulse("backwards") > 0))
            return None if held.any() else f"no {name.replace('_', ' ')} was seen"
        if not len(self.frames):
            return "no step was sampled"
        if kind in ("input", "activation", "activation_gradient") and self._unseen:
            return "no call of the model's layers was seen: compiled, scripted and transformed code runs no hooks"
        if not self.schema.sites(kind):
            return lacking(kind)
        return None if np.isfinite(self.column(need)).any() else lacking(need)

    @cached_property
    def _unseen(self) -> bool:
        """Whether the model has layers with parameters and none of them was ever seen running."""
        layers = {module.path for module in self.info.modules if module.parameters and module.role != "container"}
        return bool(layers) and layers.isdisjoint(site.path for site in self.schema.modules)

    @cached_property
    def modules(self) -> dict[str, ModuleInfo]:
        return {module.path: module for module in self.info.modules}

    @cached_property
    def parameters(self) -> dict[str, ParameterInfo]:
        return {parameter.name: parameter for parameter in self.info.parameters}

    @cached_property
    def optimized(self) -> dict[str, OptimizerInfo]:
        """The optimizer of each parameter that one holds."""
        return {name: optimizer for optimizer in self.info.optimizers for name in optimizer.parameters}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The matrix layers in execution order."""
        places = {site.path: i for i, site in enumerate(self.schema.parameters)}
        return tuple(
            Layer(module, weight, site_index, places[weight.name])
            for site_index, site in enumerate(self.schema.modules)
            if site.call == 0 and (module := self.modules.get(site.path)) and module.role in ("linear", "conv")
            if (weight := self._weight_of(module)) and weight.name in places
        )

    def _weight_of(self, module: ModuleInfo) -> ParameterInfo | None:
        matrices = [p for name in module.parameters if (p := self.parameters.get(name)) and len(p.shape) >= 2]
        return max(matrices, key=lambda parameter: parameter.size, default=None)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the module sites of the longest row of siblings of one class, the residual blocks of most nets."""
        families: dict[tuple[str, str], list[int]] = {}
        for index, site in enumerate(self.schema.modules):
            module = self.modules.get(site.path)
            if module and site.call == 0 and module.role in ("container", "other"):
                families.setdefault((site.path.rpartition(".")[0], module.type), []).append(index)
        longest = max(families.values(), key=len, default=[])
        return tuple(longest) if len(longest) >= 3 else ()

    @cached_property
    def trained(self) -> npt.NDArray[np.bool_]:
        """Which parameter sites are trainable and held by an optimizer, or moved by steps by hand; [parameter sites]."""
        names = {p.name for p in self.info.parameters if p.trainable and (self.info.by_hand or p.name in self.optimized)}
        moved = (self.column("update.ratio") > 0).any(axis=0) | (not self.info.by_hand)
        return np.array([site.path in names for site in self.schema.parameters], dtype=bool) & moved

    @cached_property
    def update_ratios(self) -> Array:
        """Update ratio of the trained matrices; NaN where frozen, zero at the start or one-dimensional; [steps, parameters]."""
        known = [self.parameters.get(site.path) for site in self.schema.parameters]
        counted = np.array([bool(p and len(p.shape) >= 2 and not p.zero_at_start) for p in known], dtype=bool) & self.trained
        return np.where(counted[None, :], self.column("update.ratio"), np.float32(np.nan))

    # -- gates

    @cached_property
    def loss(self) -> npt.NDArray[np.float64]:
        """The loss of every step that had a backward call, in order, all with the weight that it has at the end."""
        return self.pulse("loss")[self.pulse("backwards") > 0] * factors(self.loss_steps, self.reweighed)

    @cached_property
    def gradient_norms(self) -> npt.NDArray[np.float64]:
        """The gradient norm of every step as it would be with the weight that the loss has at the end; [pulses]."""
        return self.pulse("gradient_norm") * factors(self.pulse("step").astype(np.int64), self.reweighed)

    @cached_property
    def reweighed(self) -> list[tuple[int, float]]:
        """From which steps on the only loss counts how many times as much as before; empty where its weight stayed."""
        losses, alone = self.pulse("loss")[self.pulse("backwards") > 0], len(self.schema.losses) == 1
        return changes(self.loss_steps, losses, self.steps, self.column("loss.weight")[:, 0]) if alone else []

    @cached_property
    def loss_weight(self) -> float:
        """By how much the first loss counts since it was last given another weight; NaN where that is not known."""
        weights = self._weights[self.steps >= (self.reweighed[-1][0] if self.reweighed else 0)]
        return median_of(weights[:, 0]) if weights.shape[1] else float("nan")

    @cached_property
    def _weights(self) -> npt.NDArray[np.float64]:
        """By how much each loss counts in its step's."""
        return in_a_step(self.column("loss.weight"), self.pulse("backwards"), self.info)

    @cached_property
    def loss_steps(self) -> npt.NDArray[np.int64]:
        """The steps that ``loss`` is of."""
        return self.pulse("step")[self.pulse("backwards") > 0].astype(np.int64)

    @cached_property
    def noisy_loss(self) -> bool:
        """Whether a step's loss is the mean of fewer than eight numbers, so that it jumps by chance."""
        losses = self.info.wiring.losses if self.info.wiring else ()
        terms = [math.prod(loss.target_shape) for loss in losses if loss.target_shape is not None]
        return bool(terms) and max(terms) < FEW_TERMS

    @cached_property
    def first_loss(self) -> float:
        """Where training started: the first loss, or the median of those before the first that moved by more than noise.

        A batch that is high by chance makes a loss that stands still look like one that has come down, so the median counts
        where it is the lower of the two; the median of the first three where a loss says little or is not finite.
        """
        known = len(self.loss) and np.isfinite(self.loss[0]) and not self.noisy_loss
        start = float(self.loss[0]) if known else median_of(self.loss[:3])
        level = level_start(self.loss)
        return min(start, middles.median(level)) if len(level) >= 3 else start

    @cached_property
    def last_loss(self) -> float:
        """Median of the last tenth of the losses, of three at least and fifty at most; NaN where the last is not finite."""
        if not len(self.loss) or not np.isfinite(self.loss[-1]):
            return float("nan")
        return median_of(self.loss[-min(50, max(3, len(self.loss) // 10)) :])

    @cached_property
    def baseline(self) -> float:
        """The loss of the best constant prediction (ln C, Var(y)) where the graph told it, else the first loss."""
        known = [level for loss in self.info.wiring.losses if (level := self._level(loss))] if self.info.wiring else []
        return known[0] * self._loss_factor if known else self.first_loss

    def _level(self, loss: LossInfo) -> float | None:
        """What the best constant prediction has of a mean; of squares by the first sampled batches, as one may be any."""
        if loss.kind != "mse" or not loss.baseline:
            return loss.baseline
        return usual_variance(*map(self.column, ("loss.target_mean", "loss.target_rms", "loss.weight"))) or loss.baseline

    @cached_property
    def known_baseline(self) -> float | None:
        """The loss of the best constant prediction where there is one loss function and it is known, else None."""
        losses = {(loss.kind, loss.classes): self._level(loss) for loss in self.info.wiring.losses} if self.info.wiring else {}
        known = next(iter(losses.values())) if len(losses) == 1 else None
        all_told = of_all(self._weights, self.loss_weight, alike=("cross_entropy" in {kind for kind, _ in losses}))
        return known * self._loss_factor * all_told if known and known * all_told > 0 else None

    @cached_property
    def _loss_factor(self) -> float:
        """What makes a mean over the first loss's terms into the loss: its weight, and how many terms it adds."""
        losses = self.info.wiring.losses if self.info.wiring else ()
        if not self.schema.losses or not losses:
            return 1.0
        weight, count = self.loss_weight, median_of(self.column("loss.target_count")[:, 0])
        factor = weight if weight > 0 else 1.0
        if losses[0].reduction == "sum" and count > 0:
            return factor * count
        samples = (losses[0].target_shape or (0,))[0]
        added = count / samples if samples and count > samples and self.loss[:1] > factor * self.most_mean else 1.0
        return factor * added

    @cached_property
    def most_mean(self) -> float:
        """The most that the first loss can have been on the first step as a mean over its terms; infinite where not known."""
        losses = self.info.wiring.losses if self.info.wiring else ()
        known = losses and self.schema.losses and len(self.frames) and len(self.loss)
        if not known or self.steps[0] != self.loss_steps[0]:
            return math.inf
        output, target = (float(self.column(f"loss.{name}")[0, 0]) for name in ("input_rms", "target_rms"))
        return most_of_mean(losses[0].kind, losses[0].classes, output, target)

    @cached_property
    def learning(self) -> bool:
        """Whether the loss has come down by a tenth from where it started: training works as a whole."""
        return bool(np.isfinite(self.last_loss) and self.last_loss < self.first_loss - 0.1 * abs(self.first_loss))

    @cached_property
    def progressing(self) -> bool:
        """Whether the last 100 losses still go down (Mann-Kendall) or reach a new minimum that is 1 % lower."""
        recent = self.loss[-100:]
        if not np.isfinite(recent).all() or len(recent) < 8:
            return False
        before = self.loss[:-100][np.isfinite(self.loss[:-100])]
        best = before.min() if len(before) else recent[0]
        tenth = max(len(recent) // 10, 3)
        fall = median_of(recent[:tenth]) - median_of(recent[-tenth:])
        creeps = fall < CREEP * abs(median_of(recent[:tenth]))  # a trend, but not one that leads anywhere
        return (falls(recent) and not creeps) or bool(smoothed(recent).min() < best - 0.01 * abs(best))

    @cached_property
    def converged(self) -> bool:
        """Whether the loss is under a twentieth of the best constant prediction's."""
        return bool(np.isfinite(self.last_loss) and self.baseline > 0 and self.last_loss < 0.05 * self.baseline)

    @cached_property
    def several_objectives(self) -> bool:
        """Whether several models or optimizers play in the loop, not all for one loss (a GAN): no loss need fall."""
        return self.info.shared_process or (len(self.info.optimizers) > 1 and not self._shared_out)

    @cached_property
    def _shared_out(self) -> bool:
        """Whether all optimizers step together after each backward call, on one loss, which is a classifier's."""
        # Of a regression it is not believed: a critic's error has an actor's loss added to it, which no graph shows.
        losses = self.info.wiring.losses if self.info.wiring else ()
        sole = len(losses) == 1 and losses[0].kind in _CLASSIFICATIONS and len(self.schema.losses) <= 1
        updated = np.isfinite(self.column("update.ratio")[1:])  # in the first step the second optimizer is not known yet
        if not sole or not len(updated) or not (self.pulse("backwards") == 1).all():
            return False
        held = np.array([[s.path in o.parameters for s in self.schema.parameters] for o in self.info.optimizers])
        matrices = np.array([len(self.parameters[s.path].shape) > 1 for s in self.schema.parameters])
        whole = np.isfinite(self.column("weight.norm")[1:]).any(axis=1)  # the other frames show matrices alone
        seen = [updated[:, own] if (own & matrices).any() else updated[whole][:, own] for own in held]
        return bool((held.sum(axis=0) <= 1).all()) and all(len(rows) > 0 and rows.any(axis=1).all() for rows in seen)

    @cached_property
    def onset(self) -> int | None:
        """The step at which training blew up: not finite, or a loss that grew and never came back. None where it did not."""
        infinite = self.pulse("step")[np.isinf(self.pulse("gradient_norm"))]
        candidates = [*infinite[:1], *self.loss_steps[~np.isfinite(self.loss)][:1], *self._risen_for_good()]
        return int(min(candidates)) if candidates else None

    def _risen_for_good(self) -> npt.NDArray[np.int64]:
        """The step from which the loss stayed above three times its start, up to the end or to where it broke; else empty."""
        broken = ~np.isfinite(self.loss)
        losses = self.loss[: int(np.argmax(broken))] if broken.any() else self.loss
        if self.several_objectives or not len(losses) or not np.isfinite(self.first_loss):
            return self.loss_steps[:0]  # of several players one's loss may well rise
        ceiling = self.first_loss + 2 * abs(self.first_loss) + 1e-12
        at_end = median_of(losses[-1:] if broken.any() else losses[-5:])
        below = np.flatnonzero(losses <= ceiling)
        since = int(below[-1]) + 1 if len(below) else 0
        usual = not broken.any() and as_high_before(losses, since, ceiling)
        risen = at_end > ceiling and not usual and not (self.noisy_loss and self.last_loss <= ceiling)
        return self.loss_steps[since : len(losses)][: int(risen)]

    def site_names(self, kind: str) -> list[str]:
        return [site.name for site in self.schema.sites(kind)]
