"""What a route answers: text, JSON or numbers, or a failure with its sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import final

if TYPE_CHECKING:
    from gradscope.records import Array


@final
@dataclass(frozen=True)
class Reply:
    content: bytes
    media_type: str
    status: int = 200


@final
class Failure(Exception):
    """The request cannot be answered: an HTTP status, and a sentence for the person who sees the page."""

    def __init__(self, status: int, sentence: str) -> None:
        self.args = (sentence,)
        self.status = status

    @property
    def reply(self) -> Reply:
        return Reply(as_json({"error": str(self)}), "application/json", self.status)


def as_json(document: Mapping[str, Any]) -> bytes:
    """JSON as every browser reads it: NaN becomes null, an infinity the string ``inf`` or ``-inf``."""
    try:
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):  # most documents have nothing to be turned into something else, and some are long
        from gradscope.report.plain import plain  # not above: TensorBoard's start is not to wait for it

        text = json.dumps(plain(document, dict), allow_nan=False, separators=(",", ":"))
    return text.encode()


def packed(header: Mapping[str, Any], numbers: Array) -> Reply:
    """The header's length, the header, and float32 row after row; ``shape`` in the header is that of ``numbers``."""
    text = as_json({**header, "shape": list(numbers.shape)})
    text += b" " * (-len(text) % 4)
    return Reply(
        b"".join((len(text).to_bytes(4, "little"), text, numbers.astype("<f4", copy=False).tobytes())),
        "application/octet-stream",
    )
