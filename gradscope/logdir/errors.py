"""What can be wrong with a log directory."""

from __future__ import annotations

from gradscope.legible import one_line


class LogdirError(Exception):
    """The log directory cannot be read; the message says what was expected and what was found, in one sentence.

    It may name files, runs and tags, so it is made fit to be shown wherever it ends.
    """

    def __init__(self, message: str) -> None:
        self.message = one_line(message)

    def __str__(self) -> str:
        return self.message
