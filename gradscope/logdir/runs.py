"""Finds the runs below a log directory and reads them back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pathlib import PurePath
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.legible import one_line
from gradscope.legible import shortened
from gradscope.logdir.address import Address
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.folders import is_event_file
from gradscope.logdir.foreign import choose
from gradscope.logdir.foreign import pulses_of
from gradscope.logdir.names import SUFFIX
from gradscope.logdir.reader import EventDirectory
from gradscope.logdir.remote import RemoteFolder
from gradscope.logdir.remote import remote_folders
from gradscope.logdir.replay import Replay
from gradscope.memory.layout import Layout
from gradscope.records import STATISTICS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site

__all__ = ["LogdirError", "RecordedRun", "RunDirectory", "Survey", "find_runs", "read_run", "survey"]

SUBRUN = "gradscope"
MOST_CELLS = 2**23  # of a column: steps times sites. A frame may say little of many sites, and a column has room for all.
MOST_NAMED = 10  # directories that could not be looked into
LONGEST_NAME = 100  # characters of another tool's tag that a message repeats


@dataclass(frozen=True)
class RunDirectory:
    """A directory whose event files make up one run."""

    name: str  # relative to the log directory, "." for the directory itself
    path: Path | RemoteFolder
    foreign: bool = False  # written by other tools; whether anything in it can be used shows when it is read


@dataclass(frozen=True)
class _Found:
    """A directory with event files."""

    below: PurePath  # the log directory
    place: Path | RemoteFolder
    own: bool  # whether any of the files is gradscope's

    @property
    def whole(self) -> PurePath:
        return self.place if isinstance(self.place, Path) else self.place.path


@dataclass(frozen=True)
class RecordedRun:
    """A run as it was recorded."""

    name: str
    info: RunInfo
    frames: tuple[Frame, ...]  # in the order of their steps; of a long run those that memory.history.History holds on to
    pulses: npt.NDArray[np.float64]  # [steps, len(PULSE_FIELDS)], in the order of their steps; thinned likewise
    damage: tuple[str, ...]  # what could not be read, a sentence each
    sampled: int | None = None  # how many frames were recorded, where that is more than are held


@dataclass(frozen=True)
class Survey:
    """What lies in a log directory."""

    runs: tuple[RunDirectory, ...]  # by name; at least one
    unread: tuple[str, ...] = ()  # where no one could look, a sentence each


def find_runs(logdir: Path | Address) -> tuple[RunDirectory, ...]:
    """Every run in ``logdir`` and below, by name; at least one. Raises LogdirError."""
    return survey(logdir).runs


def survey(logdir: Path | Address) -> Survey:
    """Every run in ``logdir`` and below, and which directories cannot be looked into. Raises LogdirError."""
    denied: list[OSError] = []
    if isinstance(logdir, Address):
        found = [_Found(folder.below, folder, _any_own(folder.names)) for folder in remote_folders(logdir)]
    else:
        _check_directory(logdir)
        found = list(_event_directories(logdir, denied))
    own = [directory for directory in found if directory.own]
    bases = {_base(directory.whole) for directory in own}
    foreign = [
        directory for directory in found if not directory.own and bases.isdisjoint((directory.whole, *directory.whole.parents))
    ]
    if not own and not foreign:
        if denied:
            raise LogdirError(f"{_not_looked_into(denied[0])}: give this user the right to read it.")
        raise LogdirError(
            f"{logdir} holds no event files, nor does any directory below it: "
            "expected the log directory of a run that gradscope.attach() watched."
        )
    if own or len(foreign) > 1:
        # A directory of hyperparameters or images is nobody's run; alone, reading it says what it holds.
        foreign = [directory for directory in foreign if _is_recognised(directory.place)] or foreign[: not own]
    runs = [(run_name(directory.below.as_posix()), directory) for directory in own]
    runs += [(directory.below.as_posix(), directory) for directory in foreign]
    return Survey(tuple(sorted(_distinct(runs), key=lambda run: run.name)), tuple(_unread(denied)))


def _unread(denied: list[OSError]) -> Iterator[str]:
    for error in denied[:MOST_NAMED]:
        yield one_line(f"{_not_looked_into(error)}; runs below it are not in this report.")
    if len(denied) > MOST_NAMED:
        yield f"{len(denied) - MOST_NAMED:,} more directories cannot be read."


def _not_looked_into(error: OSError) -> str:
    return f"{shortened(str(error.filename), 300)} cannot be read ({(error.strerror or str(error)).lower()})"


def read_run(run: RunDirectory, *, histograms: bool = False) -> RecordedRun:
    """What is recorded of ``run``, also while it is still being written; of a long run, no more than memory is to hold.

    Raises LogdirError. The frames have their ``histograms`` only where these are asked for.
    """
    directory = EventDirectory(run.path)
    replay = Replay(histograms=histograms)
    try:
        for name, payload in directory.records():
            replay.take(name, payload)
    except OSError as error:
        raise LogdirError(f"{run.path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    except LogdirError as error:
        raise LogdirError(f"{run.path}: {error}") from None
    if run.foreign and not replay.own:
        return _foreign_run(run, replay, directory.damage)
    frames = tuple(_frames(replay))
    info = replay.info
    if info is None:
        replay.faults["no description of the run"] += 1
        info = RunInfo(name=run.name, model="unknown")
    history = replay.history
    return RecordedRun(run.name, info, frames, history.held_pulses(), _damage(directory.damage, replay), history.sampled)


def _check_directory(logdir: Path) -> None:
    try:
        if logdir.is_dir():
            return
        exists = logdir.exists()
    except OSError as error:
        raise LogdirError(f"{logdir} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    except ValueError:
        raise LogdirError(f"{str(logdir)!r} is not a path: expected a log directory.") from None
    if exists:
        raise LogdirError(f"{logdir} is a file: expected the log directory that holds it.")
    raise LogdirError(f"{logdir} does not exist: expected a log directory, as given to attach() or to tensorboard --logdir.")


def _event_directories(logdir: Path, denied: list[OSError]) -> Iterator[_Found]:
    """Each directory with event files; links are followed, loops are not. Of any depth: os.walk goes down by recursion."""
    seen: set[tuple[int, int]] = set()
    waiting = [str(logdir)]
    while waiting:
        top = waiting.pop()
        try:
            with os.scandir(top) as entries:
                status = os.stat(top)  # noqa: PTH116  # not worth a Path for each of thousands
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                directories, names = _sorted_out(entries)
        except FileNotFoundError:
            continue  # removed while we look
        except OSError as error:
            denied.append(error)
            continue
        waiting += [f"{top}{os.sep}{name}" for name in sorted(directories, reverse=True)]
        events = [name for name in names if is_event_file(name)]
        if events:
            path = Path(top)
            yield _Found(path.relative_to(logdir), path, _any_own(events))


def _sorted_out(entries: Iterable[os.DirEntry[str]]) -> tuple[list[str], list[str]]:
    """What the directories are called, and what else is there."""
    directories: list[str] = []
    names: list[str] = []
    for entry in entries:
        try:
            is_directory = entry.is_dir()
        except OSError:
            is_directory = False  # a link that leads to itself
        (directories if is_directory else names).append(entry.name)
    return directories, names


def _any_own(names: Iterable[str]) -> bool:
    return any(name.endswith(SUFFIX) for name in names)


def _base(path: PurePath) -> PurePath:
    """The log directory that the scope was given which wrote to ``path``."""
    if path.name == SUBRUN:
        return path.parent
    return path.parent.parent if path.parent.name == SUBRUN else path


def _is_recognised(place: Path | RemoteFolder) -> bool:
    """Whether another tool's directory holds anything that can be used."""
    replay = Replay()
    try:
        for name, payload in EventDirectory(place).records():
            replay.take(name, payload)
            if replay.usable:
                return True
    except (OSError, LogdirError):
        return True  # reading it will say why it cannot be read
    return False


