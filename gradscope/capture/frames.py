"""The rows of sampled steps become frames: tables on the device, sent to the host, and put in order of the sites there."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import TENSOR_STATISTICS
from gradscope.capture.arena import Arena
from gradscope.capture.instruments.panel import Panel
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.parameter_tables import columns as parameter_columns
from gradscope.capture.parameters import ParameterProbe
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.slots import Slot
from gradscope.capture.transfer import Mailbox
from gradscope.capture.transfer import to_device
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import STATISTICS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.trends import Mask

HISTOGRAMS_DENSE = 4  # frames from the start that carry histograms, then one in HISTOGRAMS_EVERY
HISTOGRAMS_EVERY = 10

# The statistics of each kind that are reductions of an arena's rows.
_NAMES = {
    kind: tuple(name for name in TENSOR_STATISTICS if name in STATISTICS[kind])
    for kind in ("input", "activation", "activation_gradient")
}

# Outside of centre ± half-width a nonlinearity's derivative is under 5 % of its largest: of its output, and of its input.
_SATURATED_OUTPUT = {"Tanh": (0.0, 0.9747), "Sigmoid": (0.5, 0.4874)}
_SATURATED_INPUT = {"tanh": (0.0, 2.18), "sigmoid": (0.0, 4.36)}


@dataclass(frozen=True)
class _Part:
    """The rows of one kind on one device: where each stands among the sites, and which were filled."""

    kind: str
    rows: list[int]
    sites: list[int]  # of each of these rows
    filled: list[list[bool]]  # [steps][rows]


@dataclass(frozen=True)
class _Stands:
    """Where each row of one kind in one arena stands among the sites."""

    of: int  # sites that there are
    rows: list[int]
    sites: list[int]  # of each of these rows


class _HeldStep(NamedTuple):
    """A sampled step whose numbers still lie in the arenas. Made at every sampled step."""

    step: int
    loss_scale: torch.Tensor | None  # what the loss was multiplied with last, should that be a GradScaler's doing
    scale_seen: bool  # whether it was in an earlier step


@final
class FrameMaker:
    """Turns what the probes hold at the end of sampled steps into frames, once its numbers have reached the host.

    A few steps that follow one another are held back and reduced together: for small models what an operation costs hardly
    depends on how many rows it is over.
    """

    def __init__(self, modules: ModuleProbe, mailbox: Mailbox, deliver: Callable[[Sequence[Frame]], None]) -> None:
        self._modules = modules
        self._mailbox = mailbox
        self._deliver = deliver
        self._held: list[_HeldStep] = []
        self._made = 0
        self._histograms_at = 0  # frames after which histograms are due
        self._schema = Schema()
        self._types: dict[str, tuple[str, str | None]] = {}  # by module path: class, activation that takes its output
        self._limits: dict[Arena, torch.Tensor] = {}
        self._stands: dict[tuple[str, Arena], _Stands] = {}
        self._can_saturate: Mask = np.zeros(0, dtype=bool)  # by module site

    def learn(self, types: dict[str, tuple[str, str | None]]) -> None:
        """Which modules can saturate, from their classes and the activations that follow them."""
        if types != self._types:
            self._types = types
            self._limits.clear()
            self._can_saturate = np.zeros(0, dtype=bool)

    @property
    def held(self) -> int:
        """Steps that are held back."""
        return len(self._held)

    def hold(self, step: int, *, loss_scale: torch.Tensor | None, scale_seen: bool) -> None:
        """A sampled step is over; its numbers stay where they are. See ``_HeldStep``."""
        self._held.append(_HeldStep(step, loss_scale, scale_seen))

    def send(self, parameters: ParameterProbe, panel: Panel | None, *, amid: bool) -> None:
        """Reduce the rows of the steps that are held on their devices and send them off; the places are free at once.

        ``panel`` is read for the last of them; ``amid`` a step that is being made.
        """
        steps, self._held = self._held, []
        if not steps:
            return
        schema = self._schema = self._current_schema(parameters, panel)
        with_histograms = self._are_histograms_due(len(steps), whole=panel is not None)
        if len(self._can_saturate) != len(self._modules.slots):
            self._can_saturate = np.array([self._saturation(slot) is not None for slot in self._modules.slots], dtype=bool)
        parts, tensors = self._reduce(len(steps), with_histograms)
        parameter_tables, masks = parameters.tables(), parameters.masks()
        readings = panel.read(schema.parameters, schema.modules) if panel is not None else []
        read = [tensor for reading in readings for tensor in reading.tensors]
        scales = [step.loss_scale for step in steps if step.loss_scale is not None]
        can_saturate = self._can_saturate

        def arrived(arrays: Sequence[Array]) -> None:
            columns, histograms = _tables(schema, parts, arrays[: len(tensors)], len(steps), with_histograms=with_histograms)
            columns["activation.saturated"][:, ~can_saturate] = np.nan
            end = len(tensors) + len(parameter_tables)
            columns.update(parameter_columns(arrays[len(tensors) : end], masks))
            extra: dict[str, Array] = {}
            for reading in readings:
                start, end = end, end + len(reading.tensors)
                extra.update(reading.columns(arrays[start:end]))
            parameters.learn(columns)
            _unscale(columns, histograms, steps, arrays[end:], masks.stepped)
            self._deliver(_frames(schema, steps, columns, extra, histograms))

        self._mailbox.send([*tensors, *parameter_tables, *read, *scales], arrived)
        self._modules.let_go(len(steps), amid=amid)
        parameters.let_go(amid=amid)

    def _are_histograms_due(self, steps: int, *, whole: bool) -> bool:
        self._made += steps
        if self._made <= HISTOGRAMS_DENSE:
            return True
        if whole and self._made > self._histograms_at:
            self._histograms_at = self._made + HISTOGRAMS_EVERY - 1
            return True
        return False

    def _reduce(self, steps: int, with_histograms: bool) -> tuple[list[_Part], list[torch.Tensor]]:
        """The tables of the module probe's rows, one of statistics and where wanted one of histograms for each part."""
        parts: list[_Part] = []
        tensors: list[torch.Tensor] = []
        places = range(steps)
        for kind, sites, arenas in self._modules.kinds():
            for arena in arenas:
                stands = self._stands_of(kind, sites, arena)
                parts.append(_Part(kind, stands.rows, stands.sites, arena.filled_at(places)))
                limits = self._limits_of(arena) if kind == "activation" else None
                tensors.append(arena.statistics(_NAMES[kind], limits, places))
                if with_histograms:
                    tensors.append(arena.histograms(steps - 1))
        return parts, tensors

    def _stands_of(self, kind: str, sites: int, arena: Arena) -> _Stands:
        known = self._stands.get((kind, arena))
        if known is None or known.of != sites:
            rows = self._modules.rows(kind)
            held = [(row.index, site) for site, row in enumerate(rows) if row is not None and row.arena is arena]
            known = self._stands[kind, arena] = _Stands(sites, [row for row, _ in held], [site for _, site in held])
        return known

    def _current_schema(self, parameters: ParameterProbe, panel: Panel | None) -> Schema:
        last = self._schema
        others = panel.sites() if panel is not None else {"loss": last.losses, "attention": last.attentions}
        inputs, modules = self._modules.inputs, self._modules.slots
        losses, attentions = others.get("loss", ()), others.get("attention", ())
        counted = (len(last.inputs), len(last.modules)) == (len(inputs), len(modules))
        if counted and (last.parameters, last.losses, last.attentions) == (parameters.sites, losses, attentions):
            return last  # one object for all frames of a schema: comparing and hashing it is then free
        return Schema(
            tuple(slot.site for slot in inputs), tuple(slot.site for slot in modules), parameters.sites, losses, attentions
        )

    def _limits_of(self, arena: Arena) -> torch.Tensor | None:
        if not self._can_saturate.any():
            return None
        known = self._limits.get(arena)
        if known is None or known.shape[1] != arena.rows:
            known = self._limits[arena] = self._make_limits(arena)
        return known

    def _make_limits(self, arena: Arena) -> torch.Tensor:
        limits = [(0.0, float("inf"))] * arena.rows
        for slot in self._modules.slots:
            found = self._saturation(slot)
            if found is not None and slot.forward is not None and slot.forward.arena is arena:
                limits[slot.forward.index] = found
        return to_device(torch.tensor(limits, dtype=torch.float32, device="cpu").T, arena.device)

    def _saturation(self, slot: Slot) -> tuple[float, float] | None:
        kind, activation = self._types.get(slot.site.path, ("", None))
        return _SATURATED_OUTPUT.get(kind) or _SATURATED_INPUT.get(activation or "")


