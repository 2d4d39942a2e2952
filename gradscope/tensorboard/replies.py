"""What a route answers: text, JSON or numbers, or a failure with its sentence."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Sequence
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
        text = json.dumps(_plain(document), allow_nan=False, separators=(",", ":"))
    return text.encode()


def packed(header: Mapping[str, Any], numbers: Array) -> Reply:
    """The header's length, the header, and float32 row after row; ``shape`` in the header is that of ``numbers``."""
    text = as_json({**header, "shape": list(numbers.shape)})
    text += b" " * (-len(text) % 4)
    return Reply(
        b"".join((len(text).to_bytes(4, "little"), text, numbers.astype("<f4", copy=False).tobytes())),
        "application/octet-stream",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else (None if math.isnan(value) else str(value))
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if type(value).__module__ == "numpy" else str(value)
