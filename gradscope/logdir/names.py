"""What event files are called: how they sort, whose they are, and which piece of one an object in a store is."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

SUFFIX = ".gradscope"
_FILE = re.compile(r"events\.out\.tfevents\.(?P<stamp>\d{10})\.(?P<host>.+)\.(?P<process>\d+)\.(?P<number>\d+)\.gradscope")
_PIECE = re.compile(r"\.\d{6}\.gradscope$")


@dataclass(frozen=True)
class Origin:
    """Who wrote an event file."""

    host: str
    process: int


def host() -> str:
    """This machine, as event files name it."""
    return re.sub(r"[^\w.-]", "_", socket.gethostname())


def file_name(stamp: int, process: int, number: int) -> str:
    """A process's event file; in the order of their names files are one record."""
    return f"events.out.tfevents.{stamp:010d}.{host()}.{process}.{number}{SUFFIX}"


def origin(name: str) -> Origin | None:
    """Who wrote the file of this name; None where it is none of gradscope's."""
    match = _FILE.fullmatch(name)
    return None if match is None else Origin(match["host"], int(match["process"]))


def piece_name(name: str, number: int) -> str:
    """The ``number``-th piece of a file; pieces sort in their order, and in the file's place among other files."""
    return f"{name.removesuffix(SUFFIX)}.{number:06d}{SUFFIX}"


def record_name(name: str) -> str:
    """What all pieces of one file have in common; any other file's own name."""
    return _PIECE.sub(".pieces", name)
