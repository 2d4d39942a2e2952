"""Log directories for the page to show: recorded faults, small and large, and names that try to be markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradscope.logdir.recorder import Recorder
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.timeline import Timeline
from tests import timelines
from tests.recorded import record
from tests.tensorboard import samples

BLOCKS = 8
BREAKS = 60  # the first step at which the stack is not finite
GAP = 50  # the step at which sampling goes on in a run that has a gap
MAGNITUDES = frozenset(("rms", "absmax", "signal", "norm", "ratio"))


def stack(folder: Path) -> Path:
    """A stack of blocks that keeps its old gradients: scales that fall with depth, and no finite number from BREAKS on."""
    parts = [
        part
        for block in range(BLOCKS)
        for part in (
            timelines.linear(f"blocks.{block}.expand", 16, 32, activation="relu"),
            timelines.module(f"blocks.{block}.act", "ReLU", "activation"),
            timelines.linear(f"blocks.{block}.contract", 32, 16),
        )
    ]
    net = sum(parts, timelines.Net((), ()))
    depth = np.arange(len(net.modules))

    def scale(step: int) -> np.ndarray:
        return np.where(step >= BREAKS, 0.0, 10.0 ** (-depth / 4))  # of what is finite: nothing

    def shares(step: int) -> float:
        return float(step >= BREAKS)

    timeline = timelines.build(
        net,
        columns={
            "activation.rms": scale,
            "activation.signal": scale,
            "activation.nonfinite": shares,
            "activation_gradient.rms": lambda step: 10.0 ** (depth / 4 - 8),
            "weight_gradient.carried": 1.0,
        },
        pulses={"loss": lambda step: 2.3 if step < BREAKS else np.nan},
    )
    return write(folder, timeline)


def write(folder: Path, timeline: Timeline, *, lowest: int = 44) -> Path:
    """The run as a scope would leave it, with histograms in its first frames, whose lowest bin is given."""
    recorder = Recorder(folder / "gradscope")
    recorder.info(timeline.info)
    for index, frame in enumerate(timeline.frames):
        recorder.frame(with_histograms(frame, index, lowest) if index < 10 else frame, {})
    recorder.pulses(samples.pulse_rows(timeline))
    recorder.close()
    return folder


def with_histograms(frame: Frame, index: int, lowest: int) -> Frame:
    """Every site's elements in two bins, and in one more each time."""
    shares = np.zeros((len(frame.schema.modules), HISTOGRAM_BINS), dtype=np.float32)
    shares[:, lowest : lowest + 2 + index % 4] = 1 / (2 + index % 4)
    return Frame(frame.step, frame.schema, frame.columns, {"activation": shares})


def healthy(folder: Path) -> Path:
    return write(folder, timelines.build())


def hostile(folder: Path, markup: str) -> Path:
    """A run whose modules, model and notes bear markup for names."""
    net = timelines.linear(markup, 16, 4)
    columns = {"weight_gradient.carried": 1.0}
    record(folder, timelines.build(net, columns=columns, pulses={"loss": 2.3}, notes=(markup,)))
    return folder


def various(folder: Path) -> Path:
    """A run that has all six statistics, whose scale falls by a decade a module, sampled twice with a gap between."""
    net = timelines.linear("a", 8, 8, activation="relu") + timelines.module("b", "ReLU", "activation")
    net += timelines.linear("c", 8, 8, activation="tanh") + timelines.module("d", "Tanh", "activation")
    net += timelines.linear("e", 8, 4)
    timeline = timelines.build(
        net,
        steps=(*range(10), *range(GAP, GAP + 10)),
        total=100,
        columns={
            "activation.rms": 10.0 ** -np.arange(5),
            "activation_gradient.rms": 10.0 ** (np.arange(5) - 6),
            "activation.active_low": {"a": 0x00FF},
            "activation.active_high": {"a": 0},
            "activation.saturated": {"d": 0.25},
            "update.ratio": {"c.weight": 0.0},
            "activation.nonfinite": {"e": lambda step: 0.5 if step >= GAP else 0.0},
        },
    )
    return write(folder, timeline)


def plain(folder: Path) -> Path:
    """A run without units that could be dead, and with larger histograms than the others'."""
    return write(folder, timelines.build(timelines.linear("only", 8, 4)), lowest=20)


def deep(folder: Path) -> Path:
    """A net of more rows than are seen at once, whose cause lies in its first layers."""
    return write(
        folder, timelines.build(timelines.mlp(*(8,) * 32), columns={"weight_gradient.carried": 1.0}, pulses={"loss": 2.3})
    )


def large(folder: Path, *, modules: int = 500, steps: int = 20_000, sampled: int = 1000) -> Path:
    """A long run of a large model, with every column that a scope records."""
    paths = [f"model.stage{index // 100}.block{index // 10 % 10}.layer{index % 10}" for index in range(modules)]
    layers = [
        timelines.module(path, "ReLU", "activation") if index % 2 else timelines.linear(path, 16, 16, activation="relu")
        for index, path in enumerate(paths)
    ]
    at = range(0, steps, steps // sampled)
    timeline = timelines.build(sum(layers, timelines.Net((), ())), steps=at, total=steps)
    rng = np.random.default_rng(0)
    frames = [replace(frame, columns=_scattered(frame.columns, rng)) for frame in timeline.frames]
    return write(folder, Timeline(timeline.info, frames, samples.pulse_rows(timeline)))


def _scattered(columns: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """With magnitudes that are a little different in each place, as they are in a real run."""
    scattered = {}
    for name, values in columns.items():
        noise = np.exp(rng.standard_normal(len(values), dtype=np.float32) / 10)
        scattered[name] = values * noise if name.rpartition(".")[2] in MAGNITUDES else values
    return scattered
