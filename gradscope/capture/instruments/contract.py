"""What each sampled step's loss was made of: its input, its target and its weight, from what the graph saved for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from dataclasses import field
from typing import TypeAlias
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from gradscope.capture.graph import Graph
from gradscope.capture.instruments.heads import Head
from gradscope.capture.instruments.heads import Kept
from gradscope.capture.instruments.heads import head_below
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.instrument import Reading
from gradscope.capture.instruments.labels import MOST_CLASSES
from gradscope.capture.instruments.labels import LabelCounts
from gradscope.capture.instruments.labels import entropy
from gradscope.capture.losses import own_shape
from gradscope.capture.lossnodes import Found
from gradscope.capture.lossnodes import find_losses
from gradscope.capture.lossnodes import terms
from gradscope.capture.operands import may_be_loss_scale
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.pulses import is_loss_scale
from gradscope.capture.sampling import spread
from gradscope.capture.transfer import to_device
from gradscope.records import STATISTICS
from gradscope.records import Array
from gradscope.records import Site

NEAR = 50  # nodes from the root in which losses are looked for
MOST_SITES = 8
MOST_GRIDS = 256  # cached sets of offsets
_NAMES = tuple(STATISTICS["loss"])
_COLUMNS = 32
_ELEMENTS = 1024
_MOST_READ = 1 << 16  # elements of a linear layer's input that are read to work its result out again

_Key: TypeAlias = tuple[str, str, int | None, int]  # kind, node, classes, how many of the sort lie nearer to the root
_Table: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Grid:
    """Which elements of a tensor are looked at: some features of some of the batch."""

    index: torch.Tensor  # int64 [rows * features], offsets in storage order
    rows: int
    extent: int


LOGITS_DENSE = 12  # sampled steps from the start whose logits are looked at, then one in LOGITS_EVERY: to find them is dear
LOGITS_EVERY = 4


@dataclass
class _Taken:
    """What the step's last backward pass showed of one loss. Tensors by name lie on their device still."""

    found_factor: float
    reduction: str
    inverse: tuple[tuple[bool, bool], ...]  # of each tensor "scale…": divided by it; may be a GradScaler's
    counts: tuple[int, ...] = ()  # by one of which a sum is divided to be a mean
    precision: float = 0.0  # relative error of "output"
    sign: float = 0.0
    rows: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


