from __future__ import annotations

from gradscope.ration import DAY
from gradscope.ration import Ration


def test_there_is_a_start_and_then_so_much_a_day():
    now = [100.0]
    ration = Ration(start=1000, a_day=500, clock=lambda: now[0])
    assert ration.room == ration.start == 1000
    ration.spend(1200)
    assert ration.room == -200
    now[0] += DAY
    assert ration.room == 300
    now[0] += DAY / 2
    assert ration.room == 550
