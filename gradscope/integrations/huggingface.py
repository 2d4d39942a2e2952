"""Watches what Hugging Face's ``Trainer`` trains: ``Trainer(…, callbacks=[GradscopeCallback()])``."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from typing import final

from transformers import Trainer
from transformers import TrainerCallback
from transformers import TrainerControl
from transformers import TrainerState
from transformers import TrainingArguments
from transformers.integrations import TensorBoardCallback

from gradscope.integrations.watching import Watching
from gradscope.live import default_logdir
from gradscope.scope import Scope


@final
class GradscopeCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not looked into
    """Watches each training of a ``Trainer``, and writes beside the Trainer's own TensorBoard logs.

    The arguments are those of ``gradscope.attach``, without the model; none is needed. ``logdir`` is by default where the
    Trainer's TensorBoard logs are, or ``<output_dir>/runs/<time>_<host>`` where it writes none. With ``stop_on="critical"``
    (or ``"warning"``) the Trainer stops after the step at which such a finding appears; that is for a single process.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None = None, *, stop_on: str | None = None, **options: Any) -> None:
        self._watching = Watching({"logdir": logdir, **options}, stop_on=stop_on)

    @property
    def scope(self) -> Scope | None:
        """The scope of the training under way, or of the last one; None before the first step."""
        return self._watching.scope

    def close(self) -> None:
        """Stop watching, after a training that was ended by an exception: the Trainer tells its callbacks nothing of it."""
        self._watching.end()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._watching.end()  # of a training that an exception has ended

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Attach before the first step: by then the model is where it stays, and the other callbacks have begun."""
        if self._watching.on:
            return
        trainer = _calling_trainer()
        self._watching.begin(
            kwargs["model"] if trainer is None else trainer.model_wrapped,  # with what distributes it around it
            default_logdir(Path(args.output_dir)) if trainer is None else _logdir(trainer),
            first_step=state.global_step,
            losses_add_up=True,  # by the number of micro-batches, or of tokens in all of them, the Trainer divides each
            processes=args.world_size,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._watching.wants_stop:
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._watching.end()


def _calling_trainer() -> Trainer | None:
    """The Trainer on whose behalf a callback is called. It does not come with the call, nor does the model as it is wrapped."""
    for frame in _callers():
        trainer = frame.f_locals.get("self")
        if isinstance(trainer, Trainer):
            return trainer
    return None


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _logdir(trainer: Trainer) -> str | os.PathLike[str]:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            directory: str = callback.tb_writer.get_logdir()
            return directory
    return default_logdir(Path(trainer.args.output_dir))
