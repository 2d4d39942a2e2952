"""Small runs to write and read back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from gradscope.logdir.framing import framed
from gradscope.logdir.reader import EventDirectory
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from gradscope.records import Frame
from gradscope.records import ModuleInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site

SCHEMA = Schema(
    inputs=(Site("x"),),
    modules=(Site("layers.0"), Site("layers.1"), Site("layers.0", 1)),
    parameters=(Site("layers.0.weight"), Site("layers.0.bias"), Site("layers.1.weight")),
)
OTHER_SCHEMA = Schema(modules=(Site("head"),), parameters=(Site("head.weight"),))
INFO = RunInfo(name="net", model="Net", modules=(ModuleInfo("layers.0", "Linear", "linear"),), started=1.5)
SCALARS = {"gradscope/loss": 0.5, "gradscope/gradient_norm": float("nan"), "gradscope/dead_share_max": 0.0}
COLUMNS = [f"{kind}.{statistic}" for kind in STATISTICS for statistic in STATISTICS[kind]]


def frame(step: int, *, schema: Schema = SCHEMA, histograms: bool = False) -> Frame:
    """A frame of all statistics with numbers that are its own."""
    rng = np.random.default_rng(step)
    columns = {name: rng.standard_normal(len(schema.sites(name.partition(".")[0]))).astype(np.float32) for name in COLUMNS}
    kinds = ("activation", "activation_gradient", "weight_gradient") if histograms else ()
    shares = {kind: rng.dirichlet(np.ones(HISTOGRAM_BINS), len(schema.sites(kind))).astype(np.float32) for kind in kinds}
    return Frame(step, schema, columns, shares)


def pulses(steps: Iterable[int], *, loss: float = 1.0) -> np.ndarray:
    rows = np.zeros((len(list(steps)), len(PULSE_FIELDS)))
    rows[:, PULSE_FIELDS.index("step")] = list(steps)
    rows[:, PULSE_FIELDS.index("loss")] = loss
    rows[:, PULSE_FIELDS.index("backwards")] = 1
    return rows


def assert_same_frame(found: Frame, expected: Frame) -> None:
    assert (found.step, found.schema) == (expected.step, expected.schema)
    assert set(found.columns) == set(expected.columns)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
    assert set(found.histograms) == set(expected.histograms)
    for kind, shares in expected.histograms.items():
        assert found.histograms[kind].dtype == np.float32
        np.testing.assert_array_equal(found.histograms[kind], shares.astype(np.float16).astype(np.float32))


def events_in(directory: Path) -> list[Event]:
    return [Event.FromString(payload) for _, payload in EventDirectory(directory).records()]


def values_in(directory: Path) -> list[Summary.Value]:
    return [value for event in events_in(directory) for value in event.summary.value]


def write_events(path: Path, events: Iterable[Event]) -> None:
    """An event file as another tool would leave it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(framed(event.SerializeToString()) for event in events))


def scalar_events(points: dict[str, dict[int, float]]) -> list[Event]:
    """Scalars as torch's SummaryWriter writes them."""
    return [
        Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
        for tag, series in points.items()
        for step, value in series.items()
    ]
