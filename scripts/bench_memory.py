"""What memory a watched training takes, in a short process of its own; on an accelerator also whether the host waits for it."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_catalogue import WAYS
from bench_trainings import CASES
from bench_ways import Unwatched
from bench_ways import Way

MEGABYTE = 2**20
_SYNCHRONISES = "synchronizing"  # a word of torch's warning


@dataclass(frozen=True)
class Footprint:
    """The most memory that a process had at any time, in bytes, and how often a step made the host wait for the device."""

    host: int
    device: int
    waits: float


def footprint(case: str, way: str | None, device: str, steps: int) -> Footprint:
    """Of ``steps`` steps, from the start of the process to the closing of what watches it; bare where that is None."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = CASES[case].make().on(device)
    on_host = device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        watching: Way = Unwatched() if way is None else WAYS[way].make(training, Path(folder))
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            if not on_host:
                torch.cuda.set_sync_debug_mode("warn")
            for _, loss in zip(range(steps), training.steps(), strict=False):
                watching.after_step(loss)
            if not on_host:
                torch.cuda.set_sync_debug_mode("default")
        watching.close(0)
    waits = sum(_SYNCHRONISES in str(warning.message) for warning in heard)
    return Footprint(_host_peak(), 0 if on_host else torch.cuda.max_memory_allocated(), waits / steps)


def _host_peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
