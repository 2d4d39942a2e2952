"""What the weights of losses tell: a change in the midst of a run, and what several losses come to together."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.records import RunInfo

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

LEAST_CHANGE = 3.0  # times, of a weight; the noise of batches hides less
MOST_CHANGES = 4  # in a run, above which a weight is no setting but a number that comes with each batch
AGREEMENT = 0.5  # of the logarithm of the change, by which the loss's own jump may differ from it
SAMPLING = 1.5  # what the error of sampled elements may come to
MOST_DEVIATIONS = 10.0  # of the logits, that a cross-entropy may lie above ln C
FIRST_BATCHES = 10  # sampled ones, whose targets tell what a constant prediction has
LEAST_SPREAD = 1e-3  # standard deviation over rms, below which float32 cannot tell it from rms and mean
ALL_BUT_ONE = 0.01  # from 1, that the weights of the parts of a mean add up to


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


def in_a_step(weights: npt.NDArray[np.floating], backwards: Floats, info: RunInfo) -> Floats:
    """By how much losses count in the loss of a step, from their ``weights`` in what ``backward()`` was called on.

    Where the losses of a step's backward calls add up, each is a part of one mean; a sum is one over the terms of all calls.
    """
    means = not any(loss.reduction == "sum" for loss in (info.wiring.losses if info.wiring else ()))
    calls = middles.median(backwards) if info.losses_add_up and means and len(backwards) else 1.0
    return weights.astype(np.float64) * calls


def of_all(weights: npt.NDArray[np.floating], first: float, *, alike: bool) -> float:
    """How many times the first loss's level all the losses of a step have together; 1 for one alone, NaN where not known.

    ``weights`` is [sampled steps, losses]. Of losses that are not alike, squared errors say, that is known only where they are
    the parts of one mean, whose weights add up to 1: the others have targets of their own.
    """
    known = np.isfinite(weights)
    if weights.shape[1] < 2 or not known.any() or not first > 0:
        return 1.0
    whole = middles.median(np.where(known, weights, 0.0)[known.any(axis=1)].sum(axis=1, dtype=np.float64))
    return whole / first if alike or abs(whole - 1) < ALL_BUT_ONE else float("nan")


def most_of_mean(kind: str, classes: int | None, output: float, target: float) -> float:
    """The most that a loss can be as a mean, by the root mean squares of what it compares; infinite where not known."""
    guess = math.log(classes or 1)
    most = {"mse": (output + target) ** 2, "l1": output + target, "cross_entropy": guess + MOST_DEVIATIONS * output}
    limit = most.get(kind, math.inf)
    return SAMPLING * limit if math.isfinite(limit) else math.inf


def usual_variance(means: npt.NDArray[np.floating], rms: npt.NDArray[np.floating], weights: npt.NDArray[np.floating]) -> float:
    """Median variance of the targets of the first sampled batches, by weight where several losses are the parts of one mean.

    All are [sampled steps, losses]; 0 where it cannot be told.
    """
    weights = weights if weights.shape[1] > 1 else np.ones_like(means)
    known = (np.isfinite(means) & np.isfinite(rms) & (weights > 0)).all(axis=1)
    mean, whole, weight = (x[known][:FIRST_BATCHES].astype(np.float64) for x in (means, rms, weights))
    with np.errstate(over="ignore", invalid="ignore"):
        variances = whole**2 - mean**2
        told = np.isfinite(variances) & (variances > (LEAST_SPREAD * whole) ** 2)
    whole_weight = middles.median(weight.sum(axis=1)) if told.size and weight.shape[1] > 1 else 1.0
    if not told.size or not told.all() or abs(whole_weight - 1) >= ALL_BUT_ONE:
        return 0.0
    return middles.median((weight * variances).sum(axis=1) / weight.sum(axis=1))
