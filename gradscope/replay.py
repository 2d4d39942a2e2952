"""From a log directory to a report: what was recorded, judged again by the same rules as in the live run."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.diagnosis import unknown_rules
from gradscope.legible import shortened
from gradscope.logdir.address import Address
from gradscope.logdir.address import is_address
from gradscope.logdir.pieces import left_behind
from gradscope.logdir.runs import LogdirError
from gradscope.logdir.runs import RunDirectory
from gradscope.logdir.runs import Survey
from gradscope.logdir.runs import read_run
from gradscope.logdir.runs import survey
from gradscope.report import Report
from gradscope.run_report import RunReport
from gradscope.timeline import Timeline

MOST_NAMED = 10  # runs that a message lists
LONGEST_NAME = 100  # characters of a run's name in it


def read(
    logdir: str | PathLike[str],
    *,
    run: str | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
) -> Report:
    """Report on the runs below ``logdir``, a path or an address such as ``s3://bucket/run``, or on the one named ``run``.

    Where ``select`` or ``ignore`` is not given, the run's own choice of rules holds. Raises LogdirError where no run can be
    read (where some can, ``Report.unread`` tells of the others), and UnknownRule for a name that no rule has.
    """
    selected = None if select is None else tuple(select)
    ignored = None if ignore is None else tuple(ignore)
    chosen(selected, ignored)  # a mistyped name shows before anything is read
    place = Address(logdir) if is_address(logdir) else Path(logdir)
    there = _found(place)
    found = _named(there.runs, run, place)
    outcomes = [_outcome(directory, selected, ignored) for directory in found]
    runs = tuple(outcome for outcome in outcomes if isinstance(outcome, RunReport))
    unread = tuple(outcome for outcome in outcomes if isinstance(outcome, LogdirError))
    if not runs:
        raise unread[0]
    behind = left_behind(place) if isinstance(place, Address) else None
    return Report(runs, (*map(str, unread), *there.unread, *([] if behind is None else [behind])))


def _found(place: Path | Address) -> Survey:
    try:
        return survey(place)
    except LogdirError as error:
        behind = left_behind(place) if isinstance(place, Address) else None
        raise error if behind is None else LogdirError(f"{error} {behind}") from None


def _named(found: tuple[RunDirectory, ...], name: str | None, logdir: Path | Address) -> tuple[RunDirectory, ...]:
    if name is None:
        return found
    matching = tuple(directory for directory in found if directory.name == name)
    if not matching:
        there = ", ".join(shortened(directory.name, LONGEST_NAME) for directory in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise LogdirError(f"There is no run named {name!r} in {logdir}; there are: {there}{more}.")
    return matching


def _outcome(
    directory: RunDirectory, select: tuple[str, ...] | None, ignore: tuple[str, ...] | None
) -> RunReport | LogdirError:
    try:
        return _judged(directory, select, ignore)
    except LogdirError as error:
        return error


def _judged(directory: RunDirectory, select: tuple[str, ...] | None, ignore: tuple[str, ...] | None) -> RunReport:
    recorded = read_run(directory)
    if recorded.damage and not recorded.frames and not len(recorded.pulses):
        raise LogdirError(f"{directory.path} holds no step that can be read: {' '.join(recorded.damage)}")
    info = recorded.info
    unknown = unknown_rules((*(info.select or ()), *info.ignore))
    wanted = [name for name in info.select or () if name not in unknown] if select is None else select
    unwanted = [name for name in info.ignore if name not in unknown] if ignore is None else ignore
    notes = (f"It was recorded with a choice of rules that this gradscope does not have: {_some(unknown)}.",) if unknown else ()
    timeline = Timeline(info, recorded.frames, recorded.pulses, sampled=recorded.sampled)
    with np.errstate(all="ignore"):  # a record may hold any numbers
        return diagnose(timeline, chosen(wanted, unwanted), run=recorded.name, damage=(*recorded.damage, *notes))


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(repr(shortened(name, LONGEST_NAME)) for name in names[:MOST_NAMED]) + more
