"""One frame of all ranks from each rank's own: exact means, root mean squares, extremes and histograms of all that was sampled.

A rank samples as many elements of a tensor as any other, so that ranks weigh the same in what is a mean over elements. What
describes parameters is the same on every rank, and is taken from the first, but of parameters whose parts lie on different
ranks: there each rank's norm estimates the whole's, and the root of the mean of their squares is that of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from gradscope.capture.ranks import apart
from gradscope.capture.ranks.apart import Apart
from gradscope.capture.ranks.packing import Packer
from gradscope.capture.ranks.packing import Sums
from gradscope.capture.ranks.packing import Unpacker
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import STATISTICS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.trends import Mask

Way = Literal["mean", "square", "norm", "high", "low", "bits"]
_BITS = 16

# How the numbers of the ranks make one; what is not here is the first rank's.
_OF_SITES: Mapping[str, Mapping[str, Way]] = {
    "input": {"mean": "mean", "rms": "square", "absmax": "high", "signal": "square", "nonfinite": "mean", "repeated": "low"},
    "activation": {
        "mean": "mean", "rms": "square", "absmax": "high", "signal": "square", "nonfinite": "mean", "zero": "mean",
        "saturated": "mean", "active_low": "bits", "active_high": "bits",
    },
    "activation_gradient": {
        "rms": "square", "absmax": "high", "nonfinite": "mean", "zero": "mean", "time_growth": "mean", "time_steps": "mean",
    },
    "loss": {
        "input_mean": "mean", "input_rms": "square", "input_signal": "square", "target_mean": "mean", "target_rms": "square",
        "target_low": "low", "target_high": "high", "target_signal": "square", "target_nonfinite": "mean",
        "target_count": "mean", "label_entropy": "mean", "label_entropy_seen": "mean", "log_partition": "mean",
    },
    "attention": {"logit_max": "high", "entropy": "mean"},
}  # fmt: skip
_OF_SPLIT: Mapping[str, Mapping[str, Way]] = {
    "weight": {"norm": "norm", "nonfinite": "high", "row_spread": "mean"},
    "weight_gradient": {
        "norm": "norm", "nonfinite": "high", "absmax": "high", "zero": "mean", "row_spread": "mean", "carried": "high",
    },
    "update": {
        "ratio": "square", "unchanged": "mean", "outside_change": "square", "outside_factor": "mean",
        "outside_residual": "mean", "second_moment_ratio": "square", "epsilon_share": "mean",
    },
}  # fmt: skip
COMPARED = ("input", "activation", "activation_gradient")  # of whose sites the rank that stands apart is asked for
SAME_NORM = 1e-5  # by how much, relatively, the norms of two equal weights may differ: kernels sum in different orders


@dataclass(frozen=True)
class Form:
    """What of a frame travels: ranks that agree on it give vectors of the same length."""

    schema: Schema
    split: Mask  # [parameters], those whose parts lie on different ranks
    same: Mask  # [parameters], those that are to be the same on all
    histograms: bool

    @cached_property
    def digest(self) -> int:
        """A number below 2^60 that tells schemas apart. Goes through all of the sites."""
        return int.from_bytes(hashlib.blake2b(repr(self.schema).encode(), digest_size=8).digest(), "big") >> 4


def pack(packer: Packer, frame: Frame, form: Form) -> None:
    for kind, name, way, chosen in _places(form):
        _pack_column(packer, way, _column(frame, kind, name)[chosen])
    for kind in COMPARED:
        with np.errstate(divide="ignore"):
            apart.pack(packer, np.log10(_column(frame, kind, "rms")))
        _pack_nonfinite(packer, _column(frame, kind, "nonfinite"))
    apart.pack(packer, _column(frame, "weight", "norm")[form.same])
    for kind in _KINDS_OF_HISTOGRAMS if form.histograms else ():
        shares = frame.histograms.get(kind)
        empty = np.zeros((len(frame.schema.sites(kind)), HISTOGRAM_BINS), dtype=np.float32)
        held = empty if shares is None else shares
        packer.total(held)
        packer.total(held.sum(1) > 0)


def unpack(unpacker: Unpacker, frame: Frame, form: Form, ranks: int) -> Frame:
    """The frame of all ranks, from the first rank's own and what all came to."""
    columns = {name: held.copy() for name, held in frame.columns.items()}
    for kind, name, way, chosen in _places(form):
        found = _unpack_column(unpacker, way, int(chosen.sum()), ranks)
        _put(columns, form.schema, f"{kind}.{name}", chosen, found)
    for kind in COMPARED:
        _put_apart(columns, form.schema, kind, unpacker)
    _put_differing(columns, form, unpacker)
    histograms = {}
    for kind in _KINDS_OF_HISTOGRAMS if form.histograms else ():
        count = len(form.schema.sites(kind))
        total, there = unpacker.total(count * HISTOGRAM_BINS).reshape(count, -1), unpacker.total(count)
        if there.any():
            histograms[kind] = (total / np.maximum(there, 1)[:, None]).astype(np.float32)
    return Frame(frame.step, frame.schema, columns, histograms)


