"""Recognises the training loss, gradient norm and learning rate among the scalars of other tools, by their usual names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gradscope.records import PULSE_FIELDS

Series = Mapping[int, float]  # value by step

_PLACE = {"train", "training", "trainer", "model", "step", "batch", "iter", "iteration", "epoch"}
_AMOUNT = {"total", "global", "overall", "all", "running", "avg", "average", "mean", "smoothed"}
_LOSS = {"loss", "losses"}
_RATE = {"lr", "learning", "rate", "learningrate"}
_GRADIENT = {"grad", "grads", "gradient", "gradients", "gradnorm", "gnorm"}
_NORM = {"norm", "norms", "gradnorm", "gnorm", "l2", "2", "0"}
_OPTIMIZERS = {"adam", "adamw", "sgd", "rmsprop", "adagrad", "lion", "muon", "adafactor", "optim", "optimizer", "scheduler"}
_GROUPS = {"group", "groups", "param", "pg", "pg1", "0", "1"}

_KNOWN = _PLACE | _AMOUNT | _LOSS | _RATE | _GRADIENT | _NORM | _OPTIMIZERS | _GROUPS
_WORD = re.compile(r"[A-Za-z0-9]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")  # of a word in camel case


def field_of(tag: str) -> str | None:
    """The pulse field ("loss", "gradient_norm" or "learning_rate") that a scalar of this name looks like, or None."""
    words = {part for word in _WORD.findall(tag) for part in _parts(word)}
    if words & _LOSS and words <= _LOSS | _PLACE | _AMOUNT:
        return "loss"
    if words & _GRADIENT and words & _NORM and words <= _GRADIENT | _NORM | _PLACE | _AMOUNT:
        return "gradient_norm"
    if words & {"lr", "learningrate"} or {"learning", "rate"} <= words:
        return "learning_rate" if words <= _RATE | _PLACE | _OPTIMIZERS | _GROUPS else None
    return None


def _parts(word: str) -> list[str]:
    return [word.lower()] if word.lower() in _KNOWN else [part.lower() for part in _PART.findall(word)]


def choose(series: Mapping[str, Series]) -> dict[str, str]:
    """The tag to use for each field: the one with most points, of these the one with the shortest name."""
    ranked = sorted(series, key=lambda tag: (-len(series[tag]), len(tag), tag))
    chosen: dict[str, str] = {}
    for tag in ranked:
        field = field_of(tag)
        if field is not None:
            chosen.setdefault(field, tag)
    return chosen


def pulses_of(chosen: Mapping[str, Series]) -> npt.NDArray[np.float64]:
    """Pulses from the series of each field: a row for every step at which any of them has a point."""
    steps = sorted(set().union(*chosen.values()))
    rows = np.full((len(steps), len(PULSE_FIELDS)), np.nan)
    rows[:, PULSE_FIELDS.index("step")] = steps
    rows[:, [PULSE_FIELDS.index(name) for name in ("backwards", "sampled", "foreign")]] = 0
    place = {step: row for row, step in enumerate(steps)}
    for field, series in chosen.items():
        index = [place[step] for step in series]
        values = np.array(list(series.values()), dtype=np.float64)
        if field == "loss":
            rows[index, PULSE_FIELDS.index("backwards")] = 1
        else:
            values[np.isnan(values)] = np.inf  # NaN would say that it was not captured
        rows[index, PULSE_FIELDS.index(field)] = values
    return rows