def run_name(path: str) -> str:
    """What a run is called that lies at ``path`` below the log directory: without the directory that gradscope adds."""
    parts = path.split("/")
    if parts[-1:] == [SUBRUN]:
        del parts[-1]
    elif parts[-2:-1] == [SUBRUN]:
        del parts[-2]
    return "/".join(parts) or "."


def _distinct(runs: list[tuple[str, _Found]]) -> Iterator[RunDirectory]:
    """``x/gradscope`` and ``gradscope/x`` would both be called x: then the second goes by its whole path."""
    taken: set[str] = set()
    for wanted, directory in runs:
        name = wanted if wanted not in taken else directory.below.as_posix()
        taken.add(name)
        yield RunDirectory(name, directory.place, foreign=not directory.own)


def _frames(replay: Replay) -> Iterator[Frame]:
    """The frames whose list of sites is known, in the order of their steps."""
    fitting: dict[Layout, frozenset[str]] = {}  # columns that fit their list of sites
    tables = _Tables()
    for held in replay.history.held_frames():
        layout = held.columns.layout
        schema = replay.schemas.get(str(layout.schema))
        if schema is None:
            replay.faults["a frame whose list of sites is lost"] += 1
            continue
        if not tables.have_room_for(schema):
            replay.faults["a frame of more sites than there is room for"] += 1
            continue
        if layout not in fitting:
            fitting[layout] = frozenset(_fitting({name: len(column) for name, column in held.columns.items()}, schema))
        columns: Mapping[str, Array] = held.columns
        if len(fitting[layout]) < len(columns):
            columns = {name: column for name, column in columns.items() if name in fitting[layout]}
        sizes = {kind: len(shares) for kind, shares in held.histograms.items()}
        histograms = {kind: held.histograms[kind] for kind in _fitting(sizes, schema)}
        lost = len(held.columns) - len(columns) + len(sizes) - len(histograms)
        if lost:
            replay.faults["a column that does not fit its list of sites"] += lost
        yield Frame(held.step, schema, columns, histograms)