def with_loss_apart(frame: Frame, found: Apart) -> Frame:
    """A frame with the rank whose mean loss since the last exchange stands furthest from the others'."""
    parts = {"loss_apart": found.distance, "loss_apart_rank": found.rank, "loss_apart_spread": found.spread}
    columns = {f"step.{name}": values.astype(np.float32) for name, values in parts.items()}
    return Frame(frame.step, frame.schema, {**frame.columns, **columns}, frame.histograms)


_KINDS_OF_HISTOGRAMS = COMPARED


def _places(form: Form) -> list[tuple[str, str, Way, Mask]]:
    everywhere = [
        (kind, name, way, np.ones(len(form.schema.sites(kind)), dtype=bool))
        for kind, ways in _OF_SITES.items()
        for name, way in ways.items()
    ]
    split = [(kind, name, way, form.split) for kind, ways in _OF_SPLIT.items() for name, way in ways.items()]
    return everywhere + split if form.split.any() else everywhere


def _column(frame: Frame, kind: str, name: str) -> Array:
    held = frame.columns.get(f"{kind}.{name}")
    return np.full(len(frame.schema.sites(kind)), np.nan, dtype=np.float32) if held is None else held


def _pack_column(packer: Packer, way: Way, values: Array) -> None:
    if way in ("mean", "square", "norm"):
        wide = values.astype(np.float64)
        packer.mean(wide if way == "mean" else wide**2)
    elif way == "high":
        packer.high(values)
    elif way == "low":
        packer.low(values)
    else:
        there = ~np.isnan(values)
        whole = np.where(there, values, 0).astype(np.int64)
        packer.total(there)
        packer.total((whole[:, None] >> np.arange(_BITS)) & 1)


def _unpack_column(unpacker: Unpacker, way: Way, count: int, ranks: int) -> Sums:
    if way == "mean":
        return unpacker.mean(count)
    if way == "square":
        return np.sqrt(unpacker.mean(count))
    if way == "norm":  # of the whole: a rank that holds no part of it adds nothing
        total, there = unpacker.total(count), unpacker.total(count)
        return np.where(there > 0, np.sqrt(total / ranks), np.nan)
    if way == "high":
        return unpacker.high(count)[0]
    if way == "low":
        return unpacker.low(count)[0]
    there = unpacker.total(count)
    bits = unpacker.total(count * _BITS).reshape(count, _BITS) > 0
    return np.where(there > 0, bits @ (2.0 ** np.arange(_BITS)), np.nan)


def _pack_nonfinite(packer: Packer, shares: Array) -> None:
    packer.total(shares > 0)
    packer.high(np.where(shares > 0, shares, np.float32(np.nan)))


def _put(columns: dict[str, Array], schema: Schema, name: str, chosen: Mask, found: Sums) -> None:
    """Put numbers into a column; one that no rank has and that was not there stays away."""
    if name not in columns and bool(np.isnan(found).all()):
        return
    kind = name.partition(".")[0]
    column = columns.setdefault(name, np.full(len(schema.sites(kind)), np.nan, dtype=np.float32))
    column[chosen] = found


def _put_apart(columns: dict[str, Array], schema: Schema, kind: str, unpacker: Unpacker) -> None:
    count = len(schema.sites(kind))
    found = apart.unpack(unpacker, count)
    broken, (_, first) = unpacker.total(count), unpacker.high(count)
    parts = {
        "apart": found.distance,
        "apart_rank": found.rank,
        "apart_spread": found.spread,
        "broken_ranks": broken,
        "broken_rank": first,
    }
    columns.update({f"{kind}.{name}": values.astype(np.float32) for name, values in parts.items() if name in STATISTICS[kind]})


def _put_differing(columns: dict[str, Array], form: Form, unpacker: Unpacker) -> None:
    """Where the norms of weights that should be equal are not, and the rank whose is furthest off."""
    same = form.same
    found = apart.unpack(unpacker, int(same.sum()))
    norm = columns.get("weight.norm")
    if norm is None or bool(np.isnan(norm).all()):
        return
    off = np.full(len(same), np.nan, dtype=np.float32)
    rank = off.copy()
    off[same] = np.abs(found.distance)
    rank[same] = found.rank
    with np.errstate(all="ignore"):
        relative = off / np.maximum(norm, np.float32(1e-30))
    columns["weight.ranks_apart"] = np.where(relative > SAME_NORM, relative, relative * 0).astype(np.float32)
    columns["weight.ranks_apart_rank"] = np.where(relative > SAME_NORM, rank, np.float32(np.nan)).astype(np.float32)
