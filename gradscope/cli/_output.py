"""Where a command's output goes: the terminal in colour, a pipe, a file; and one sentence where it cannot go there."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from pathlib import Path
from typing import final

import click
from rich.console import Console
from rich.console import RenderableType

from gradscope.report.glyphs import spelled


@final
class Unusable(click.ClickException):
    """What was asked for cannot be done with what was given; the command ends with one sentence and exit code 2."""

    exit_code = 2


def encoding() -> str:
    """The encoding of standard output."""
    return (sys.stdout.encoding if sys.stdout else None) or "utf-8"


def in_colour() -> bool:
    """Whether standard output is a terminal that can show everything; all else gets plain text."""
    return bool(sys.stdout and sys.stdout.isatty()) and codecs.lookup(encoding()).name == "utf-8"


def write(text: str) -> None:
    """Print to standard output what its encoding can hold. A reader that has gone away is no error."""
    try:
        click.echo(spelled(text, encoding()))
    except BrokenPipeError:
        _forget_output()
    except OSError as error:
        _forget_output()
        raise Unusable(f"The output could not be written: {error.strerror}.") from error


def show(renderable: RenderableType, console: Console, *, whole_lines: bool = False) -> None:
    """Print to the terminal, in colour where it has any; ``whole_lines`` leaves what is longer than a line to the terminal."""
    try:
        console.print(renderable, soft_wrap=whole_lines)
    except BrokenPipeError:
        _forget_output()


def terminal() -> Console:
    """The terminal, for what takes nothing in its text for markup."""
    return Console(markup=False, highlight=False, emoji=False)


def save(text: str, path: Path) -> None:
    """Write a file as UTF-8. What could only be half written is removed."""
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            opened = file.fileno()
            regular = stat.S_ISREG(os.fstat(opened).st_mode)
            try:
                file.write(text + "\n")
                file.flush()
            except OSError:
                if regular:
                    path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Unusable(f"The report could not be written to {str(path)!r}: {error.strerror}.") from error


def _forget_output() -> None:
    """Let what is still buffered go nowhere, else the interpreter complains when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
