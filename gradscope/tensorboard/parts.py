"""The parts of a run: what has one list of sites, and the tags that were recorded over it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from gradscope.logdir.tags import HISTOGRAMS
from gradscope.logdir.tags import SCHEMA
from gradscope.logdir.tags import STATS
from gradscope.logdir.tags import digest8
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import STATISTICS
from gradscope.records import Schema
from gradscope.tensorboard.blocks import Block
from gradscope.tensorboard.reading import Reading
from gradscope.tensorboard.texts import Sites
from gradscope.tensorboard.texts import sites_of
from gradscope.tensorboard.texts import text_in

MOST_PARTS = 64  # a model whose sites change all the time has many
MOST_TRIED = 3  # copies of a list of sites that are looked at, where one is damaged

# Whose records tell the steps of a part, best first: those that every frame has.
_ANCHORS = ("weight_gradient.norm", "update.ratio", "activation.rms")


@final
@dataclass(frozen=True)
class Part:
    digest: str
    sites: Sites
    tags: Mapping[str, str]  # by statistic
    histograms: Mapping[str, str]  # by kind

    @property
    def anchor(self) -> str:
        """The statistic whose records tell which steps were sampled."""
        return next((name for name in _ANCHORS if name in self.tags), min(self.tags))


def known_parts(reading: Reading) -> Iterator[Part]:
    """The parts whose list of sites is there, the last ones of very many."""
    statistics, histograms = _by_digest(reading, STATS), _by_digest(reading, HISTOGRAMS)
    if len(statistics) > MOST_PARTS:
        reading.note(f"The run has {len(statistics):,} lists of sites: the last {MOST_PARTS} are shown.")
    for digest in sorted(statistics, key=lambda digest: _last_written(reading, statistics[digest]))[-MOST_PARTS:]:
        schema = _schema(reading, digest)
        if schema is None:
            reading.note("A list of sites is lost: what was recorded over it is left out.")
        else:
            yield Part(digest, sites_of(schema), statistics[digest], histograms.get(digest, {}))


def statistic_block(reading: Reading, part: Part, statistic: str) -> Block:
    """All records of one statistic; no more sites than are shown."""
    kind = statistic.partition(".")[0]
    block = reading.block(part.tags[statistic], "<f4", (part.sites.counts[kind],))
    return _shown(block, len(part.sites.schema.sites(kind)))


def fetch_statistics(reading: Reading, part: Part) -> None:
    """Have all statistics of a part at hand, with few requests."""
    wanted = {tag: part.sites.counts[name.partition(".")[0]] for name, tag in part.tags.items()}
    reading.fetch(wanted, statistic_block(reading, part, part.anchor).records)


def histogram_block(reading: Reading, part: Part, kind: str) -> Block:
    """All records of one kind's histograms; no more sites than are shown."""
    block = reading.block(part.histograms[kind], "<f2", (part.sites.counts[kind], HISTOGRAM_BINS))
    return _shown(block, len(part.sites.schema.sites(kind)))


def _by_digest(reading: Reading, prefix: str) -> dict[str, dict[str, str]]:
    """The tags below ``prefix`` that are of a known kind, by digest and what stands after it."""
    found: dict[str, dict[str, str]] = {}
    for tag in sorted(reading.tags):
        digest, _, name = tag.removeprefix(prefix).partition("/")
        known = name.partition(".")[0] if prefix == STATS else name
        if tag.startswith(prefix) and known in STATISTICS:
            found.setdefault(digest, {})[name] = tag
    return found


def _last_written(reading: Reading, tags: Mapping[str, str]) -> float:
    return max((reading.tags[tag].max_wall_time or 0.0 for tag in tags.values()), default=0.0)


def _schema(reading: Reading, digest: str) -> Schema | None:
    for datum in reading.texts(SCHEMA + digest)[:MOST_TRIED]:
        text = text_in(datum.numpy)
        if digest8(text) == digest:
            value = reading.parsed(Schema, text).value
            return value if isinstance(value, Schema) else None
    return None


def _shown(block: Block, count: int) -> Block:
    if block.table.shape[1] <= count:
        return block
    return Block(block.steps, block.walls, block.table[:, :count], block.records, block.fault)
