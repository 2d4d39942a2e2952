"""Several ranks in one process: links that sum up as soon as all have given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import final

import numpy as np

from gradscope.capture.ranks.exchange import Block
from gradscope.capture.ranks.exchange import Row
from gradscope.capture.ranks.link import LinkBroken
from gradscope.capture.ranks.packing import Packed
from gradscope.capture.ranks.pooling import Form
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.records import Site

SCHEMA = Schema((Site("x"),), (Site("a"), Site("b")), (Site("a.weight"), Site("b.weight")), (Site("loss"),), ())


def reduced(given: Sequence[Packed]) -> Packed:
    """What collectives make of what all ranks give."""
    return Packed(sum(np.stack([one.sums for one in given])), np.stack([one.tops for one in given]).max(0))


@final
@dataclass
class Fabric:
    """The wires of all ranks."""

    ranks: int
    given: list[list[Packed]] = field(default_factory=list)  # by order of the collectives, of those who have come
    closed: bool = False

    def link(self) -> Wire:
        return Wire(self)


@final
class Wire:
    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.begun = 0

    def start(self, given: Packed) -> OnWire:
        number, self.begun = self.begun, self.begun + 1
        if number == len(self.fabric.given):
            self.fabric.given.append([])
        self.fabric.given[number].append(given)
        return OnWire(self.fabric, number)

    def close(self) -> None:
        self.fabric.closed = True


@final
class OnWire:
    def __init__(self, fabric: Fabric, number: int) -> None:
        self.fabric = fabric
        self.number = number

    def is_done(self) -> bool:
        done = len(self.fabric.given[self.number]) == self.fabric.ranks
        if not done and self.fabric.closed:
            raise LinkBroken("Connection closed by peer")
        return done

    def wait(self, seconds: float) -> None:
        if not self.is_done():
            raise LinkBroken(f"nobody came in {seconds:.0f} seconds")

    @property
    def found(self) -> Packed:
        sizes = {(len(one.sums), len(one.tops)) for one in self.fabric.given[self.number]}
        assert len(sizes) == 1, "ranks began different collectives at once"
        return reduced(self.fabric.given[self.number])


@final
class Ear:
    """Keeps what a rank hears."""

    def __init__(self, *, cadence: int = 0) -> None:
        self.frames: list[Frame] = []
        self.rows: list[Row] = []
        self.heard: list[tuple[int, int, bool]] = []
        self.why: list[str] = []
        self.quietly = False
        self.left = 0
        self.alarmed = False
        self._cadence = cadence

    def form(self, frame: Frame) -> Form:
        none = np.zeros(len(frame.schema.parameters), dtype=bool)
        return Form(frame.schema, none, ~none, histograms=bool(frame.histograms))

    def cadence(self) -> int:
        return self._cadence

    def raised(self) -> bool:
        return self.alarmed

    def learned(self, step: int, cadence: int, *, alarm: bool) -> None:
        self.heard.append((step, cadence, alarm))

    def told(self, frame: Frame | None, rows: Sequence[Row]) -> None:
        self.frames += [frame] if frame is not None else []
        self.rows += rows

    def parted(self, why: str, left: Sequence[Block], *, quietly: bool) -> None:
        self.why.append(why)
        self.quietly = quietly
        self.left = sum(len(block.rows) for block in left)


def frame(step: int, *, rms: float = 1.0, schema: Schema = SCHEMA, norm: float = 2.0) -> Frame:
    sites = len(schema.modules)
    return Frame(
        step,
        schema,
        {
            "activation.rms": np.full(sites, rms, dtype=np.float32),
            "weight.norm": np.full(len(schema.parameters), norm, dtype=np.float32),
        },
    )


def row(step: int, loss: float, *, sampled: bool = True, norm: float = 1.0) -> Row:
    known = {"step": float(step), "loss": loss, "gradient_norm": norm, "sampled": float(sampled)}
    return tuple(known.get(name, 0.0) for name in PULSE_FIELDS)
