"""Whether the default budget is kept over whole runs, and whether the report says what they cost."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from bench_catalogue import WAYS
from bench_trainings import BATCHES
from bench_trainings import Training
from bench_turns import Plan
from bench_turns import Side

SCENARIOS = {
    "steps alike": "as they are",
    "steps that vary": "batches of a tenth to all of their rows, or of their length where they are text",
    "half of the core": "another process works on the same core all the time",
    "a hundred steps": "a run as short as that, by several processes",
}
STEPS = {  # of a run that is not short
    "mlp-6ms": 3000,
    "resnet-8": 200,
    "gpt-5m": 150,
    "lstm": 600,
    "lstm-8": 1600,
    "experts": 300,
    "deep": 300,
}
_SHORT = "a hundred steps"
_SHORT_STEPS = 100
_SHORT_RUNS = 3
_SHARES = (0.1, 0.2, 1.0, 0.4, 0.1, 0.7, 0.15, 0.3)  # of a batch


@dataclass(frozen=True)
class Governed:
    """A run at the default budget, all of its steps counted, as ratios to the bare one."""

    steps: int
    seconds: float  # of the bare step
    mean: float  # of the processor's time
    told: float  # what the report says


def runs(case: str, scenario: str, *, core: int, turns: int | None) -> list[Plan]:
    """What is to be measured, each in a process of its own; ``turns`` takes the place of the run's usual length."""
    turn = max(1, BATCHES if case not in ("gpt-5m", "resnet-8") else 2)
    steps = _SHORT_STEPS if scenario == _SHORT else STEPS[case]
    count = -(-steps // turn) if turns is None else turns
    each = Plan(case, "budget", "cpu", core, seed=0, first=0, turn=turn, turns=count)
    return [replace(each, seed=seed) for seed in range(_SHORT_RUNS if scenario == _SHORT else 1)]


def govern(plan: Plan, scenario: str) -> Governed:
    """The same training twice, bare and watched from its first step, in turns that go through the same batches."""
    torch.set_num_threads(1)
    alter = _shortened if scenario == "steps that vary" else None
    bare, watched = Side(plan, alter=alter), Side(plan, alter=alter)
    with tempfile.TemporaryDirectory() as folder:
        watched.attach(WAYS[plan.way].make, Path(folder))
        os.sched_setaffinity(0, {plan.core})
        with _busy(plan.core, wanted=scenario == "half of the core"):
            taken = [_pair(bare, watched, plan.turn, watched_first=bool(number % 2)) for number in range(plan.turns)]
        told = watched.close(0).later
    alone, together = (sum(pair[side] for pair in taken) for side in (0, 1))
    steps = plan.turn * plan.turns
    return Governed(steps, alone / steps, together / alone, 1 + told)


def together(governed: list[Governed]) -> Governed:
    """The mean over several runs."""
    seconds, mean, told = (fmean(getattr(one, name) for one in governed) for name in ("seconds", "mean", "told"))
    return Governed(governed[0].steps, seconds, mean, told)


def _pair(bare: Side, watched: Side, turn: int, *, watched_first: bool) -> tuple[float, float]:
    """Seconds of the processor that a turn of either takes."""
    first, second = (watched, bare) if watched_first else (bare, watched)
    taken = tuple(sum(side.go(turn).processor) for side in (first, second))
    return (taken[1], taken[0]) if watched_first else (taken[0], taken[1])


def _shortened(training: Training) -> Training:
    """With batches whose steps take a tenth to all of the time."""
    batches = [_part(*batch, share) for batch, share in zip(training.batches, _SHARES * len(training.batches), strict=False)]
    return replace(training, batches=batches)


def _part(inputs: torch.Tensor, target: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    axis = 1 if inputs.dtype is torch.int64 else 0
    size = max(2, round(share * inputs.shape[axis]))
    return inputs.narrow(axis, 0, size).contiguous(), target.narrow(axis, 0, size).contiguous()


@contextmanager
def _busy(core: int, *, wanted: bool) -> Iterator[None]:
    """Another process that works on the core."""
    other = multiprocessing.get_context("spawn").Process(target=_work, args=(core,), daemon=True)
    if wanted:
        other.start()
    try:
        yield
    finally:
        if wanted:
            other.terminate()
            other.join()


def _work(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        sum(range(1000))
