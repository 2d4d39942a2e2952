"""Train a real small model with a known fault, then report on it."""

from __future__ import annotations

import difflib
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress

from gradscope.cli import _output
from gradscope.cli import report
from gradscope.legible import one_line
from gradscope.logdir.address import Address
from gradscope.logdir.address import is_address

if TYPE_CHECKING:
    from gradscope.demos import Demo

DEFAULT = "lr-too-high"
INTERRUPTED = 130  # 128 + SIGINT, as shells tell it


@click.command("demo")
@click.argument("name", required=False)
@click.option(
    "--logdir",
    help="Record to this directory, which holds no run yet.  [default: runs/demo-NAME]",
)
@click.option("--list", "listing", is_flag=True, help="Say which demos there are, and train nothing.")
@click.pass_context
def command(ctx: click.Context, name: str | None, logdir: str | None, listing: bool) -> None:
    """Train a real small model with a known fault, then report on it.

    Each NAME is a training of a few seconds; --list tells what they are.
    """
    from gradscope.demos import all_demos  # brings torch, which the list of commands must not wait for

    demos = all_demos()
    if listing:
        _output.write("\n".join(_listed(demos)))
        return
    demo = _named(demos, DEFAULT if name is None else name)
    directory = _fresh(Path("runs") / f"demo-{demo.name}") if logdir is None else _given(logdir)
    _output.write("\n".join(_introduction(demo)))
    finished = _trained(demo, directory)
    if not finished:
        _output.write("Interrupted. This is the report on what was recorded until then.\n")
    report.command.main(["--fail-on", "never", "--", str(directory)], standalone_mode=False)
    _output.write("\n".join(_further(directory, () if name else [other for other in demos if other != demo.name])))
    ctx.exit(0 if finished else INTERRUPTED)


def _named(demos: Mapping[str, Demo], name: str) -> Demo:
    if name in demos:
        return demos[name]
    near = difflib.get_close_matches(name, demos)
    hint = f"did you mean {', '.join(near)}?" if near else "`gradscope demo --list` lists them."
    raise _output.Unusable(f"There is no demo named {one_line(name)!r}; {hint}")


def _fresh(wanted: Path) -> Path:
    """This directory where nothing has its name yet, else one with a time stamp: two runs in one would mix."""
    stamped = f"{wanted}_{time.strftime('%b%d_%H-%M-%S')}"
    names = (wanted, Path(stamped), *(Path(f"{stamped}-{number}") for number in range(2, 100)))
    return _made(next(path for path in names if not path.exists()))


def _given(logdir: str) -> Path:
    if is_address(logdir):
        raise _output.Unusable(f"Demos are recorded on this machine: expected a directory, found {Address(logdir)}.")
    return _made(Path(logdir))


def _made(directory: Path) -> Path:
    """Make the directory, where it is not there yet."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(directory.glob("gradscope/**/*tfevents*"))
    except OSError as error:
        raise _output.Unusable(f"Cannot record to {one_line(str(directory))!r}: {error.strerror}.") from error
    if taken:
        raise _output.Unusable(f"{one_line(str(directory))!r} holds a run already; give --logdir a directory without one.")
    return directory


def _trained(demo: Demo, directory: Path) -> bool:
    """Train with a progress bar, in a terminal; whether it came to its end."""
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        try:
            demo.run(directory, lambda steps: bar.track(range(steps), description="Training"))
        except KeyboardInterrupt:
            return False
    return True


def _introduction(demo: Demo) -> Iterator[str]:
    yield from _wrapped(f"{demo.name}: {demo.story}")
    yield f"The program: {_below_here(demo.source)}\n"


def _further(directory: Path, others: list[str] | tuple[()]) -> Iterator[str]:
    yield "\nTo look further:"
    yield f"  {_executable('tensorboard')} --logdir {shlex.quote(str(directory))}"
    yield f"  {_executable('gradscope')} report {shlex.quote(str(directory))}"
    if others:
        yield from ("", *_wrapped(f"Other demos: {', '.join(others)}; `gradscope demo --list` tells what they are."))


def _listed(demos: Mapping[str, Demo]) -> Iterator[str]:
    width = max(map(len, demos))
    for demo in demos.values():
        yield from _wrapped(f"{demo.name:<{width}}  {demo.story}", hanging=width + 2)


def _wrapped(line: str, *, hanging: int = 0) -> list[str]:
    """Wrapped in a terminal, whole in a pipe."""
    room = shutil.get_terminal_size().columns if _output.in_colour() else 10_000
    return textwrap.wrap(line, max(room, 60), subsequent_indent=" " * hanging, break_on_hyphens=False)


def _executable(name: str) -> str:
    """How to call a program of this Python's: by its name where the shell finds it, else by its path."""
    path = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not path.exists() or (found is not None and Path(found).resolve() == path.resolve()):
        return name
    return shlex.quote(str(_below_here(path)))


def _below_here(path: Path) -> Path:
    """The path as seen from the working directory, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
