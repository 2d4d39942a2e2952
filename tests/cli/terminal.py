"""What a command shows in a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def shown(*arguments: str, columns: int = 80) -> str:
    """The output of ``gradscope`` with the given arguments in a terminal, escape codes included."""
    ours, theirs = pty.openpty()
    environment = os.environ | {
        "COLUMNS": str(columns),
        "TERM": "xterm-256color",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "gradscope", *arguments], stdout=theirs, stderr=theirs, env=environment, cwd=ROOT
    ):
        os.close(theirs)
        return "".join(_read(ours)).replace("\r\n", "\n")


def plain(output: str) -> str:
    """``output`` without its escape codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", output)


def _read(terminal: int) -> list[str]:
    parts = []
    with os.fdopen(terminal, "rb", buffering=0) as file:
        try:
            while part := file.read(65536):
                parts.append(part)
        except OSError:  # how Linux says that the other end is closed
            pass
    return [b"".join(parts).decode()]
