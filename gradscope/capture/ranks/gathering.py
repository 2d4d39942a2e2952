"""Between one model's watch and who takes what it sees: the ranks that train it together become one run.

Until it is known who trains the model with us, and whether they watch too, nothing is handed on. Then either all exchange their
numbers and the first hands on what they came to, or each hands on its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from typing import Protocol
from typing import final

import numpy as np
import torch

from gradscope.capture.naming import parameters_of
from gradscope.capture.ranks.company import Company
from gradscope.capture.ranks.company import calling_wrapper
from gradscope.capture.ranks.company import company_of
from gradscope.capture.ranks.company import own_rank
from gradscope.capture.ranks.exchange import CATCH_UP_SECONDS
from gradscope.capture.ranks.exchange import Block
from gradscope.capture.ranks.exchange import Exchanges
from gradscope.capture.ranks.exchange import Row
from gradscope.capture.ranks.link import GlooLink
from gradscope.capture.ranks.link import LinkBroken
from gradscope.capture.ranks.meeting import TITLES
from gradscope.capture.ranks.meeting import Meeting
from gradscope.capture.ranks.pooling import Form
from gradscope.capture.ranks.timetable import Timetable
from gradscope.capture.schedule import Governor
from gradscope.capture.shards import shard_of
from gradscope.capture.sink import Sink
from gradscope.failures import warn
from gradscope.records import Frame
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.trends import Mask

CLOSING_SECONDS = 10  # that a rank waits for the others when the watching ends
_MOST_FORMS = 16  # that are kept: a model has few schemas


class Home(Sink, Protocol):
    """Who takes what the watch sees, once it is known whether anybody is to."""

    def open(self, rank: int | None) -> None:
        """Take what comes from now on; ``rank`` stands in the run's name where other ranks have runs of their own."""


class Body(Protocol):
    """The watch, as far as the ranks matter to it."""

    def fetch(self) -> None:
        """Bring what finished steps have shown to the host, and hand it on. Waits for the device."""

    def keep_company(self, ranks: int, note: str | None) -> None:
        """So many ranks' numbers are in this run, and what there is to say of that."""


