"""Real small trainings, each with a known fault or none: what `gradscope demo` runs. One demo, one module."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from gradscope.report import Report

Progress = Callable[[int], Iterable[int]]  # counts the steps of a training, as `range` does, and may show how far it is


@dataclass(frozen=True)
class Demo:
    """A training and what its report has to say."""

    name: str
    story: str  # one sentence: what is trained, and what the program does wrong
    expected: str | None  # the rule that the diagnosis names; None where nothing is wrong
    train: Callable[[Path, Progress], Report]  # trains with gradscope attached, recording to the directory given

    def run(self, logdir: Path, progress: Progress, *, seed: int = 0) -> Report:
        """Train from a seed and give the live report."""
        torch.manual_seed(seed)
        return self.train(logdir, progress)

    @property
    def source(self) -> Path:
        """The file that the training stands in."""
        return Path(self.train.__code__.co_filename)


def all_demos() -> dict[str, Demo]:
    """Every demo by its name, the sound training first."""
    names = (found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    demos: list[Demo] = [importlib.import_module(f"{__name__}.{name}").DEMO for name in names]
    return {demo.name: demo for demo in sorted(demos, key=lambda demo: (demo.expected is not None, demo.name))}
