"""From what the processes of scripts/bench measured to its figures."""

from __future__ import annotations

import random
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from statistics import median

from bench_turns import Measured
from bench_turns import Pair
from bench_turns import Stretch

_RESAMPLES = 400
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Result:
    """One way on one case, as ratios to the bare training."""

    seconds: float = _UNKNOWN  # of the bare step
    median: float = _UNKNOWN  # of the processor's time for a step
    low: float = _UNKNOWN  # of the 90 % interval of that
    high: float = _UNKNOWN
    wall: float = _UNKNOWN  # of the median step on the wall
    mean: float = _UNKNOWN  # of all steps after the first ones, the processor's time
    told: float = _UNKNOWN  # what the way itself says of these
    first: float = _UNKNOWN  # of the first ones
    told_first: float = _UNKNOWN
    failure: str = ""


def result(sets: Sequence[Measured]) -> Result:
    failure = next((measured.failure for measured in sets if measured.failure), "")
    if failure:
        return Result(failure=failure)
    turns = [measured.turns for measured in sets]
    chance = random.Random(0)
    resampled = sorted(
        _ratio([chance.choices(some, k=len(some)) for some in turns], median, _processor) for _ in range(_RESAMPLES)
    )
    return Result(
        seconds=median(seconds for some in turns for pair in some for seconds in _processor(pair.bare)),
        median=_ratio(turns, median, _processor),
        low=resampled[round(0.05 * _RESAMPLES)],
        high=resampled[round(0.95 * _RESAMPLES) - 1],
        wall=_ratio(turns, median, _wall),
        mean=_ratio(turns, fmean, _all),
        told=1 + fmean(measured.told.later for measured in sets),
        first=_ratio([[measured.first] for measured in sets], fmean, _all),
        told_first=1 + fmean(measured.told.first for measured in sets),
    )


def _ratio(
    sets: Sequence[Sequence[Pair]],
    middle: Callable[[Iterable[float]], float],
    seconds: Callable[[Stretch], Sequence[float]],
) -> float:
    """Each set by itself, as where a process's memory lies makes both of its trainings faster or slower."""
    return fmean(
        middle(s for pair in turns for s in seconds(pair.watched)) / middle(s for pair in turns for s in seconds(pair.bare))
        for turns in sets
    )


def _processor(stretch: Stretch) -> Sequence[float]:
    return _warm(stretch.processor)


def _wall(stretch: Stretch) -> Sequence[float]:
    return _warm(stretch.wall)


def _all(stretch: Stretch) -> Sequence[float]:
    return stretch.processor


def _warm(steps: tuple[float, ...]) -> tuple[float, ...]:
    """Without a turn's first step, which finds the other training's memory in the caches; unless there is no other."""
    return steps[1:] or steps