@final
class Contract(Instrument):
    """Fills the columns of ``loss``.

    Input and target come as samples of up to 1,024 elements. The logits of a cross-entropy are worked out again from the
    linear layer that made them; where another layer did, its log-probabilities stand for them in the columns of the input.
    """

    def __init__(self, pulses: PulseMaker) -> None:
        self._pulses = pulses
        self._places: dict[_Key, int] = {}
        self._sites: tuple[Site, ...] = ()
        self._taken: dict[int, _Taken] = {}
        self._elements: dict[int, int] = {}  # of float targets, in all backward passes of the step
        self._labels: dict[int, LabelCounts] = {}
        self._labelled: set[int] = set()  # sites whose labels were counted in this step
        self._grids: dict[tuple[torch.Size, tuple[int, ...], torch.device], _Grid] = {}
        self._lines: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._steps = -1  # sampled before this one
        self._due = 0  # of them, from which on logits are looked at next

    @property
    def sites(self) -> Mapping[str, tuple[Site, ...]]:
        return {"loss": self._sites}

    def start_step(self, samples: int) -> None:
        self._steps = samples
        self._forget()

    def switch_off(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._taken.clear()
        self._elements.clear()
        self._labelled.clear()

    def before_backward(self, loss: torch.Tensor, graph: Graph | None) -> None:
        if loss.grad_fn is None:
            return
        seen: dict[tuple[str, str, int | None], int] = {}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if torch.is_autocast_enabled(loss.device.type):
                stack.enter_context(torch.autocast(loss.device.type, enabled=False))
            for found in find_losses(loss.grad_fn, most=NEAR, scale_seen=self._pulses.scale_seen):
                kind = (found.kind, found.node, found.classes)
                seen[kind] = seen.get(kind, -1) + 1
                place = self._place((*kind, seen[kind]))
                if place is not None:
                    self._taken[place] = self._take(place, found)

    def _place(self, key: _Key) -> int | None:
        if key not in self._places:
            if len(self._places) >= MOST_SITES:
                return None
            self._places[key] = len(self._places)
            self._sites = tuple(Site("(loss)", place) for place in range(len(self._places)))
        return self._places[key]

    # -- on the device

    def _take(self, place: int, found: Found) -> _Taken:
        scales = tuple((inverse, not inverse and may_be_loss_scale(scale)) for scale, inverse in found.scales)
        taken = _Taken(found.factor, found.reduction, scales, sign=found.sign)
        for i, (scale, _) in enumerate(found.scales):
            taken.tensors[f"scale{i}"] = scale.clone()
        self._take_target(place, found, taken)
        if found.kind == "cross_entropy" and self._steps < self._due:
            return taken
        if found.saved is None or found.kind == "cross_entropy":
            self._take_output(found, taken)
        if "output" not in taken.tensors:
            self._sample("output", found.saved, taken)
        return taken

    def _take_target(self, place: int, found: Found, taken: _Taken) -> None:
        if found.labelled:
            self._count(place, found)
            return
        compared = found.target if found.target is not None else found.difference
        if compared is None:
            return
        elements = math.prod(own_shape(compared))
        self._elements[place] = self._elements.get(place, 0) + elements
        taken.counts = terms(compared)
        self._sample("target", found.target, taken)

    def _count(self, place: int, found: Found) -> None:
        labels, classes = found.target, found.classes
        if labels is None or classes is None or not 0 < classes <= MOST_CLASSES or not _readable(labels):
            return
        counts = self._labels.get(place)
        if counts is None or not counts.fits(classes, labels.device):
            counts = self._labels[place] = LabelCounts(classes, labels.device)
            self._labelled.discard(place)
        if place not in self._labelled:
            self._labelled.add(place)
            counts.start_step()
        ignored: int = getattr(found.handle, "_saved_ignore_index", -100)
        counts.add(labels, ignored - (1 << 64) if ignored >= 1 << 63 else ignored)

    def _take_output(self, found: Found, taken: _Taken) -> None:
        """What the model gave, where the loss has not saved it; with it log Z, or the target."""
        head = head_below(*found.outputs) if found.outputs is not None else None
        if head is None:
            return
        count, width = head.shape
        columns = self._line(width, min(width, _COLUMNS), head)
        rows = self._line(count, min(count, _ELEMENTS // len(columns), max(_COLUMNS, _MOST_READ // head.width)), head)
        taken.tensors["output"] = block = head.block(rows, columns)
        taken.rows["output"], taken.precision = len(rows), head.precision
        saved, difference = found.saved, found.difference
        if saved is not None and found.kind == "cross_entropy" and _alike(saved, (count, width), dimensions=2):
            taken.tensors["log_partition"] = block.select(1, 0) - saved.select(1, 0).index_select(0, rows)
        elif difference is not None and _alike(difference, (count, width)):
            here = difference.view(count, width).index_select(0, rows).index_select(1, columns)
            taken.tensors["difference"], taken.rows["difference"] = here, len(rows)

    def _sample(self, name: str, tensor: torch.Tensor | None, taken: _Taken) -> None:
        if tensor is None or not _readable(tensor):
            return
        key = (tensor.shape, tensor.stride(), tensor.device)
        grid = self._grids.get(key)
        if grid is None:
            if len(self._grids) >= MOST_GRIDS:
                self._grids.clear()
            grid = self._grids[key] = _grid(tuple(tensor.shape), tensor.stride(), tensor.device)
        taken.tensors[name] = tensor.as_strided((grid.extent,), (1,)).index_select(0, grid.index)
        taken.rows[name] = grid.rows

    def _line(self, size: int, count: int, head: Head | Kept) -> torch.Tensor:
        device = head.inputs.device if isinstance(head, Head) else head.result.device
        key = (size, count, device)
        if key not in self._lines:
            if len(self._lines) >= MOST_GRIDS:
                self._lines.clear()
            self._lines[key] = to_device(torch.from_numpy(spread(size, count)), device)
        return self._lines[key]

    # -- on the host

    def read(self, parameters: tuple[Site, ...], modules: tuple[Site, ...]) -> Reading:
        taken, elements, sites = dict(self._taken), dict(self._elements), len(self._sites)
        labels = {place: self._labels[place].end_step() for place in sorted(self._labelled)}
        names = [(place, name) for place, each in taken.items() for name in each.tensors]
        tensors = [taken[place].tensors[name] for place, name in names]
        tensors += [tensor for both in labels.values() for tensor in both]
        scale_seen = self._pulses.scale_seen
        self._forget()
        if self._steps >= max(self._due, LOGITS_DENSE):
            self._due = self._steps + LOGITS_EVERY

        def columns(arrays: Sequence[Array]) -> dict[str, Array]:
            table = np.full((len(_NAMES), sites), np.nan, dtype=np.float32)
            shown: dict[int, dict[str, Array]] = {place: {} for place in taken}
            for (place, name), array in zip(names, arrays, strict=False):
                shown[place][name] = array
            counted = arrays[len(names) :]
            for place, each in taken.items():
                values = _numbers(each, shown[place], scale_seen=scale_seen)
                values["target_count"] = float(elements.get(place, math.nan))
                if place in labels:
                    at = 2 * list(labels).index(place)
                    values |= _label_numbers(counted[at], counted[at + 1])
                table[:, place] = [values.get(name, math.nan) for name in _NAMES]
            return {f"loss.{name}": row for name, row in zip(_NAMES, table, strict=True)}

        return Reading(tuple(tensors), columns)


def _numbers(taken: _Taken, shown: Mapping[str, Array], *, scale_seen: bool) -> dict[str, float]:
    values = {"weight": _weight(taken, shown, scale_seen=scale_seen)}
    output = _rows(taken, shown, "output")
    if output is not None:
        mean, rms, signal = _moments(output)
        values |= {"input_mean": mean, "input_rms": rms, "input_signal": signal}
    target = _target(taken, shown, output)
    if target is not None:
        values |= _target_numbers(target)
    if "log_partition" in shown:
        values["log_partition"] = _or_infinite(float(np.abs(shown["log_partition"]).sum()) / len(shown["log_partition"]))
    return values


def _weight(taken: _Taken, shown: Mapping[str, Array], *, scale_seen: bool) -> float:
    weight = taken.found_factor
    for i, (inverse, may_be_scale) in enumerate(taken.inverse):
        scale = float(shown[f"scale{i}"].reshape(()))
        if not (may_be_scale and is_loss_scale(scale, seen=scale_seen)):
            weight = weight * scale if not inverse else (weight / scale if scale else math.nan)
    if taken.reduction == "sum" and any(abs(weight * count - 1) < 1e-3 for count in taken.counts if count > 1):
        return 1.0  # a sum divided by the number of its terms
    return weight


def _rows(taken: _Taken, shown: Mapping[str, Array], name: str) -> _Table | None:
    return shown[name].astype(np.float64).reshape(taken.rows[name], -1) if name in shown else None


def _target(taken: _Taken, shown: Mapping[str, Array], output: _Table | None) -> _Table | None:
    """The target as it was saved, or what is left of the output once the difference is taken off; None where none is known."""
    target = _rows(taken, shown, "target")
    difference = _rows(taken, shown, "difference")
    if target is not None or output is None or difference is None or not np.isfinite(output).all():
        return target
    target = output - taken.sign * difference
    error = 8 * taken.precision * float(np.abs(output).max())
    finite = target[np.isfinite(target)]
    rms = math.sqrt(float(np.square(finite).mean())) if finite.size else math.inf
    return None if error > max(1e-3, rms / 100) else target  # a sixteen-bit output, or a huge one, drowns its target


def _target_numbers(target: _Table) -> dict[str, float]:
    mean, rms, signal = _moments(target)
    values = {"target_mean": mean, "target_rms": rms, "target_signal": signal, "target_nonfinite": 0.0}
    finite = np.isfinite(target)
    if not finite.all():
        values["target_nonfinite"] = 1.0 - float(finite.mean())
        target = target[finite]
    low, high = (float(target.min()), float(target.max())) if target.size else (math.inf, math.inf)
    return values | {"target_low": low, "target_high": high}


def _label_numbers(counts: Array, totals: Array) -> dict[str, float]:
    here, seen = (entropy(float(count), float(total)) for count, total in zip(counts, totals, strict=True))
    return {"target_count": float(counts[0]), "label_entropy": here, "label_entropy_seen": seen}


def _moments(values: _Table) -> tuple[float, float, float]:
    """Mean, rms and signal of the finite elements of [batch, features]; infinite where there are none."""
    total = float(values.sum())
    if not math.isfinite(total):
        finite = np.isfinite(values)
        if not finite.any():
            return math.inf, math.inf, math.inf
        values = np.where(finite, values, 0.0)
        total = float(values.sum())
    flat, rows = values.reshape(-1), len(values)
    rms = math.sqrt(float(flat @ flat) / flat.size)
    if rows < 2:
        return total / flat.size, rms, math.nan
    deviation = (values - values.sum(0) / rows).reshape(-1)
    return total / flat.size, rms, math.sqrt(float(deviation @ deviation) / (flat.size * (rows - 1) / rows))


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _grid(shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device) -> _Grid:
    """Some features of some of the batch, its first dimension, in the order [batch][feature]."""
    batch = shape[0] if shape else 1
    features = math.prod(shape[1:])
    wide = min(features, _COLUMNS)
    rows = min(batch, _ELEMENTS // wide)
    where = np.unravel_index(spread(features, wide), shape[1:] or (1,))
    offsets = sum((w * stride for w, stride in zip(where, strides[1:], strict=False)), start=np.zeros(wide, dtype=np.int64))
    index = (spread(batch, rows) * (strides[0] if strides else 0))[:, None] + offsets
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return _Grid(to_device(torch.from_numpy(index.reshape(-1).astype(np.int64)), device), rows, extent)


def _alike(tensor: torch.Tensor, shape: tuple[int, int], *, dimensions: int | None = None) -> bool:
    same = tensor.numel() == shape[0] * shape[1] and tensor.is_contiguous()
    return same and (dimensions is None or (tensor.dim() == dimensions and tuple(tensor.shape) == shape))


def _readable(tensor: torch.Tensor) -> bool:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return plain and not tensor.is_meta and not tensor.is_complex() and tensor.numel() > 0