def _frames(
    schema: Schema,
    steps: Sequence[_HeldStep],
    columns: dict[str, Array],
    extra: dict[str, Array],
    histograms: dict[str, Array],
) -> list[Frame]:
    """One frame for each step; the instruments' columns and the histograms are the last one's."""
    frames = [Frame(held.step, schema, {name: of[i] for name, of in columns.items()}) for i, held in enumerate(steps)]
    if extra or histograms:
        frames[-1] = Frame(steps[-1].step, schema, {**frames[-1].columns, **extra}, histograms)
    return frames


def _tables(
    schema: Schema, parts: Sequence[_Part], arrays: Sequence[Array], steps: int, *, with_histograms: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Columns [steps, sites], and the last step's histograms."""
    columns = {
        f"{kind}.{statistic}": np.full((steps, len(schema.sites(kind))), np.nan, dtype=np.float32)
        for kind, names in _NAMES.items()
        for statistic in names
    }
    histograms: dict[str, Array] = {}
    each = 2 if with_histograms else 1
    for part, table, histogram in zip(parts, arrays[::each], arrays[each - 1 :: each], strict=True):
        filled = np.array(part.filled, dtype=bool)[:, part.rows]
        of_steps = table.reshape(len(table), steps, -1)[:, :, part.rows]
        for statistic, values in zip(_NAMES[part.kind], of_steps, strict=True):
            columns[f"{part.kind}.{statistic}"][:, part.sites] = np.where(filled, values, np.float32(np.nan))
        if with_histograms:
            shares = histograms.setdefault(
                part.kind, np.zeros((len(schema.sites(part.kind)), HISTOGRAM_BINS), dtype=np.float32)
            )
            shares[part.sites] = np.where(filled[-1][:, None], histogram[part.rows], np.float32(0))
    return columns, histograms


def _unscale(
    columns: dict[str, Array],
    histograms: dict[str, Array],
    steps: Sequence[_HeldStep],
    scales: Sequence[Array],
    stepped: Mask,  # [steps, parameters]
) -> None:
    """Take a GradScaler's power of two back out of the gradients that each step's loss sent through the model.

    It takes its scale out of the weights' gradients itself, but only of those that it lets an optimizer use: not where others
    are not finite.
    """
    left = iter(scales)
    for i, held in enumerate(steps):
        factor = float(next(left)) if held.loss_scale is not None else 1.0
        if held.loss_scale is None or not is_loss_scale(factor, seen=held.scale_seen):
            continue
        for statistic in ("rms", "absmax"):
            columns[f"activation_gradient.{statistic}"][i] /= np.float32(factor)
        if not stepped[i].all():
            _leave_out(columns, "weight_gradient", i, ~stepped[i])
            _leave_out(columns, "activation_gradient", i, columns["activation_gradient.nonfinite"][i] > 0)
        if i == len(steps) - 1 and "activation_gradient" in histograms:
            histograms["activation_gradient"] = _moved(histograms["activation_gradient"], round(math.log2(factor)))


def _leave_out(columns: dict[str, Array], kind: str, step: int, sites: Mask) -> None:
    """As if nothing had been captured at these sites in this step."""
    for name in STATISTICS[kind]:
        if f"{kind}.{name}" in columns:
            columns[f"{kind}.{name}"][step, sites] = np.nan


def _moved(shares: Array, places: int) -> Array:
    """The histograms of values 2^places times smaller."""
    bins = np.clip(np.arange(HISTOGRAM_BINS) - places, 0, HISTOGRAM_BINS - 1)
    bins[0] = 0  # where zeros are
    moved = np.zeros_like(shares)
    for bin_before, bin_after in enumerate(bins):
        moved[:, bin_after] += shares[:, bin_before]
    return moved
