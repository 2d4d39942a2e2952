"""The few characters beyond ASCII that a report draws with, and what stands for them where they cannot be printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Glyphs:
    """One way to draw a report."""

    bar: str  # parts of a cell that a bar can end in, rising; the last is a full cell
    ellipsis: str
    arrow: str
    mark: str
    line: str

    def __str__(self) -> str:
        return self.bar + self.ellipsis + self.arrow + self.mark + self.line


UNICODE = Glyphs(bar="▏▎▍▌▋▊▉█", ellipsis="…", arrow="→", mark="●", line="─")
ASCII = Glyphs(bar="#", ellipsis="..", arrow="->", mark="*", line="-")

_SPELLED = str.maketrans(
    {"…": "...", "→": "->", "×": "x", "·": "*", "–": "-", "—": "-", "≈": "~", "≥": ">=", "≤": "<=", "²": "^2", "µ": "u"}
    | dict.fromkeys("█▉▊▋▌", "#")
    | dict.fromkeys("▍▎▏", "")
)


def glyphs_for(encoding: str) -> Glyphs:
    """Those that an output of this encoding can print."""
    return UNICODE if _printable(str(UNICODE), encoding) else ASCII


def spelled(text: str, encoding: str) -> str:
    """``text`` such that it can be encoded: signs spelled out, what is left as escapes."""
    if _printable(text, encoding):
        return text
    return text.translate(_SPELLED).encode(encoding, "backslashreplace").decode(encoding)


def _printable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
