"""What can be wrong with a log directory."""

from __future__ import annotations


class LogdirError(Exception):
    """The log directory cannot be read; the message says what was expected and what was found, in one sentence."""
