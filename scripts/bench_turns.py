"""One process of scripts/bench: the same training twice, bare and watched, in turns."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from time import process_time
from typing import final

import torch
from bench_catalogue import OURS
from bench_catalogue import WAYS
from bench_trainings import CASES
from bench_trainings import Training
from bench_ways import NOTHING_TOLD
from bench_ways import Told
from bench_ways import Unwatched
from bench_ways import Way

WARM_UP = 2  # steps of either training before the watching begins: the first ones make the optimizer's state
_FIRST_PER_BARE = 4  # watched turns among the first steps for each bare one


@dataclass(frozen=True)
class Plan:
    """What one process is to do; ``turn`` steps in one go, ``turns`` times for either training."""

    case: str
    way: str
    device: str
    core: int
    seed: int
    first: int
    turn: int
    turns: int


@dataclass(frozen=True)
class Stretch:
    """Some steps in one go: the seconds of each, of the processor over all of the process's threads, and on the wall.

    On an accelerator, which works while the host goes on, both are the wall-clock time of the whole, shared out evenly.
    """

    processor: tuple[float, ...] = ()
    wall: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A turn of either training."""

    bare: Stretch
    watched: Stretch


@dataclass(frozen=True)
class Measured:
    """What one process measured. ``failure`` says how the watching broke the training, should it have done so."""

    first: Pair
    turns: tuple[Pair, ...] = ()
    told: Told = NOTHING_TOLD
    failure: str = ""


def measure(plan: Plan) -> Measured:
    torch.set_num_threads(1)
    bare, watched = Side(plan), Side(plan)
    with tempfile.TemporaryDirectory() as folder:
        watched.attach(WAYS[plan.way].make, Path(folder))
        os.sched_setaffinity(0, {plan.core})  # this thread; helpers that were started before may use other cores
        try:
            first = _first(plan, bare, watched)
            turns = tuple(_turns(plan, bare, watched))
            return Measured(first, turns, watched.close(plan.first))
        except RuntimeError as error:
            if plan.way in OURS:
                raise
            watched.close(0)  # else it writes a report of the crash to wherever this runs
            return Measured(Pair(Stretch(), Stretch()), failure=f"{type(error).__name__}: {_first_sentence(str(error))}")


def _first(plan: Plan, bare: Side, watched: Side) -> Pair:
    """The steps at which gradscope looks closely, and some bare ones among them."""
    found: tuple[list[Stretch], list[Stretch]] = ([], [])
    for number, start in enumerate(range(0, plan.first, plan.turn)):
        found[1].append(watched.go(min(plan.turn, plan.first - start)))
        if number % _FIRST_PER_BARE == 0:
            found[0].append(bare.go(plan.turn))
    return Pair(*map(_joined, found))


def _turns(plan: Plan, bare: Side, watched: Side) -> Iterator[Pair]:
    chance = random.Random(plan.seed)
    for _ in range(plan.turns):
        if chance.random() < 0.5:
            stretch = bare.go(plan.turn)
            yield Pair(stretch, watched.go(plan.turn))
        else:
            stretch = watched.go(plan.turn)
            yield Pair(bare.go(plan.turn), stretch)


def _joined(stretches: list[Stretch]) -> Stretch:
    processor = tuple(seconds for stretch in stretches for seconds in stretch.processor)
    return Stretch(processor, tuple(seconds for stretch in stretches for seconds in stretch.wall))


def _first_sentence(message: str) -> str:
    return message.splitlines()[0].partition(". ")[0]


@final
class Side:
    """One of the two trainings, and what watches it."""

    def __init__(self, plan: Plan, *, alter: Callable[[Training], Training] | None = None) -> None:
        torch.manual_seed(plan.seed)
        made = CASES[plan.case].make().on(plan.device)
        self._training = made if alter is None else alter(made)
        self._steps = self._training.steps()
        self._on_host = plan.device == "cpu"
        self._way: Way = Unwatched()
        for _ in range(WARM_UP):
            next(self._steps)

    def attach(self, make: Callable[[Training, Path], Way], folder: Path) -> None:
        self._way = make(self._training, folder)
        self._way.pause()

    def go(self, count: int) -> Stretch:
        """Make so many steps, timed."""
        self._way.resume()
        stretch = self._each(count) if self._on_host else self._together(count)
        self._way.pause()
        return stretch

    def close(self, first: int) -> Told:
        self._way.resume()
        return self._way.close(first)

    def _each(self, count: int) -> Stretch:
        processor, wall = [], []
        for _ in range(count):
            started, begun = perf_counter(), process_time()
            self._way.after_step(next(self._steps))
            processor.append(process_time() - begun)
            wall.append(perf_counter() - started)
        return Stretch(tuple(processor), tuple(wall))

    def _together(self, count: int) -> Stretch:
        torch.cuda.synchronize()
        started = perf_counter()
        for _ in range(count):
            self._way.after_step(next(self._steps))
        torch.cuda.synchronize()
        share = (perf_counter() - started) / count
        return Stretch((share,), (share,))
