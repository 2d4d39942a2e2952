"""The JSON in a record, turned into values once and within bounds, whoever wrote it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import TypeVar
from typing import final

from gradscope.logdir.codec import MOST_BYTES
from gradscope.logdir.codec import CodecError
from gradscope.logdir.codec import loads
from gradscope.records import STATISTICS
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.tensorboard.shelf import Shelf

T = TypeVar("T", RunInfo, Schema)

MOST_SITES = 32768  # of a kind, and modules, that are shown
ROOM = 64 * 2**20  # bytes of text whose values are kept


@final
@dataclass(frozen=True)
class Parsed:
    """What a text says, or what is wrong with it."""

    value: RunInfo | Schema | None
    size: int  # of the text
    fault: str | None = None


@final
@dataclass(frozen=True)
class Sites:
    """A schema with no more sites of a kind than are shown, and how many each kind has."""

    schema: Schema
    counts: dict[str, int]

    @property
    def cut(self) -> int:
        """The most sites that any kind has, where they are not all shown; else 0."""
        most = max(self.counts.values(), default=0)
        return most if most > MOST_SITES else 0


@final
class Texts:
    """Remembers what texts say: a run repeats its own."""

    def __init__(self) -> None:
        self._parsed: Shelf[Parsed] = Shelf(ROOM, lambda parsed: parsed.size + 1024)

    def parsed(self, kind: type[T], text: bytes) -> Parsed:
        key = (kind, hashlib.sha256(text).digest())
        return self._parsed.get(key, lambda: _parse(kind, text))


def _parse(kind: type[T], text: bytes) -> Parsed:
    if len(text) > MOST_BYTES:
        sentence = f"a description of {len(text):,} bytes was left out: expected {MOST_BYTES:,} at most."
        return Parsed(None, 0, sentence)
    try:
        return Parsed(loads(kind, text), len(text))
    except CodecError as error:
        return Parsed(None, 0, f"a description was left out: {str(error)[:200]}.")


def text_in(tensor: Any) -> bytes:
    """The string in a numpy array as the data provider gives it; empty where there is none."""
    found = tensor.item() if tensor.size == 1 else b""
    return found if isinstance(found, bytes) else str(found).encode("utf-8", "replace")


def sites_of(schema: Schema) -> Sites:
    counts = {kind: len(schema.sites(kind)) for kind in STATISTICS}
    shown = Schema(*(_most(schema.sites(kind)) for kind in ("input", "activation", "weight", "loss", "attention")))
    return Sites(shown if max(counts.values()) > MOST_SITES else schema, counts)


def shown_info(info: RunInfo) -> RunInfo:
    """With no more modules and parameters than are shown."""
    if max(len(info.modules), len(info.parameters)) <= MOST_SITES:
        return info
    return replace(info, modules=info.modules[:MOST_SITES], parameters=info.parameters[:MOST_SITES])


def _most(sites: Sequence[Site]) -> tuple[Site, ...]:
    return tuple(sites[:MOST_SITES])
