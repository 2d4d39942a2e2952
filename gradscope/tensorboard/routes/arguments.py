"""The parameters that several routes take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradscope.tensorboard.blocks import MOST_STEPS
from gradscope.tensorboard.blocks import Steps
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.thinning import Columns
from gradscope.tensorboard.thinning import columns_of

MOST_COLUMNS = 4096
USUAL_COLUMNS = 1024
MOST_CELLS = 2**24  # of a reply: 64 MiB


def whole_number(arguments: Mapping[str, str], name: str, *, least: int, most: int, default: int) -> int:
    """The parameter ``name``. Raises Failure where it is no whole number in its range."""
    text = arguments.get(name, "")
    if not text:
        return default
    sound = len(text) <= 20 and text.isascii() and text.removeprefix("-").isdigit()
    number = int(text) if sound else None
    if number is None or not least <= number <= most:
        raise Failure(400, f"Expected {name} to be a whole number from {least} to {most}, found {text[:40]!r}.")
    return number


def needed(arguments: Mapping[str, str], name: str) -> str:
    text = arguments.get(name)
    if not text:
        raise Failure(400, f"Expected the parameter {name}, found none.")
    return text


def window(arguments: Mapping[str, str], steps: Steps, *, sites: int = 1) -> tuple[slice, Columns]:
    """The rows between ``first`` and ``last``, and the columns that they make, each of so many sites; ``steps`` rise."""
    asked = whole_number(arguments, "columns", least=1, most=MOST_COLUMNS, default=USUAL_COLUMNS)
    most = min(asked, max(MOST_CELLS // max(sites, 1), 1))
    start, end = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    first = whole_number(arguments, "first", least=-MOST_STEPS, most=MOST_STEPS, default=start)
    last = whole_number(arguments, "last", least=-MOST_STEPS, most=MOST_STEPS, default=end)
    rows = slice(int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, side="right")))
    rows = slice(rows.start, max(rows.stop, rows.start))
    return rows, columns_of(steps[rows], most, max(first, start), min(last, end))


def span(steps: Steps) -> list[int] | None:
    return [int(steps[0]), int(steps[-1])] if len(steps) else None
