"""The curves that TensorBoard's own Scalars and Custom Scalars show of a run, some twenty in all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Site
from gradscope.trends import median_of

POINTS = 100  # for each e-fold of the length of a run; TensorBoard keeps a thousand of a curve
_SPIKE = 3.0  # times the loss beside it that makes a step be drawn instead
_FROM_PULSES = ("loss", "gradient_norm", "learning_rate")
_LOSS = PULSE_FIELDS.index("loss")


@final
class Curves:
    """Turns pulses and frames into points. Keeps what it needs to thin the one and to name the sites of the other."""

    def __init__(self) -> None:
        self._highest: npt.NDArray[np.float64] | None = None  # the pulse with the highest loss since the last point
        self._last = -1.0
        self._next_frame = 0  # the first step whose frame is drawn next
        self._seconds = 0.0
        self._own_seconds = 0.0
        self._rectified: frozenset[str] = frozenset()  # modules whose output goes through a ReLU, or came out of one
        self._matrices: frozenset[str] = frozenset()

    def learn(self, info: RunInfo) -> None:
        """Which sites the shares of dead units and the update ratios are of."""
        self._rectified = frozenset(m.path for m in info.modules if m.activation == "relu" or m.type == "ReLU")
        self._matrices = frozenset(p.name for p in info.parameters if len(p.shape) >= 2 and not p.zero_at_start)

    def of_pulses(self, rows: npt.NDArray[np.float64]) -> Iterator[tuple[int, dict[str, float]]]:
        """Points of every step at first, then of ever fewer; where the loss spiked in between, of that step."""
        for row in rows:
            self._seconds += row[PULSE_FIELDS.index("seconds")]
            self._own_seconds += row[PULSE_FIELDS.index("own_seconds")]
            if self._highest is None or _height(row) > _height(self._highest):
                self._highest = row.copy()
            if row[0] >= self._last + max(1.0, row[0] // POINTS):
                yield self._point(row, self._highest)

    def _point(self, last: npt.NDArray[np.float64], highest: npt.NDArray[np.float64]) -> tuple[int, dict[str, float]]:
        self._last, self._highest = float(last[0]), None
        row = last if abs(highest[_LOSS]) <= _SPIKE * abs(last[_LOSS]) else highest
        pulse = dict(zip(PULSE_FIELDS, map(float, row), strict=True))
        points = {f"gradscope/{name}": pulse[name] for name in _FROM_PULSES if not np.isnan(pulse[name])}
        if pulse["backwards"] > 0:
            points["gradscope/loss"] = pulse["loss"]  # also where it is NaN: TensorBoard marks it
        if self._seconds > self._own_seconds:
            points["gradscope/overhead"] = self._own_seconds / (self._seconds - self._own_seconds)
        return int(row[0]), points

    def of_frame(self, frame: Frame) -> dict[str, float]:
        """The points of one sampled step; of ever fewer, as with pulses, and none in between."""
        if frame.step < self._next_frame:
            return {}
        self._next_frame = frame.step + max(1, frame.step // POINTS)
        ratios = _of(frame.columns["update.ratio"], frame.schema.parameters, self._matrices)
        points = {"gradscope/update_ratio_median": median_of(ratios), "gradscope/update_ratio_max": _largest(ratios)}
        for kind, label in (("activation", "activation_rms"), ("activation_gradient", "gradient_rms")):
            for place, value in _over_depth(frame.columns[f"{kind}.rms"]).items():
                points[f"gradscope/{label}_{place}"] = value
        inactive = _of(_inactive_share(frame), frame.schema.modules, self._rectified)
        points["gradscope/dead_share_max"] = _largest(inactive)
        points["gradscope/saturated_share_max"] = _largest(frame.columns["activation.saturated"])
        points["gradscope/nonfinite"] = _largest(frame.columns["activation.nonfinite"])
        return {tag: value for tag, value in points.items() if not np.isnan(value)}


def _height(row: npt.NDArray[np.float64]) -> float:
    """How high a pulse's loss is; what is not finite is higher than all."""
    height = abs(float(row[_LOSS]))
    return float("inf") if math.isnan(height) else height


def _of(values: Array, sites: tuple[Site, ...], wanted: frozenset[str]) -> Array:
    return values[[site.path in wanted for site in sites]]


def _over_depth(values: Array) -> dict[str, float]:
    seen = values[~np.isnan(values)]
    return {"first": float(seen[0]), "middle": float(seen[len(seen) // 2]), "last": float(seen[-1])} if len(seen) else {}


def _inactive_share(frame: Frame) -> Array:
    """Share of each site's sampled units with no element above zero in this frame."""
    low, high = frame.columns["activation.active_low"], frame.columns["activation.active_high"]
    bits = np.nan_to_num(low).astype(np.int64) | (np.nan_to_num(high).astype(np.int64) << 16)
    active = ((bits[:, None] >> np.arange(32)) & 1).sum(axis=1)
    return np.where(np.isnan(low), np.nan, 1 - active / 32).astype(np.float32)


def _largest(values: Array) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.max()) if len(seen) else float("nan")
