"""A watch whose frames and pulses stay in memory, and whose failures fail the test."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager

import torch

from gradscope.capture.watch import Watch
from gradscope.records import PULSE_FIELDS
from gradscope.records import RunInfo


class Seen:
    """Takes what a watch sees."""

    def __init__(self):
        self.frames = []
        self.pulses = []
        self.errors = []
        self.watch = None

    def frame(self, frame):
        self.frames.append(frame)

    def pulse(self, row):
        self.pulses.append(dict(zip(PULSE_FIELDS, row, strict=True)))

    def info(self, info):
        pass

    def step_done(self):
        pass

    def flush(self):
        self.watch.settle()

    def guard(self):
        self.errors.append(sys.exc_info()[1])

    @property
    def facts(self):
        return self.watch.info

    def sites(self, kind, *, step=-1):
        return [site.name for site in self.frames[step].schema.sites(kind)]

    def get(self, column, site, *, step=-1):
        """One number: of a column, at a site, in the n-th frame; NaN where that lacks the column."""
        values = self.frames[step].columns.get(column)
        return math.nan if values is None else float(values[self.sites(column.partition(".")[0], step=step).index(site)])

    def field(self, name):
        return [pulse[name] for pulse in self.pulses]


@contextmanager
def watching(model, *, every=1, include=None, exclude=None):
    seen = Seen()
    info = RunInfo(name="m", model=type(model).__name__, every=every)
    seen.watch = Watch(model, info, seen, include=include, exclude=exclude, guard=seen.guard)
    seen.watch.start()
    try:
        yield seen
        seen.watch.settle()
    finally:
        seen.watch.stop()
    for error in seen.errors:
        raise error


def step(model, optimizer, *inputs, **kwargs):
    """One step of a usual loop; the model's output."""
    optimizer.zero_grad()
    out = model(*inputs, **kwargs)
    loss = out if isinstance(out, torch.Tensor) and out.dim() == 0 else out.square().mean()
    loss.backward()
    optimizer.step()
    return out


def seen_of(model, *inputs, steps=1, **kwargs):
    """What a watch sees of some steps on the same inputs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model) as seen:
        for _ in range(steps):
            step(model, optimizer, *inputs, **kwargs)
    return seen
