"""Watches what Lightning trains: ``Trainer(…, callbacks=[GradscopeCallback()])``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from typing import final

import torch

from gradscope.integrations.watching import Watching
from gradscope.live import default_logdir
from gradscope.scope import Scope

# The same library has two names. A callback of one works with a Trainer of the other, which asks for its methods alone.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback


@final
class GradscopeCallback(Callback):  # type: ignore[misc]  # lightning is not looked into
    """Watches each ``fit`` of a ``Trainer``, and writes beside the Trainer's own TensorBoard logs.

    The arguments are those of ``gradscope.attach``, without the model; none is needed. ``logdir`` is by default the
    TensorBoardLogger's ``log_dir``, or another logger's, or ``<default_root_dir>/runs/<time>_<host>`` where there is none.
    With ``stop_on="critical"`` (or ``"warning"``) the Trainer stops after the step at which such a finding appears; that is
    for a single process. With ``fast_dev_run``, which leaves nothing behind, nothing is watched.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, *, stop_on: str | None = None, **options: Any) -> None:
        self._watching = Watching({"logdir": logdir, **options}, stop_on=stop_on)

    @property
    def scope(self) -> Scope | None:
        """The scope of the fit under way, or of the last one; None before the first step."""
        return self._watching.scope

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: the model is placed and wrapped, what a checkpoint holds is restored, the sanity check is over."""
        if trainer.fast_dev_run:
            return
        whole = trainer.strategy.model  # with what distributes it around it
        self._watching.begin(
            whole if isinstance(whole, torch.nn.Module) else pl_module,
            _logdir(trainer),
            first_step=trainer.global_step,
            losses_add_up=pl_module.automatic_optimization,  # the loss is divided by accumulate_grad_batches
            processes=trainer.world_size,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._watching.wants_stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._watching.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._watching.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._watching.end()


def _logdir(trainer: Any) -> str | os.PathLike[str]:
    """Not ``trainer.log_dir``, which asks all processes: some of them may have no such callback."""
    own = [logger for logger in trainer.loggers if type(logger).__name__ == "TensorBoardLogger"]
    found = (logger.log_dir for logger in (*own, *trainer.loggers))
    return next((directory for directory in found if directory is not None), default_logdir(Path(trainer.default_root_dir)))
