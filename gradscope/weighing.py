"""A loss whose weight is changed in the midst of a run: by how much, and from which step on."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

LEAST_CHANGE = 3.0  # times, of a weight; the noise of batches hides less
MOST_CHANGES = 4  # in a run, above which a weight is no setting but a number that comes with each batch
AGREEMENT = 0.5  # of the logarithm of the change, by which the loss's own jump may differ from it


def changes(steps: Steps, losses: Floats, sampled: Steps, weights: npt.NDArray[np.floating]) -> list[tuple[int, float]]:
    """From which steps on the loss counts how many times as much, as its weight on the sampled steps tells.

    A change counts only where the loss jumps along between the two readings: where it does not, something else has taken the
    weight back (a loss that is divided by the number of its terms), and what training minimises is the same as before.
    """
    known = np.isfinite(weights) & (weights > 0)
    found: list[tuple[int, float]] = []
    for (before, old), (after, new) in pairwise(zip(sampled[known], weights[known].astype(np.float64), strict=True)):
        by = math.log(new / old)
        if abs(by) < math.log(LEAST_CHANGE):
            continue
        step = _jump(steps, losses, (int(before), int(after)), by)
        if step is not None:
            found.append((step, float(new / old)))
    return found if len(found) <= MOST_CHANGES else []


def _jump(steps: Steps, losses: Floats, between: tuple[int, int], by: float) -> int | None:
    """The step, after the first reading and up to the second, whose loss is exp(``by``) times the one before, but for noise."""
    places = np.flatnonzero((steps > between[0]) & (steps <= between[1]))
    places = places[places > 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        jumps = np.log(losses[places] / losses[places - 1])
    near = np.where(np.isfinite(jumps), np.abs(jumps - by), np.inf)
    place = int(np.argmin(near)) if len(near) else -1
    return int(steps[places[place]]) if place >= 0 and near[place] <= AGREEMENT * abs(by) else None


def factors(steps: Steps, found: list[tuple[int, float]]) -> Floats:
    """What makes the numbers of each step into those that the weight of the end would have given."""
    scale = np.ones(len(steps))
    for step, by in found:
        scale[steps < step] *= by
    return scale
