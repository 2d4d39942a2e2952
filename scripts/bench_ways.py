"""What scripts/bench knows of a way to watch a training, and the ways that gradscope is compared with."""

from __future__ import annotations

import logging
import os
import warnings
from abc import ABC
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import final

import torch
from bench_trainings import Training


@dataclass(frozen=True)
class Told:
    """What a way itself says that it cost, as shares of the bare time of the same steps. NaN where it says nothing."""

    first: float = float("nan")
    later: float = float("nan")


NOTHING_TOLD = Told()


class Way(ABC):
    """A way to watch a training. Making it, pausing and closing are not timed."""

    def pause(self) -> None:  # noqa: B027
        """Leave no trace in a bare training's steps."""

    def resume(self) -> None:  # noqa: B027
        """Go on where ``pause`` left off."""

    def after_step(self, loss: torch.Tensor) -> None:  # noqa: B027
        """What the user's loop does for it after each step."""

    @abstractmethod
    def close(self, first: int) -> Told:
        """End the watching, and account for the ``first`` steps and those after them."""


@final
class Unwatched(Way):
    def close(self, first: int) -> Told:
        return NOTHING_TOLD


@final
class Wandb(Way):
    def __init__(self, training: Training, folder: Path) -> None:
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DISABLE_GIT="true")
        import wandb

        settings = wandb.Settings(disable_git=True, disable_code=True, x_disable_stats=True, console="off")
        self._run = wandb.init(project="bench", dir=folder, settings=settings)
        self._run.watch(training.model, log="all", log_freq=1)

    def after_step(self, loss: torch.Tensor) -> None:
        self._run.log({})

    def close(self, first: int) -> Told:
        self._run.finish()
        return NOTHING_TOLD


@final
class Histograms(Way):
    """Each parameter and each gradient as a histogram of TensorBoard's, as many a training loop has it."""

    def __init__(self, training: Training, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)
        self._model = training.model
        self._step = 0
        training.optimizer.register_step_post_hook(self._add)

    def _add(self, *_: Any) -> None:
        for name, parameter in self._model.named_parameters():
            self._writer.add_histogram(name, parameter, self._step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"{name}.grad", parameter.grad, self._step)
        self._step += 1

    def close(self, first: int) -> Told:
        self._writer.close()
        return NOTHING_TOLD


@final
class Torchmortem(Way):
    """Activations, gradients and weights with its usual sampling."""

    def __init__(self, training: Training, folder: Path) -> None:
        from torchmortem import Autopsy

        logging.getLogger("torchmortem").setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "Full backward hook")  # torch's, about its hook on the first layer
        self._autopsy = Autopsy(training.model, optimizer=training.optimizer)
        self._autopsy.attach()

    def after_step(self, loss: torch.Tensor) -> None:
        self._autopsy.step(loss=loss.item())

    def close(self, first: int) -> Told:
        self._autopsy.detach()
        return NOTHING_TOLD


@final
class Traintools(Way):
    """Its gradient monitor, which looks at parameters and gradients before each step."""

    def __init__(self, training: Training, folder: Path) -> None:
        from traintools import GradientHealthMonitor

        self._monitor = GradientHealthMonitor()
        self._model = training.model
        self._step = 0
        training.optimizer.register_step_pre_hook(self._inspect)

    def _inspect(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._monitor.inspect(self._model, step=self._step, lr=optimizer.param_groups[0]["lr"])
        self._step += 1

    def close(self, first: int) -> Told:
        return NOTHING_TOLD
