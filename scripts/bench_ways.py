"""The ways to watch a training that scripts/bench compares, and the process that trains under one of them."""

from __future__ import annotations

import os
import tempfile
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from time import process_time
from typing import Any
from typing import final

import torch
from bench_trainings import CASES


class Way(ABC):
    """A way to watch a model. Setting it up is not timed; all else is."""

    def resume(self, pause: float) -> None:  # noqa: B027
        """The process goes on after others had their turns, for ``pause`` seconds. Not timed."""

    def after_step(self) -> None:  # noqa: B027
        """What the user's loop does for it after each step."""

    @abstractmethod
    def close(self) -> float:
        """End the watching; what it says that it cost, as a share of the bare step time, or NaN."""


@final
class Bare(Way):
    def close(self) -> float:
        return float("nan")


@final
class Gradscope(Way):
    def __init__(self, model: torch.nn.Module, folder: Path, every: int | None) -> None:
        import gradscope
        from gradscope.capture.steps import LOOP

        self._folder, self._loop = folder, LOOP
        self._scope = gradscope.attach(model, folder, every=every)

    def resume(self, pause: float) -> None:
        # The wait for the turn is no part of the training: with it the scope would believe that it has more time to spend, and
        # that it is time to write to the disk.
        for listener in self._loop.listeners:
            listener._last_end += pause
            if listener is not self._scope._watch:
                listener._began += pause
        for clock in (self._scope._watch._pulses, self._scope._archive):
            clock._flushed += pause
        self._scope._judge_from += pause

    def close(self) -> float:
        import gradscope

        if self._scope._closed:
            raise RuntimeError("gradscope stopped watching before the end: what was timed is no watched training.")
        self._scope.close()
        return gradscope.read(self._folder).runs[0].overhead


@final
class Wandb(Way):
    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DISABLE_GIT="true")
        import wandb

        settings = wandb.Settings(disable_git=True, disable_code=True, x_disable_stats=True, console="off")
        self._run = wandb.init(project="bench", dir=folder, settings=settings)
        self._run.watch(model, log="all", log_freq=1)

    def after_step(self) -> None:
        self._run.log({})

    def close(self) -> float:
        self._run.finish()
        return float("nan")


@final
class Histograms(Way):
    def __init__(self, model: torch.nn.Module, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)
        self._model = model
        self._step = 0
        optimizer.register_step_post_hook(self._add)

    def _add(self, *_: Any) -> None:
        for name, parameter in self._model.named_parameters():
            self._writer.add_histogram(name, parameter, self._step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"{name}.grad", parameter.grad, self._step)
        self._step += 1

    def close(self) -> float:
        self._writer.close()
        return float("nan")


WAYS: dict[str, Callable[[torch.nn.Module, Path, torch.optim.Optimizer], Way]] = {
    "bare": lambda model, folder, optimizer: Bare(),
    "every": lambda model, folder, optimizer: Gradscope(model, folder, every=1),
    "budget": lambda model, folder, optimizer: Gradscope(model, folder, every=None),
    "wandb": lambda model, folder, optimizer: Wandb(model, folder),
    "histograms": lambda model, folder, optimizer: Histograms(model, folder, optimizer),
}


@dataclass(frozen=True)
class Stretch:
    """Some steps in one go: the seconds of each, by the clock on the wall and of the processor, over all of its threads."""

    wall: tuple[float, ...]
    processor: tuple[float, ...]


def serve(case: str, way: str, core: int, seed: int, pipe: Connection) -> None:
    """Train ``case`` under ``way``. Each number that comes through the pipe asks for so many steps; 0 ends it."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    training = CASES[case].make()
    steps = training.steps()
    with tempfile.TemporaryDirectory() as folder:
        watching = WAYS[way](training.model, Path(folder), training.optimizer)
        os.sched_setaffinity(0, {core})  # this thread; helpers that were started before may use other cores
        pipe.send(os.getpid())
        stopped = perf_counter()
        while count := pipe.recv():
            watching.resume(perf_counter() - stopped)
            wall, processor = [], []
            for _ in range(count):
                started, begun = perf_counter(), process_time()
                next(steps)
                watching.after_step()
                processor.append(process_time() - begun)
                wall.append(perf_counter() - started)
            stopped = perf_counter()
            pipe.send(Stretch(tuple(wall), tuple(processor)))
        pipe.send(watching.close())
