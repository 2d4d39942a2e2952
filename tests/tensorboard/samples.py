"""Runs for the tab: recorded as a scope records them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.logdir.recorder import Recorder
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.timeline import Timeline
from tests import timelines
from tests.logdir.samples import events_in
from tests.logdir.samples import write_events

REPORT = "## Critical\n\nthe report so far"
DEEP_NET = timelines.mlp(16, 32, 32, 32, 32, 4)


def record(logdir: Path, timeline: Timeline, *, histograms_every: int = 5, report: str = REPORT, begin: int = 0) -> None:
    """One process's part of the run in ``logdir``, from step ``begin`` on, frames and pulses as they come."""
    recorder = Recorder(logdir / "gradscope")
    recorder.info(timeline.info)
    rows = pulse_rows(timeline)[begin:]
    recorder.pulses(rows[rows[:, 0] < _next(timeline, -1)])
    for number, frame in enumerate(timeline.frames):
        shown = frame if number % histograms_every else replace(frame, histograms=histograms(frame))
        recorder.frame(shown, {})
        recorder.pulses(rows[(rows[:, 0] >= frame.step) & (rows[:, 0] < _next(timeline, number))])
    recorder.text(report, timeline.step_count - 1)
    recorder.close()


def histograms(frame: Frame) -> dict[str, np.ndarray]:
    """Half of each site's elements in one bin, which tells site and step, half in the bin of ones."""
    shares = np.zeros((len(frame.schema.modules), HISTOGRAM_BINS), dtype=np.float32)
    shares[:, 48] = 0.5
    for site, row in enumerate(shares):
        row[site + frame.step % 8] += 0.5
    return {"activation": shares}


def pulse_rows(timeline: Timeline) -> np.ndarray:
    return np.column_stack([timeline.pulse(field) for field in PULSE_FIELDS])


def ramp(net: timelines.Net = timelines.SMALL, *, steps: Iterable[int] = timelines.STEPS, **given: Any) -> Timeline:
    """A run whose activation scale tells site and step: site + step / 1000 + 1."""
    sites = np.arange(len(net.modules))
    return timelines.build(net, steps=steps, columns={"activation.rms": lambda step: sites + step / 1000 + 1}, **given)


def keep_only_the_report(logdir: Path) -> None:
    """Take all records out of the event file but the report's."""
    folder = logdir / "gradscope"
    events = [event for event in events_in(folder) if any(value.tag == "gradscope/report" for value in event.summary.value)]
    assert len(events) == 1
    (path,) = folder.iterdir()
    write_events(path, events)


def _next(timeline: Timeline, number: int) -> int:
    """The step up to which pulses are written before the frame after this one."""
    later = timeline.frames[number + 1 :]
    return later[0].step if later else timeline.step_count
