"""Reads one run's tags, keeps what it has read within bounds, and notes what could not be read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import partial
from typing import TypeVar
from typing import final

from tensorboard.data import provider as data

from gradscope.logdir.tags import PULSE
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.tensorboard.blocks import Block
from gradscope.tensorboard.blocks import block_of
from gradscope.tensorboard.blocks import broken_block
from gradscope.tensorboard.pulses import PulseBlock
from gradscope.tensorboard.pulses import pulse_blocks
from gradscope.tensorboard.shelf import Shelf
from gradscope.tensorboard.source import Asker
from gradscope.tensorboard.source import Source
from gradscope.tensorboard.source import Tags
from gradscope.tensorboard.source import Unsound
from gradscope.tensorboard.source import etag_of
from gradscope.tensorboard.texts import Parsed
from gradscope.tensorboard.texts import Texts

T = TypeVar("T", RunInfo, Schema)

ROOM = 192 * 2**20  # bytes for statistics and histograms that were read, of all runs
AT_ONCE = 32 * 2**20  # bytes that are asked for at once
PULSE_ROOM = 64 * 2**20  # bytes for pulses


@final
class Memory:
    """What was read of all runs, as far as there is room for it."""

    def __init__(self) -> None:
        self.blocks: Shelf[Block] = Shelf(ROOM, lambda block: block.nbytes)
        self.pulses: Shelf[tuple[PulseBlock, ...]] = Shelf(PULSE_ROOM, lambda blocks: sum(b.rows.nbytes + 64 for b in blocks))
        self.texts = Texts()


@final
class Reading:
    """One run's tags, as they are at one moment."""

    def __init__(self, source: Source, memory: Memory, asker: Asker, run: str, tags: Tags, *, samples: int) -> None:
        self._source, self._memory, self._asker = source, memory, asker
        self.run, self.tags, self.etag = run, tags, etag_of(tags)
        self._samples = samples
        self._faults: dict[str, None] = {}
        self._most_records = 0

    @property
    def faults(self) -> tuple[str, ...]:
        return tuple(self._faults)

    @property
    def complete(self) -> bool:
        """Whether no tag that was read is as full as TensorBoard fills it."""
        return not self._samples or self._most_records < self._samples

    def note(self, fault: str | None) -> None:
        if fault is not None:
            self._faults[fault] = None

    def block(self, tag: str, dtype: str, shape: tuple[int, ...]) -> Block:
        """The sound records of ``tag``; none where it cannot be read."""
        block = self._keep(tag, shape, lambda: self._read_block(tag, dtype, shape))
        self._most_records = max(self._most_records, block.records)
        self.note(block.fault)
        return block

    def fetch(self, wanted: Mapping[str, int], records: int) -> None:
        """Read several statistics with few requests: how many sites each has, and about how many records there are."""
        missing = [tag for tag, sites in wanted.items() if not self._holds(tag, (sites,))]
        most = max(AT_ONCE // (4 * max(records, 1) * max(wanted.values(), default=1)), 1)
        for start in range(0, len(missing), most):
            group = missing[start : start + most]
            try:
                found = self._source.read_several(self._asker, self.run, group)
            except Unsound:
                continue  # read one by one, they show which of them it is
            for tag in group:
                shape = (wanted[tag],)
                self._keep(tag, shape, partial(block_of, tag, found.get(tag, ()), "<f4", shape))

    def _keep(self, tag: str, shape: tuple[int, ...], make: Callable[[], Block]) -> Block:
        return self._memory.blocks.get(self._key(tag), make, version=self._version(tag, shape))

    def _holds(self, tag: str, shape: tuple[int, ...]) -> bool:
        return self._memory.blocks.holds(self._key(tag), version=self._version(tag, shape))

    def _key(self, tag: str) -> tuple[str, str, str]:
        return self._asker[1], self.run, tag

    def _version(self, tag: str, shape: tuple[int, ...]) -> tuple[object, ...]:
        return self.tags[tag].max_step, self.tags[tag].max_wall_time, shape

    def arrays(self, tag: str) -> Sequence[data.TensorDatum]:
        """The records of ``tag`` as they are, which are small; none where they cannot be read."""
        if tag not in self.tags:
            return ()
        try:
            found = self._source.read(self._asker, self.run, tag)
        except Unsound as error:
            self.note(str(error))
            return ()
        self._most_records = max(self._most_records, len(found))
        return found

    def pulses(self) -> tuple[PulseBlock, ...]:
        """The run's pulses."""
        series = self.tags.get(PULSE)
        if series is None:
            return ()
        return self._memory.pulses.get(
            (self._asker[1], self.run),
            lambda: pulse_blocks(self.arrays(PULSE), series.plugin_content),
            version=(series.max_step, series.max_wall_time),
        )

    def texts(self, tag: str) -> Sequence[data.TensorDatum]:
        """As ``arrays``, of a tag whose later records repeat the earlier ones: that some are missing does not matter."""
        most = self._most_records
        found = self.arrays(tag)
        self._most_records = most
        return found

    def parsed(self, kind: type[T], text: bytes) -> Parsed:
        found = self._memory.texts.parsed(kind, text)
        self.note(found.fault and f"{self.run}: {found.fault}")
        return found

    def _read_block(self, tag: str, dtype: str, shape: tuple[int, ...]) -> Block:
        try:
            return block_of(tag, self._source.read(self._asker, self.run, tag), dtype, shape)
        except Unsound as error:
            return broken_block(dtype, shape, str(error))
