"""A live run's numbers: kept for the rules, and written to the disk as they come."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from itertools import chain
from itertools import count
from pathlib import Path
from time import monotonic
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.failures import warn
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import SUBRUN
from gradscope.records import PULSE_FIELDS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.trends import median_of

FLUSH_SECONDS = 2.0  # what ``kill -9`` may cost at most, in pulses
_MOST_WAITING = 512


def run_directory(logdir: Path, name: str, *, explicit: bool, taken: Collection[Path]) -> Path:
    """Where a scope writes: ``<logdir>/gradscope``, or a directory of its own below it where models share a logdir.

    ``taken`` are the directories that other open scopes write to.
    """
    base = logdir.absolute() / SUBRUN
    candidates = [base / name] if explicit else [base, base / name]
    numbered = (base / f"{name}-{number}" for number in count(2))
    return next(path for path in chain(candidates, numbered) if path not in taken)


@final
class Archive:
    """Everything one scope has captured, in memory and on disk. A disk that takes no more costs a warning, not the run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._recorder: Recorder | None = Recorder(directory)
        self._numbers = array("d")  # the pulses, row after row
        self._written = 0  # rows on the disk
        self._flushed = monotonic()
        self._waiting: Frame | None = None  # until its step's pulse is there
        self._extra: dict[str, float] = {}
        self.frames: list[Frame] = []

    @property
    def logdir(self) -> Path:
        return self._directory.parent if self._directory.name == SUBRUN else self._directory.parent.parent

    @property
    def run(self) -> str:
        """What the run is called when the log directory is read."""
        return "." if self._directory.name == SUBRUN else self._directory.name

    @property
    def pulses(self) -> npt.NDArray[np.float64]:
        """All pulses, [steps, PULSE_FIELDS]; a copy."""
        return np.array(self._numbers, dtype=np.float64).reshape(-1, len(PULSE_FIELDS))

    def info(self, info: RunInfo) -> None:
        self._try(lambda recorder: recorder.info(info))

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Scalars of the user's own, for TensorBoard beside ours."""
        self._extra.update({f"gradscope/observed/{name}": float(value) for name, value in scalars.items()})

    def frame(self, frame: Frame) -> None:
        self._write_waiting({})
        self.frames.append(frame)
        self._waiting = frame

    def pulse(self, row: tuple[float, ...]) -> None:
        self._numbers.extend(row)
        if self._waiting is not None and row[0] >= self._waiting.step:
            self._write_waiting(dict(zip(PULSE_FIELDS, row, strict=True)))
        waiting = len(self._numbers) // len(PULSE_FIELDS) - self._written
        if waiting >= _MOST_WAITING or monotonic() - self._flushed > FLUSH_SECONDS:
            self._write_pulses()

    def _write_waiting(self, pulse: Mapping[str, float]) -> None:
        frame, self._waiting = self._waiting, None
        if frame is not None:
            scalars = {**scalars_of(frame, pulse), **self._extra}
            self._try(lambda recorder: recorder.frame(frame, scalars))

    def _write_pulses(self) -> None:
        rows = self.pulses[self._written :]
        self._written += len(rows)
        self._flushed = monotonic()
        self._try(lambda recorder: recorder.pulses(rows))

    def text(self, markdown: str, step: int) -> None:
        self._try(lambda recorder: recorder.text(markdown, step))

    def flush(self) -> None:
        """Write what is still only in memory."""
        self._write_waiting({})
        self._write_pulses()

    def close(self) -> None:
        self.flush()
        self._try(lambda recorder: recorder.close())
        self._recorder = None

    def _try(self, write: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            write(self._recorder)
        except OSError as error:
            self._recorder = None
            why = error.strerror or str(error)
            warn(
                "logdir-unwritable",
                f"Expected to write to {self._directory}, found: {why}. Training and watching go on, but nothing more is "
                "recorded; give attach() a logdir on a disk with room that this user may write to.",
            )


def scalars_of(frame: Frame, pulse: Mapping[str, float]) -> dict[str, float]:
    """The few curves that TensorBoard's own Scalars dashboard shows of a frame."""
    ratios = frame.columns["update.ratio"]
    scalars = {f"gradscope/{field}": pulse[field] for field in ("loss", "gradient_norm", "learning_rate") if field in pulse}
    scalars["gradscope/update_ratio_median"] = median_of(ratios)
    scalars["gradscope/update_ratio_max"] = _largest(ratios)
    for kind, label in (("activation", "activation_rms"), ("activation_gradient", "gradient_rms")):
        for place, value in _over_depth(frame.columns[f"{kind}.rms"]).items():
            scalars[f"gradscope/{label}_{place}"] = value
    scalars["gradscope/dead_share_max"] = _largest(_inactive_share(frame))
    scalars["gradscope/saturated_share_max"] = _largest(frame.columns["activation.saturated"])
    scalars["gradscope/nonfinite"] = _largest(frame.columns["activation.nonfinite"])
    if pulse.get("seconds", 0.0) > pulse.get("own_seconds", 0.0):
        scalars["gradscope/overhead"] = pulse["own_seconds"] / (pulse["seconds"] - pulse["own_seconds"])
    return {tag: value for tag, value in scalars.items() if not np.isnan(value) or tag == "gradscope/loss"}


def _over_depth(values: Array) -> dict[str, float]:
    seen = values[~np.isnan(values)]
    return {"first": float(seen[0]), "middle": float(seen[len(seen) // 2]), "last": float(seen[-1])} if len(seen) else {}


def _inactive_share(frame: Frame) -> Array:
    """Share of each site's sampled units with no element above zero in this frame."""
    low, high = frame.columns["activation.active_low"], frame.columns["activation.active_high"]
    seen = ~np.isnan(low)
    bits = np.nan_to_num(low).astype(np.int64) | (np.nan_to_num(high).astype(np.int64) << 16)
    active = ((bits[:, None] >> np.arange(32)) & 1).sum(axis=1)
    return np.where(seen, 1 - active / 32, np.nan).astype(np.float32)


def _largest(values: Array) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.max()) if len(seen) else float("nan")
