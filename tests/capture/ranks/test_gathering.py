"""Who takes what is seen: found out once, and not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import final

import pytest
from torch import distributed
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradscope.capture.ranks.gathering import Gathering
from gradscope.capture.schedule import Governor
from gradscope.records import Frame
from gradscope.records import RunInfo


@final
class Home:
    """Takes everything, and keeps what it was opened for."""

    def __init__(self) -> None:
        self.opened: list[int | None] = []

    def open(self, rank: int | None) -> None:
        self.opened.append(rank)

    def frame(self, frame: Frame) -> None: ...

    def pulse(self, row: Sequence[float]) -> None: ...

    def info(self, info: RunInfo) -> None: ...

    def step_done(self) -> None: ...

    def flush(self) -> None: ...


@final
class Body:
    """Looks, when it is told whose numbers are in its record, whether anybody is still looked for."""

    def __init__(self, ranks: Gathering) -> None:
        self.settled: list[bool] = []
        self._ranks = ranks

    def fetch(self) -> None: ...

    def keep_company(self, ranks: int, note: str | None) -> None:
        self.settled.append(self._ranks.is_settled)


@pytest.fixture
def two_processes() -> Iterator[None]:
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
def test_where_each_process_has_a_model_of_its_own_it_stops_looking_for_others() -> None:
    home, model = Home(), nn.Linear(2, 2)
    ranks = Gathering(home, "own")
    body = Body(ranks)
    ranks.begin(body, lambda: model, Governor(0.02, None))
    assert not ranks.is_settled
    ranks.step_done()
    assert home.opened == [1]
    assert body.settled == [True]
