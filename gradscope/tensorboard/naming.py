"""What a run of TensorBoard's is called, as the report calls it."""

from __future__ import annotations

from collections.abc import Iterable

from gradscope.logdir.runs import SUBRUN
from gradscope.logdir.runs import run_name


def names_of(runs: Iterable[str]) -> dict[str, str]:
    """The name of each run; one whose name is taken goes by its whole path."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for run in sorted(runs):
        names[run] = run_name(run) if run_name(run) not in taken else run
        taken.add(names[run])
    return names


def base_of(run: str) -> str:
    """The run that the training's own event files make, as TensorBoard names it: ``.`` for the log directory."""
    parts = run.split("/")
    if parts[-1:] == [SUBRUN]:
        return "/".join(parts[:-1]) or "."
    return "/".join(parts[:-2]) or "." if parts[-2:-1] == [SUBRUN] else run