@final
class _Tables:
    """How large the columns of all frames together become."""

    def __init__(self) -> None:
        self._rows = 0
        self._sites: dict[str, set[Site]] = {kind: set() for kind in STATISTICS}
        self._counted: set[int] = set()

    def have_room_for(self, schema: Schema) -> bool:
        """Whether one more frame fits, whose sites these are; then it is counted."""
        if id(schema) not in self._counted:
            self._counted.add(id(schema))
            for kind, sites in self._sites.items():
                sites.update(schema.sites(kind))
        if (self._rows + 1) * max(map(len, self._sites.values())) > MOST_CELLS:
            return False
        self._rows += 1
        return True


def _fitting(sizes: Mapping[str, int], schema: Schema) -> list[str]:
    return [name for name, size in sizes.items() if size == len(schema.sites(name.partition(".")[0]))]


def _foreign_run(run: RunDirectory, replay: Replay, damage: tuple[str, ...]) -> RecordedRun:
    series: dict[str, dict[int, float]] = {}
    for content in replay.files.values():
        for tag, points in content.scalars.items():
            first = min(points)
            series[tag] = {step: value for step, value in series.get(tag, {}).items() if step < first} | points
    chosen = choose(series)
    if not chosen:
        if not replay.other_tags and not series:
            raise LogdirError(f"{run.path} holds event files, but no record in them can be read: they are empty or damaged.")
        found = ", ".join(shortened(tag, LONGEST_NAME) for tag in list(replay.other_tags)[:5]) or "no scalars"
        raise LogdirError(
            f"{run.path} holds only other tools' event files, without a scalar that looks like a training loss, a gradient "
            f"norm or a learning rate: found {found}."
        )
    used = ", ".join(
        f"{shortened(tag, LONGEST_NAME)} as the {field.replace('_', ' ')}" for field, tag in sorted(chosen.items())
    )
    note = f"gradscope did not watch this run: the report goes by other tools' scalars, {used}."
    info = RunInfo(name=run.name, model="unknown", notes=(note,))
    pulses = pulses_of({field: series[tag] for field, tag in chosen.items()})
    return RecordedRun(run.name, info, (), pulses, _damage(damage, replay))


def _damage(damage: tuple[str, ...], replay: Replay) -> tuple[str, ...]:
    return (*damage, *(f"Found {fault}{'' if n == 1 else f' ({n:,} times)'}." for fault, n in replay.faults.items()))
