"""Text from outside made fit to be shown: what could steer a terminal, or turn the direction of writing, is taken out."""

from __future__ import annotations

import unicodedata

# Control, format (also those that turn the direction of writing), surrogate, and separators of lines and paragraphs.
_UNWANTED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def one_line(text: str) -> str:
    """``text`` on one line, without control characters."""
    return " ".join("".join(c for c in _spaced(text) if unicodedata.category(c) not in _UNWANTED).split())


def shortened(text: str, most: int) -> str:
    """``text`` on one line, of ``most`` characters at most: what is longer ends in an ellipsis."""
    line = one_line(text[: 4 * most])
    return line if len(line) <= most else line[: most - 1] + "…"


def several_lines(text: str) -> str:
    """``text`` with its line breaks, without other control characters."""
    kept = (c for c in text.expandtabs(4) if c == "\n" or unicodedata.category(c) not in _UNWANTED)
    return "".join(kept).strip("\n")


def _spaced(text: str) -> str:
    return text.translate({9: " ", 10: " ", 13: " "})
