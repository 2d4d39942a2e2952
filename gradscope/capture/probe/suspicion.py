"""When a step is worth replaying: cheap signs, all on the host already, that steps may be too long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import numpy as np

from gradscope.capture.probe.foresight import Ahead
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.records import Site
from gradscope.trends import Mask
from gradscope.trends import median_of

LONG_STEP = 0.1  # update ratio of the median matrix
RISE = 0.5  # of the loss over the highest so far, in shares of the first
JUMP = 3.0  # times that the gradient norm grew
HIGH_START = 3.0  # times the loss of the best constant prediction
LARGE_INPUT = 3.0  # root mean square of a batch
DEEP = 6  # residual additions without any normalisation, or
DEEP_PLAIN = 10  # matrix layers
LOOSER = 0.5  # what is told ahead counts from this share of a limit: it is of fewer elements, or of others
_REMEMBERED = 16


@final
class Suspicion:
    """Hears of frames and pulses as they reach the host, and says whether a step should be looked into."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._ratio = math.nan
        self._input = math.nan
        self._sites: tuple[Site, ...] | None = None  # of parameters, for which was worked out
        self._parameters: tuple[ParameterInfo, ...] | None = None
        self._counted: Mask = np.zeros(0, dtype=bool)  # which of them are matrices that are not zero from the start

    def frame(self, frame: Frame, info: RunInfo) -> None:
        if frame.schema.parameters is not self._sites or info.parameters is not self._parameters:
            self._sites, self._parameters = frame.schema.parameters, info.parameters
            matrices = {p.name for p in info.parameters if len(p.shape) >= 2 and not p.zero_at_start}
            self._counted = np.array([site.path in matrices for site in self._sites], dtype=bool)
        self._ratio = median_of(frame.columns["update.ratio"][self._counted])
        self._input = median_of(frame.columns["input.rms"])

    def pulse(self, row: tuple[float, ...]) -> None:
        if len(self._losses) < _REMEMBERED:
            self._losses.append(row[PULSE_FIELDS.index("loss")])
            self._norms.append(row[PULSE_FIELDS.index("gradient_norm")])

    @property
    def long_step(self) -> bool:
        """Whether the last step that is known moved the median matrix by a tenth of its norm or more."""
        return self._ratio >= LONG_STEP

    def early(self, info: RunInfo, *, structure: bool) -> bool:
        """Whether the numbers of the first steps look like trouble, or, if wanted, what is known of model, loss and input."""
        odd = structure and _is_off(info, self._losses, self._input)
        return self.long_step or _rose(self._losses) or _jumped(self._norms) or odd

    def may_come(self, ahead: Ahead | None, info: RunInfo, *, structure: bool) -> bool:
        """Whether ``early`` may hold, or an alarm come, once the step is made of which this is known; None: nothing more."""
        if ahead is None or self.early(info, structure=structure):
            return self.early(info, structure=structure)
        if not (math.isfinite(ahead.loss) and math.isfinite(ahead.gradient_norm)):
            return True
        losses, norms = [*self._losses, ahead.loss], [*self._norms, ahead.gradient_norm]
        large = ahead.input_rms > LOOSER * LARGE_INPUT
        odd = structure and (large or _is_off(info, losses, self._input))
        return ahead.update_ratio >= LOOSER * LONG_STEP or _rose(losses) or _jumped(norms) or odd


def _rose(losses: Sequence[float]) -> bool:
    return len(losses) > 1 and losses[-1] > max(losses[:-1]) + RISE * abs(losses[0])


def _jumped(norms: Sequence[float]) -> bool:
    return len(norms) > 1 and norms[-1] > JUMP * max(norms[:-1])


def _is_off(info: RunInfo, losses: Sequence[float], size: float) -> bool:
    """Whether input (of this root mean square), loss or model are such that a fault is likely."""
    wiring = info.wiring
    if wiring is None or size > LARGE_INPUT:
        return size > LARGE_INPUT
    known = wiring.losses[0].baseline if len(wiring.losses) == 1 else None
    high = bool(known and losses and losses[0] > HIGH_START * known)
    summed = any(loss.reduction == "sum" for loss in wiring.losses)
    return high or summed or (not wiring.norms and (wiring.residual_additions >= DEEP or _layers(info) >= DEEP_PLAIN))


def _layers(info: RunInfo) -> int:
    return sum(module.role in ("linear", "conv") for module in info.modules)
