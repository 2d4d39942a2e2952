"""When a piece is shipped, and when one that failed is tried again."""

from __future__ import annotations

import pytest

from gradscope.logdir.framing import framed
from gradscope.logdir.names import file_name
from gradscope.logdir.pieces import Courier
from gradscope.logdir.pieces import Journal
from gradscope.logdir.pieces import by_anyone
from gradscope.logdir.shipping import Order
from gradscope.logdir.shipping import Pace
from gradscope.logdir.shipping import Round


def test_the_pace_slows_with_age_and_the_number_of_pieces_stays_small():
    pace = Pace()
    assert [pace.after(age) for age in (0, 500, 3600, 86400)] == [10, 10, 72, 300]
    age, count = 0.0, 0
    while age < 4 * 3600:
        age += pace.after(age)
        count += 1
    assert 200 < count < 240


def test_pauses_double_up_to_a_minute():
    assert [Pace().pause(failures) for failures in (1, 2, 3, 6, 7, 10_000)] == [1, 2, 4, 32, 60, 60]


def test_an_order_is_one_line():
    order = Order("a\ndirectory", "s3://bucket", 7, Pace(first=0.5))
    assert Order.of_line(order.line()) == order and order.line().count("\n") == 1


@pytest.fixture
def rounds(tmp_path):
    tried, said = [], []

    def put(name, data):
        tried.append(name)
        if len(tried) == 1:
            raise ConnectionError("nobody there")

    (tmp_path / file_name(1, 7, 0)).write_bytes(framed(b"first"))
    courier = Courier(tmp_path, Journal(tmp_path, "s3://b"), put, ours=by_anyone)
    never = Pace(first=1e9, most=1e9, retry=1e9, retry_most=1e9)
    return tmp_path, tried, said, Round(courier, never, said.append)


def test_a_store_that_fails_is_left_alone_until_the_pause_is_over(rounds):
    _, tried, said, turns = rounds
    assert [turns.go(last=False) for _ in range(3)] == [False] * 3
    assert len(tried) == 1 and said == ["the store cannot be reached (nobody there)"]
    turns.hasten()
    assert turns.go(last=True)
    assert len(tried) == 2 and said[1:] == [""]


def test_between_two_turns_only_a_full_piece_is_shipped(rounds, monkeypatch):
    folder, tried, _, turns = rounds
    turns.go(last=False)
    turns.hasten()
    turns.go(last=False)
    (folder / file_name(2, 7, 1)).write_bytes(framed(b"second"))
    turns.go(last=False)
    assert len(tried) == 2
    monkeypatch.setattr("gradscope.logdir.shipping.PIECE", 5)
    turns.go(last=False)
    assert len(tried) == 3
