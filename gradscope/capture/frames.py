"""A sampled step's rows become one frame: tables on the device, sent to the host, and put in order of the sites there."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from gradscope.capture.arena import TENSOR_STATISTICS
from gradscope.capture.arena import Arena
from gradscope.capture.instruments.panel import Panel
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.modules import Slot
from gradscope.capture.parameters import ParameterProbe
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.shelf import Shelf
from gradscope.capture.transfer import Mailbox
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
    places: tuple[tuple[int, int], ...]  # (row, site)
    filled: tuple[bool, ...]  # by row


@final
class FrameMaker:
    """Turns what the probes hold at the end of a sampled step into a frame, once its numbers have reached the host."""

    def __init__(self, modules: ModuleProbe, mailbox: Mailbox, deliver: Callable[[Frame], None]) -> None:
        self._modules = modules
        self._mailbox = mailbox
        self._deliver = deliver
        self._made = 0
        self._shelf = Shelf()
        self._schema = Schema()
        self._types: dict[str, tuple[str, str | None]] = {}  # by module path: class, activation that takes its output
        self._limits: dict[Arena, torch.Tensor] = {}
        self._can_saturate: Mask = np.zeros(0, dtype=bool)  # by module site

    def learn(self, types: dict[str, tuple[str, str | None]]) -> None:
        """Which modules can saturate, from their classes and the activations that follow them."""
        if types != self._types:
            self._types = types
            self._limits.clear()
            self._can_saturate = np.zeros(0, dtype=bool)

    def make(
        self,
        step: int,
        parameters: ParameterProbe,
        stepped: Collection[str],
        panel: Panel,
        *,
        loss_scale: torch.Tensor | None = None,
        scale_seen: bool = False,
    ) -> None:
        """Reduce the step's rows on their devices and send them off. The probes may start on the next step at once.

        ``stepped`` are the parameters whose optimizer made the step; ``loss_scale`` is what the loss was multiplied with last,
        should that be a GradScaler's doing, and ``scale_seen`` whether it was in an earlier step.
        """
        schema = self._schema = self._current_schema(parameters, panel)
        with_histograms = self._made < HISTOGRAMS_DENSE or self._made % HISTOGRAMS_EVERY == 0
        self._made += 1
        if len(self._can_saturate) != len(self._modules.slots):
            self._can_saturate = np.array([self._saturation(slot) is not None for slot in self._modules.slots], dtype=bool)
        parts: list[_Part] = []
        tensors: list[torch.Tensor] = []
        for kind, slots, arenas in self._modules.by_kind():
            for arena in arenas:
                places = tuple((held[1], i) for i, held in enumerate(slots) if held is not None and held[0] is arena)
                parts.append(_Part(kind, places, tuple(arena.filled)))
                tensors.append(arena.statistics(_NAMES[kind], self._limits_of(arena) if kind == "activation" else None))
                if with_histograms:
                    tensors.append(arena.histograms())
        parameter_tables = parameters.tables()
        masks = parameters.masks(stepped)
        readings = panel.read(schema.parameters, schema.modules)
        read = [tensor for reading in readings for tensor in reading.tensors]
        can_saturate = self._can_saturate

        def arrived(arrays: Sequence[Array]) -> None:
            columns, histograms = _tables(schema, parts, arrays[: len(tensors)], with_histograms)
            columns["activation.saturated"][~can_saturate] = np.nan
            end = len(tensors) + len(parameter_tables)
            columns.update(parameters.columns(arrays[len(tensors) : end], masks))
            for reading in readings:
                start, end = end, end + len(reading.tensors)
                columns.update(reading.columns(arrays[start:end]))
            if loss_scale is not None:
                _unscale(columns, histograms, float(arrays[-1]), seen=scale_seen)
            self._deliver(Frame(step, schema, self._shelf.put(columns), self._shelf.put(histograms)))

        self._mailbox.send([*tensors, *parameter_tables, *read, *([] if loss_scale is None else [loss_scale])], arrived)

    def _current_schema(self, parameters: ParameterProbe, panel: Panel) -> Schema:
        inputs, modules, others = self._modules.inputs, self._modules.slots, panel.sites()
        losses, attentions = others.get("loss", ()), others.get("attention", ())
        last = self._schema
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
        if known is None or known.shape[1] != len(arena.filled):
            known = self._limits[arena] = self._make_limits(arena)
        return known

    def _make_limits(self, arena: Arena) -> torch.Tensor:
        limits = [(0.0, float("inf"))] * len(arena.filled)
        for slot in self._modules.slots:
            found = self._saturation(slot)
            if found is not None and slot.forward is not None and slot.forward[0] is arena:
                limits[slot.forward[1]] = found
        return torch.tensor(limits, dtype=torch.float32, device="cpu").T.to(arena.device, non_blocking=True)

    def _saturation(self, slot: Slot) -> tuple[float, float] | None:
        kind, activation = self._types.get(slot.site.path, ("", None))
        return _SATURATED_OUTPUT.get(kind) or _SATURATED_INPUT.get(activation or "")


def _tables(
    schema: Schema, parts: Sequence[_Part], arrays: Sequence[Array], with_histograms: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    columns = {
        f"{kind}.{statistic}": np.full(len(schema.sites(kind)), np.nan, dtype=np.float32)
        for kind, names in _NAMES.items()
        for statistic in names
    }
    histograms: dict[str, Array] = {}
    each = 2 if with_histograms else 1
    for part, table, histogram in zip(parts, arrays[::each], arrays[each - 1 :: each], strict=True):
        rows, sites = _filled(part)
        for statistic, row in zip(_NAMES[part.kind], table, strict=True):
            columns[f"{part.kind}.{statistic}"][sites] = row[rows]
        if with_histograms:
            shares = histograms.setdefault(
                part.kind, np.zeros((len(schema.sites(part.kind)), HISTOGRAM_BINS), dtype=np.float32)
            )
            shares[sites] = histogram[rows]
    return columns, histograms


def _unscale(columns: dict[str, Array], histograms: dict[str, Array], factor: float, *, seen: bool) -> None:
    """Take a GradScaler's power of two back out of the gradients that its loss sent through the model."""
    if not is_loss_scale(factor, seen=seen):
        return
    for statistic in ("rms", "absmax"):
        columns[f"activation_gradient.{statistic}"] /= np.float32(factor)
    shares = histograms.get("activation_gradient")
    if shares is not None:
        bins = np.clip(np.arange(HISTOGRAM_BINS) - round(math.log2(factor)), 0, HISTOGRAM_BINS - 1)
        bins[0] = 0  # where zeros are
        moved = np.zeros_like(shares)
        for bin_before, bin_after in enumerate(bins):
            moved[:, bin_after] += shares[:, bin_before]
        histograms["activation_gradient"] = moved


def _filled(part: _Part) -> tuple[list[int], list[int]]:
    places = [(row, site) for row, site in part.places if part.filled[row]]
    return [row for row, _ in places], [site for _, site in places]
