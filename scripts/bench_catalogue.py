"""The ways that scripts/bench compares, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_gradscope import Gradscope
from bench_trainings import Training
from bench_ways import Histograms
from bench_ways import Torchmortem
from bench_ways import Traintools
from bench_ways import Wandb
from bench_ways import Way


@dataclass(frozen=True)
class Entry:
    """``package`` is what it needs installed."""

    title: str
    package: str
    make: Callable[[Training, Path], Way]


WAYS = {
    "every": Entry("gradscope, every step", "gradscope", partial(Gradscope, every=1)),
    "budget": Entry("gradscope, default budget", "gradscope", partial(Gradscope, every=None)),
    "wandb": Entry('`wandb.watch(log="all", log_freq=1)`', "wandb", Wandb),
    "histograms": Entry("`add_histogram` per tensor", "tensorboard", Histograms),
    "torchmortem": Entry("torchmortem", "torchmortem", Torchmortem),
    "traintools": Entry("traintools, gradients only", "traintools", Traintools),
}
OURS = ("every", "budget")  # of these the first steps count by themselves with the latter: with the former all are alike