@final
class Gathering:
    """A sink for the watch of a model that other processes may train too."""

    def __init__(self, home: Home, name: str) -> None:
        self._home = home
        self._name = TITLES.next(name)
        self._held: list[Callable[[], None]] | None = []  # what came before it was known who takes it
        self._model: Callable[[], torch.nn.Module | None] = lambda: None
        self._body: Body | None = None
        self._governor: Governor | None = None
        self._company: Company | None = None
        self._meeting: Meeting | None = None
        self._exchanges: Exchanges | None = None
        self._timetable: Timetable | None = None
        self._forms: dict[tuple[int, bool], Form] = {}  # by ``id`` of the schema, and whether with histograms
        self._ended = 0  # steps, until it is known
        self._heard = -1  # the last step whose exchange said something

    # -- life

    def begin(self, body: Body, model: Callable[[], torch.nn.Module | None], governor: Governor) -> None:
        """The model is watched from now on. Asks the group's store at most; waits for no other rank."""
        self._model, self._body, self._governor = model, body, governor
        self._timetable = governor.agree(self._catch_up)
        self._look_around(None)

    def called(self, *_: object) -> None:
        """The model was called: by a wrapper, should there be one that was put around it after it was given to us."""
        if self._meeting is None:
            self._look_around(calling_wrapper())

    @property
    def is_here(self) -> bool:
        """Whether this process has the run; else another one has."""
        return self._held is None and (self._exchanges is None or self._is_first)

    @property
    def is_settled(self) -> bool:
        """Whether it is known who trains the model."""
        return self._held is None

    def close(self) -> None:
        """The watching ends: tell the others what is left, and wait a little for them to do the same."""
        if self._held is not None:
            self._settle_alone()
        exchanges = self._exchanges
        if exchanges is not None and exchanges.open:
            crashed = vars(sys).get("last_value") is not None  # then the others do not come
            exchanges.finish(0.0 if crashed else CLOSING_SECONDS)
            exchanges.leave()

    def leave(self) -> None:
        """The watching has failed here."""
        if self._exchanges is not None:
            self._exchanges.leave()

    # -- what the watch hands on

    def frame(self, frame: Frame) -> None:
        if self._held is not None:
            self._held.append(lambda: self.frame(frame))
        elif self._exchanges is not None:
            self._exchanges.frame(frame)
        else:
            self._home.frame(frame)

    def pulse(self, row: Row) -> None:
        if self._held is not None:
            self._held.append(lambda: self.pulse(row))
        elif self._exchanges is not None:
            self._exchanges.pulse(row)
        else:
            self._home.pulse(row)

    def info(self, info: RunInfo) -> None:
        if self._held is not None:
            self._held.append(lambda: self.info(info))
        elif self.is_here:
            self._home.info(info)

    def step_done(self) -> None:
        if self._held is not None:
            self._come_together()
        if self._exchanges is not None:
            self._exchanges.advance()
        if self.is_here:
            self._home.step_done()

    def flush(self) -> None:
        if self.is_here:
            self._home.flush()

    # -- who is who

    def _look_around(self, wrapper: torch.nn.Module | None) -> None:
        model = self._model()
        self._company = company_of(model, wrapper) if model is not None else None
        if self._company is not None and self._meeting is None:
            self._meeting = Meeting(self._company, self._name)
            self._meeting.arrive()

    def _come_together(self) -> None:
        self._ended += 1
        if self._meeting is None:
            self._settle_alone()
        elif self._ended == 1:
            self._meeting.look()
        else:
            self._settle(self._meeting)

    def _settle_alone(self) -> None:
        """Nobody trains with us, or it was not found out in time."""
        if self._company is None:
            self._open(own_rank(), "each process trains a model of its own: this run is one process's")
        elif self._company.place == 0:
            self._open(None, "the watching ended before the ranks had met: the numbers are the first rank's alone")
        else:
            self._held = []

    def _settle(self, meeting: Meeting) -> None:
        company, outcome = _known(self._company), meeting.outcome()
        if outcome == "together":
            self._join(company, meeting)
            return
        if outcome == "first alone":
            self._open(
                None, f"only the first of {company.size} ranks was watched: losses, activations and their gradients are its"
            )
            return
        self._part_ways(company, "not all of the ranks that train the model are watched")

    def _join(self, company: Company, meeting: Meeting) -> None:
        try:
            link = GlooLink(company, meeting.name)
        except LinkBroken as error:
            self._part_ways(company, f"the ranks could not be connected: {error}")
            return
        self._exchanges = Exchanges(link, self, place=company.place, ranks=company.size)
        note = f"this is rank {company.rank} of {company.size}: the first rank has the record of all of them, and the report"
        if self._is_first:
            self._home.open(None)
        self._release()
        self._keep_company(company.size, None if self._is_first else note)

    def _part_ways(self, company: Company, why: str) -> None:
        warn(
            "ranks-not-together",
            f"Expected gradscope.attach() on each of the {company.size} ranks that {company.by} trains the model on, or on the "
            f"first alone; found that {why}. Rank {company.rank} is recorded by itself.",
        )
        self._open(company.rank if company.place else None, f"{why}: this run is rank {company.rank}'s alone")

    def _open(self, rank: int | None, note: str) -> None:
        """This rank's own numbers are the run."""
        if self._governor is not None:
            self._governor.disagree()
        self._home.open(rank)
        self._release()
        self._keep_company(1, note)

    def _release(self) -> None:
        held, self._held = self._held or [], None
        for hand_on in held:
            hand_on()

    def _keep_company(self, ranks: int, note: str | None) -> None:
        """To be said once all is settled: then the watch looks for no wrapper any more."""
        if self._body is not None:
            self._body.keep_company(ranks, note)

    @property
    def _is_first(self) -> bool:
        return self._company is not None and self._company.place == 0

    # -- what the exchanges ask and tell

    def form(self, frame: Frame) -> Form:
        key = (id(frame.schema), bool(frame.histograms))
        known = self._forms.get(key)
        if known is None:
            if len(self._forms) > _MOST_FORMS:
                self._forms.clear()
            known = self._forms[key] = self._make_form(frame.schema, histograms=bool(frame.histograms))
        return known

    def _make_form(self, schema: Schema, *, histograms: bool) -> Form:
        model = self._model()
        held = {} if model is None else dict(parameters_of(model))
        shards = {name: shard_of(parameter) for name, parameter in held.items()}
        split = {name for name, shard in shards.items() if shard is not None and (shard.is_split or shard.is_partial)}
        own = self._company.apart if self._company is not None else frozenset()
        apart = split | {name for name, parameter in held.items() if id(parameter) in own}
        return Form(schema, _mask(schema, split), ~_mask(schema, apart), histograms=histograms)

    def cadence(self) -> int:
        return self._governor.cadence() if self._governor is not None else 0

    def raised(self) -> bool:
        if self._timetable is None:
            return False
        raised, self._timetable.alarmed = self._timetable.alarmed, False
        return raised

    def learned(self, step: int, cadence: int, *, alarm: bool) -> None:
        self._heard = step
        if self._timetable is not None:
            self._timetable.learn(step, cadence, alarm=alarm)

    def told(self, frame: Frame | None, rows: Sequence[Row]) -> None:
        if frame is not None:
            self._home.frame(frame)
        for row in rows:
            self._home.pulse(row)

    def parted(self, why: str, left: Sequence[Block], *, quietly: bool) -> None:
        if self._governor is not None:
            self._governor.disagree()
        self._timetable = None
        if not quietly:
            warn(
                "ranks-parted",
                f"The ranks' numbers are not put together any more: {why}. Training goes on; what follows is the first rank's "
                "alone.",
            )
        if not self._is_first:
            return
        size = self._company.size if self._company else 1
        self._keep_company(size, f"from step {self._heard + 1} on the first rank's alone: {why}")
        for block in left:
            self.told(block.frame, block.rows)
        self._exchanges = None

    def _catch_up(self, step: int) -> None:
        exchanges = self._exchanges
        if exchanges is None:
            return
        exchanges.catch_up(CATCH_UP_SECONDS, until=lambda: self._heard >= step)
        if self._heard < step and exchanges.open and self._body is not None:
            self._body.fetch()
            exchanges.catch_up(CATCH_UP_SECONDS, until=lambda: self._heard >= step)


def _mask(schema: Schema, names: Collection[str]) -> Mask:
    return np.array([site.path in names for site in schema.parameters], dtype=bool)


def _known(company: Company | None) -> Company:
    if company is None:
        raise RuntimeError("ranks met of whom nothing is known")
    return company
