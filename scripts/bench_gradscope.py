"""gradscope as one of the ways of scripts/bench: it can be left out of the loop for a while, and says what it cost."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import final

import numpy as np
import numpy.typing as npt
from bench_trainings import Training
from bench_ways import Told
from bench_ways import Way


@final
class Gradscope(Way):
    def __init__(self, training: Training, folder: Path, *, every: int | None) -> None:
        import gradscope
        from gradscope.capture.steps import LOOP

        self._folder, self._loop = folder, LOOP
        self._scope = gradscope.attach(training.model, folder, every=every)
        self._listener = LOOP.listeners[0]
        self._hooked = False
        self._paused = 0.0

    def pause(self) -> None:
        """Whoever listens to the loop, the watch or its stand-in, leaves it as it is: nothing is settled that is not due."""
        if not self._loop.listeners:
            raise RuntimeError("gradscope stopped watching before the end: what was timed is no watched training.")
        (self._listener,) = self._loop.listeners
        self._loop.leave(self._listener)
        hooks = self._scope._watch._hooks
        self._hooked = hooks.on  # torch's global hooks would be called for the bare model's modules, too
        if self._hooked:
            hooks.switch_off()
        self._paused = perf_counter()

    def resume(self) -> None:
        """The wait is no part of the training: with it the scope would believe that it has more time to spend, and that it is
        time to write to the disk."""
        passed = perf_counter() - self._paused
        watch, archive = self._scope._watch, self._scope._archive
        stepping = watch._stepping
        stepping._last_end += passed
        if stepping._quiet is not None:
            stepping._quiet._last_end += passed
            stepping._quiet._began += passed
        watch._pulses._flushed += passed
        archive._flushed += passed
        self._scope._judge_from += passed
        if self._hooked:
            watch._hooks.switch_on(light=watch._hooks._light)
        self._loop.join(self._listener)

    def close(self, first: int) -> Told:
        self._scope.close()
        return _told(self._folder, first)


def _told(folder: Path, first: int) -> Told:
    """As the report works it out, which tells it of all steps together."""
    from gradscope.logdir.runs import find_runs
    from gradscope.logdir.runs import read_run
    from gradscope.records import PULSE_FIELDS

    (run,) = find_runs(folder)
    pulses = read_run(run).pulses
    own, whole = (pulses[:, PULSE_FIELDS.index(name)] for name in ("own_seconds", "seconds"))
    return Told(*(_share(own[steps], whole[steps]) for steps in (slice(first), slice(first, None))))


def _share(own: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> float:
    """Of the bare time; NaN where there is no step."""
    return float(own.sum() / (whole - own).sum()) if len(own) else float("nan")
