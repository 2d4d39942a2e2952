"""Log directories as a scope leaves them, written from timelines that are built by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradscope.logdir.recorder import Recorder
from gradscope.records import PULSE_FIELDS
from gradscope.timeline import Timeline
from tests import timelines

STUCK = {"loss": 2.3}  # a loss that training does not bring down


def record(logdir: Path, timeline: Timeline) -> Path:
    """Write ``timeline`` to ``logdir`` as a scope would, and give the event file."""
    folder = logdir / "gradscope"
    recorder = Recorder(folder)
    recorder.info(timeline.info)
    for frame in timeline.frames:
        recorder.frame(frame, {})
    recorder.pulses(np.column_stack([timeline.pulse(field) for field in PULSE_FIELDS]))
    recorder.close()
    return next(folder.iterdir())


def healthy(**info) -> Timeline:
    return timelines.build(**info)


def broken(**info) -> Timeline:
    """A loop without zero_grad that learns nothing: critical."""
    return timelines.build(columns={"weight_gradient.carried": 1.0}, pulses=STUCK, **info)
