"""Log directories for the page to show: recorded faults, small and large, and names that try to be markup."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradscope.logdir.recorder import Recorder
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import ModuleInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.timeline import Timeline
from tests import timelines
from tests.recorded import record

BLOCKS = 8
BREAKS = 60  # the first step at which the stack is not finite
LAYERS = ("expand", "act", "contract")


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


def write(folder: Path, timeline: Timeline) -> Path:
    """The run as a scope would leave it, with histograms in its first frames."""
    recorder = Recorder(folder / "gradscope")
    recorder.info(timeline.info)
    for index, frame in enumerate(timeline.frames):
        recorder.frame(with_histograms(frame, index) if index < 10 else frame, {})
    recorder.pulses(np.column_stack([timeline.pulse(field) for field in PULSE_FIELDS]))
    recorder.close()
    return folder


def with_histograms(frame: Frame, index: int) -> Frame:
    """Every site's elements around 2^-4, in a bin more each time."""
    shares = np.zeros((len(frame.schema.modules), HISTOGRAM_BINS), dtype=np.float32)
    shares[:, 44 : 46 + index % 4] = 1 / (2 + index % 4)
    return Frame(frame.step, frame.schema, frame.columns, {"activation": shares})


def healthy(folder: Path) -> Path:
    return write(folder, timelines.build())


def hostile(folder: Path, markup: str) -> Path:
    """A run whose modules, model and notes bear markup for names."""
    net = timelines.linear(markup, 16, 4)
    columns = {"weight_gradient.carried": 1.0}
    record(folder, timelines.build(net, columns=columns, pulses={"loss": 2.3}, notes=(markup,)))
    return folder


def large(folder: Path, *, modules: int = 500, steps: int = 20_000, sampled: int = 1000) -> Path:
    """A long run of a large model, with the columns that the heat map is mostly asked for."""
    paths = [f"model.stage{index // 100}.block{index // 10 % 10}.layer{index % 10}" for index in range(modules)]
    schema = Schema(modules=tuple(Site(path) for path in paths), parameters=tuple(Site(f"{path}.weight") for path in paths))
    recorder = Recorder(folder / "gradscope")
    recorder.info(RunInfo("large", "Net", tuple(ModuleInfo(path, "Linear", "linear") for path in paths)))
    rng = np.random.default_rng(0)
    level = rng.standard_normal(modules).astype(np.float32)
    names = ("activation.rms", "activation_gradient.rms", "activation.nonfinite", "update.ratio", "activation.saturated")
    for index in range(sampled):
        level += rng.standard_normal(modules).astype(np.float32) / 20
        columns = {name: np.zeros(modules, np.float32) if name.endswith("nonfinite") else 10**level for name in names}
        recorder.frame(Frame(index * steps // sampled, schema, columns), {})
    rows = np.zeros((steps, len(PULSE_FIELDS)))
    rows[:, PULSE_FIELDS.index("step")] = np.arange(steps)
    rows[:, PULSE_FIELDS.index("loss")] = 1 / (1 + np.arange(steps) / 1000)
    rows[:, PULSE_FIELDS.index("backwards")] = 1
    recorder.pulses(rows)
    recorder.close()
    return folder
