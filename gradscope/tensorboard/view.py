"""One run as TensorBoard holds it at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.logdir.runs import run_name
from gradscope.logdir.tags import META
from gradscope.logdir.tags import REPORT
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.tensorboard.blocks import Anchor
from gradscope.tensorboard.blocks import Block
from gradscope.tensorboard.blocks import Steps
from gradscope.tensorboard.blocks import Walls
from gradscope.tensorboard.parts import Part
from gradscope.tensorboard.parts import fetch_statistics
from gradscope.tensorboard.parts import histogram_block
from gradscope.tensorboard.parts import known_parts
from gradscope.tensorboard.parts import statistic_block
from gradscope.tensorboard.pulses import PulseBlock
from gradscope.tensorboard.reading import Reading
from gradscope.tensorboard.source import newer
from gradscope.tensorboard.texts import MOST_SITES
from gradscope.tensorboard.texts import shown_info
from gradscope.tensorboard.texts import text_in
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class Table:
    """One statistic over sampled steps and the sites of the whole run."""

    steps: Steps  # rising
    values: npt.NDArray[Any]  # [steps, sites, …]

    def at(self, steps: Steps) -> Array:
        """The rows of these steps, which may not all be there: NaN then; [steps, sites]."""
        rows = np.full((len(steps), self.values.shape[1]), np.nan, dtype=np.float32)
        there = np.isin(steps, self.steps)
        rows[there] = self.values[np.searchsorted(self.steps, steps[there])]
        return rows


@final
class View:
    """Reads a run's records as they are asked for; what was read stays with ``Reading``, also for later views."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self.run, self.etag = reading.run, reading.etag
        self.name = run_name(reading.run)

    # -- facts

    @cached_property
    def error(self) -> str | None:
        """Why the run cannot be shown, as a sentence."""
        return newer(self._reading.tags)

    @cached_property
    def info(self) -> RunInfo:
        """The last description of the run that can be read; of an unknown model where there is none."""
        texts = [text_in(datum.numpy) for datum in self._reading.texts(META)]
        found = (self._reading.parsed(RunInfo, text) for text in reversed(texts[-3:]))
        known = next((parsed.value for parsed in found if isinstance(parsed.value, RunInfo)), None)
        return shown_info(known) if known is not None else RunInfo(name=self.name, model="unknown")

    @property
    def described(self) -> bool:
        return self.info.model != "unknown"

    @property
    def written_report(self) -> str | None:
        """The last report that the training wrote, in Markdown."""
        texts = self._reading.texts(REPORT)
        return text_in(texts[-1].numpy).decode("utf-8", "replace") if texts else None

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts whose list of sites is known and of which any frame still stands, in the order in which they came."""
        anchor, parts = self._anchored
        first = [int(np.argmax(anchor.parts == i)) if (anchor.parts == i).any() else None for i in range(len(parts))]
        standing = [(at, part) for at, part in zip(first, parts, strict=True) if at is not None]
        return tuple(part for _, part in sorted(standing, key=lambda pair: pair[0]))

    @cached_property
    def schema(self) -> Schema:
        """The sites of all parts; one that came later stands after those that were there."""
        return Timeline(self.info, [Frame(i, part.sites.schema, {}) for i, part in enumerate(self.parts)]).schema

    @property
    def steps(self) -> Steps:
        """The sampled steps that are held, rising."""
        return self._anchored[0].steps

    def steps_of(self, part: Part) -> Steps:
        anchor, parts = self._anchored
        steps: Steps = anchor.steps[anchor.parts == parts.index(part)]
        return steps

    def walls_of(self, part: Part) -> Walls:
        anchor, parts = self._anchored
        walls: Walls = anchor.walls[anchor.parts == parts.index(part)]
        return walls

    # -- numbers

    def block(self, part: Part, statistic: str) -> Block:
        """The records of one statistic that still stand; no more sites than are shown."""
        return self._anchored[0].standing(statistic_block(self._reading, part, statistic))

    def fetch(self, part: Part) -> None:
        """Have all statistics of a part at hand before they are asked for one by one."""
        fetch_statistics(self._reading, part)

    def table(self, statistic: str) -> Table:
        """[sampled steps, sites] float32."""
        kind = statistic.partition(".")[0]
        found = [(part, self.block(part, statistic)) for part in self.parts if statistic in part.tags]
        return self._merged(kind, found)

    def histograms(self, kind: str, site: int) -> Table:
        """[sampled steps, bins] of one site."""
        wanted = self.schema.sites(kind)[site]
        tables = []
        for part in self.parts:
            sites = part.sites.schema.sites(kind)
            if kind in part.histograms and wanted in sites:
                block = self._anchored[0].standing(histogram_block(self._reading, part, kind))
                tables.append((block.steps, block.table[:, sites.index(wanted)].astype(np.float32)))
        empty = [(np.zeros(0, dtype=np.int64), np.zeros((0, HISTOGRAM_BINS), dtype=np.float32))]
        steps, rows = (np.concatenate(columns) for columns in zip(*(tables or empty), strict=True))
        order = np.argsort(steps, kind="stable")
        return Table(steps[order], rows[order])

    @property
    def pulses(self) -> tuple[PulseBlock, ...]:
        """The pulses that still stand, as they were written."""
        return self._reading.pulses()

    @property
    def complete(self) -> bool:
        """Whether TensorBoard holds every sampled step of the run, as far as can be told."""
        return self._reading.complete

    @property
    def damage(self) -> tuple[str, ...]:
        """What could not be read so far, a sentence each."""
        return (*self._reading.faults, *((self.cut,) if self.cut else ()))

    @property
    def cut(self) -> str | None:
        """That not all sites are shown, as a sentence."""
        most = max((part.sites.cut for part in self.parts), default=0)
        return f"The model has {most:,} places of one kind: the first {MOST_SITES:,} are shown." if most else None

    @cached_property
    def _anchored(self) -> tuple[Anchor, list[Part]]:
        parts = list(known_parts(self._reading))
        return Anchor.of([statistic_block(self._reading, part, part.anchor) for part in parts]), parts

    def _merged(self, kind: str, found: list[tuple[Part, Block]]) -> Table:
        """The blocks of several parts in one table, over the sites of the whole run."""
        sites = self.schema.sites(kind)
        if len(found) == 1 and found[0][0].sites.schema.sites(kind) == sites:
            block = found[0][1]
            return Table(block.steps, block.table)
        places = {site: i for i, site in enumerate(sites)}
        steps = np.concatenate([np.zeros(0, dtype=np.int64), *(block.steps for _, block in found)])
        values = np.full((len(steps), len(sites)), np.nan, dtype=np.float32)
        at = 0
        for part, block in found:
            values[at : at + len(block.steps), _places(part, kind, places)] = block.table
            at += len(block.steps)
        order = np.argsort(steps, kind="stable")
        return Table(steps[order], values[order])


def _places(part: Part, kind: str, places: dict[Site, int]) -> npt.NDArray[np.intp]:
    return np.array([places[site] for site in part.sites.schema.sites(kind)], dtype=np.intp)
