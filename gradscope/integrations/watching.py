"""What every trainer's callback does: attach when the first step comes, beside the trainer's own logs, and close at the end."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any
from typing import final

import torch

from gradscope.failures import warn
from gradscope.records import Finding
from gradscope.records import Severity
from gradscope.scope import Scope
from gradscope.scope import attach

_SEVERITIES = {severity.label: severity for severity in Severity}


@final
class Watching:
    """The watch over a trainer's model, one training after another.

    ``options`` are attach's own arguments. ``stop_on`` is the severity of the findings that a training is to end at, if any.
    Raises TypeError for an argument that ``attach`` has not, and ValueError for a severity that there is not.
    """

    def __init__(self, options: Mapping[str, Any], *, stop_on: str | None) -> None:
        inspect.signature(attach).bind(None, **options)
        if stop_on is not None and stop_on not in _SEVERITIES:
            raise ValueError(f"stop_on is one of {', '.join(_SEVERITIES)}, or None; found {stop_on!r}.")
        self._options = dict(options)
        self._stop_on = stop_on
        self._told = self._options.get("on_finding")
        self.scope: Scope | None = None  # of the training under way, or of the last one
        self.on = False
        self.wants_stop = False

    def begin(
        self, model: torch.nn.Module, logdir: str | os.PathLike[str], *, first_step: int, losses_add_up: bool, processes: int
    ) -> None:
        """The first step is about to be made. ``logdir`` is where the trainer writes; one that the user gave goes before it."""
        self.end()
        self.wants_stop = False
        given = self._options.get("logdir")
        options = {**self._options, "logdir": logdir if given is None else given}
        if self._may_stop(processes):
            options["on_finding"] = self._found
        self.scope = attach(model, **options)
        self.on = True
        self.scope.follow(first_step=first_step, losses_add_up=losses_add_up)

    def end(self) -> None:
        """The training is over, well or not. A second call does nothing."""
        if self.scope is not None and self.on:
            self.on = False
            self.scope.close()

    def _may_stop(self, processes: int) -> bool:
        if self._stop_on is not None and processes > 1:
            warn(
                "stop-on-one-process",
                f"stop_on={self._stop_on!r} ends a training of one process, and this one has {processes}: where one of them "
                "stopped, the others would wait for it for ever. The training goes on; on_finding tells of what is found.",
            )
        return self._stop_on is not None and processes == 1

    def _found(self, finding: Finding) -> None:
        if self._stop_on is not None and finding.severity >= _SEVERITIES[self._stop_on]:
            self.wants_stop = True
        if self._told is not None:
            self._told(finding)
