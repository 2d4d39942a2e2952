"""What is cut from event files, in which order it goes, and what is remembered of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gradscope.logdir import pieces
from gradscope.logdir.framing import framed
from gradscope.logdir.names import file_name
from gradscope.logdir.names import host
from gradscope.logdir.names import origin
from gradscope.logdir.names import piece_name
from gradscope.logdir.names import record_name
from gradscope.logdir.pieces import JOURNAL
from gradscope.logdir.pieces import Courier
from gradscope.logdir.pieces import Journal
from gradscope.logdir.pieces import by_anyone
from gradscope.logdir.pieces import written_by

RECORDS = [framed(bytes([n]) * 30 * n) for n in range(10)]
FIRST, SECOND = file_name(1, 7, 0), file_name(2, 7, 1)
ADDRESS = "s3://bucket/run"


class Bucket:
    """Takes what it is given; the puts that are in ``bad`` fail."""

    def __init__(self, *bad):
        self.objects = {}
        self.tried = 0
        self.bad = bad

    def put(self, name, data):
        self.tried += 1
        if self.tried in self.bad:
            raise OSError("not now")
        self.objects[name] = data


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 200)


def courier(folder, bucket, *, ours=by_anyone, address=ADDRESS):
    return Courier(folder, Journal(folder, address), bucket.put, ours=ours)


def names_of(*files):
    return [name for file, count in files for name in (piece_name(file, n) for n in range(count))]


def test_pieces_hold_whole_records_and_are_the_file(tmp_path):
    (tmp_path / FIRST).write_bytes(b"".join(RECORDS))
    bucket = Bucket()
    assert courier(tmp_path, bucket).ship(last=False) == sum(map(len, RECORDS))
    assert list(bucket.objects) == sorted(bucket.objects) == names_of((FIRST, len(bucket.objects)))
    assert b"".join(bucket.objects.values()) == b"".join(RECORDS)
    ends = {sum(map(len, RECORDS[: n + 1])) for n in range(len(RECORDS))}
    lengths = [len(data) for data in bucket.objects.values()]
    assert {sum(lengths[: n + 1]) for n in range(len(lengths))} <= ends
    longest = max(map(len, RECORDS))
    assert longest > pieces.PIECE  # one that is longer goes alone
    assert all(length <= pieces.PIECE or length == longest or length in map(len, RECORDS) for length in lengths)


@pytest.mark.parametrize("cut", [1, 11, 12, 13, 60, 250])
def test_a_record_that_is_still_written_waits(tmp_path, cut):
    whole = b"".join(RECORDS)
    path = tmp_path / FIRST
    path.write_bytes(whole[:-cut])
    bucket = Bucket()
    going = courier(tmp_path, bucket)
    going.ship(last=False)
    before = sum(map(len, bucket.objects.values()))
    assert before in {sum(map(len, RECORDS[:n])) for n in range(len(RECORDS))} and going.waiting() == len(whole) - cut - before
    path.write_bytes(whole)
    going.ship(last=False)
    assert b"".join(bucket.objects.values()) == whole and going.waiting() == 0


def test_a_record_that_was_never_finished_is_given_up_at_the_end(tmp_path):
    (tmp_path / FIRST).write_bytes(RECORDS[1] + RECORDS[2][:-1])
    bucket = Bucket()
    going = courier(tmp_path, bucket)
    assert going.ship(last=True) == len(RECORDS[1])
    assert going.waiting() == 0 and list(bucket.objects.values()) == [RECORDS[1]]


def test_what_is_damaged_goes_as_it_is(tmp_path):
    data = RECORDS[1] + b"\xff" * 500 + RECORDS[2]
    (tmp_path / FIRST).write_bytes(data)
    bucket = Bucket()
    courier(tmp_path, bucket).ship(last=True)
    assert b"".join(bucket.objects.values()) == data


def test_a_put_that_fails_is_made_again_and_nothing_overtakes_it(tmp_path):
    (tmp_path / FIRST).write_bytes(b"".join(RECORDS))
    (tmp_path / SECOND).write_bytes(b"".join(RECORDS[:5]))
    bucket = Bucket(2, 3, 5)
    going = courier(tmp_path, bucket)
    for _ in range(3):
        with pytest.raises(OSError, match="not now"):
            going.ship(last=False)
        assert list(bucket.objects) == names_of((FIRST, len(bucket.objects)))
    going.ship(last=False)
    assert list(bucket.objects) == sorted(bucket.objects)
    assert b"".join(bucket.objects.values()) == b"".join(RECORDS) + b"".join(RECORDS[:5])


def test_another_process_goes_on_where_the_last_one_stopped(tmp_path):
    (tmp_path / FIRST).write_bytes(b"".join(RECORDS[:6]))
    first, second = Bucket(), Bucket()
    courier(tmp_path, first).ship(last=False)
    (tmp_path / FIRST).write_bytes(b"".join(RECORDS))
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"address": "s3://bucket/r')  # killed while it wrote
    assert courier(tmp_path, second).ship(last=False) == sum(map(len, RECORDS[6:]))
    assert not first.objects.keys() & second.objects.keys()
    assert courier(tmp_path, Bucket(), address="s3://elsewhere").ship(last=False) == sum(map(len, RECORDS))


def test_what_the_store_lost_altogether_is_shipped_again(tmp_path):
    (tmp_path / FIRST).write_bytes(b"".join(RECORDS))
    bucket = Bucket()
    going = courier(tmp_path, bucket)
    going.ship(last=True)
    going.begin_anew(frozenset(list(bucket.objects)[-1:]))
    assert going.waiting() == 0
    going.begin_anew(frozenset({"something else"}))
    assert going.waiting() == sum(map(len, RECORDS))


def test_files_of_a_process_that_lives_are_its_own_to_ship():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = written_by(os.getpid())
    assert ours(origin(file_name(1, os.getpid(), 0))) and ours(origin(file_name(1, dead.pid, 0)))
    assert not ours(origin(file_name(1, os.getppid(), 0)))
    assert not ours(origin("events.out.tfevents.0000000001.other-machine.1.0.gradscope"))


def test_names():
    assert origin(FIRST).host == host() and origin(FIRST).process == 7
    assert origin("events.out.tfevents.1.h") is None
    assert record_name(piece_name(FIRST, 3)) == record_name(piece_name(FIRST, 0)) != FIRST
    assert record_name(FIRST) == FIRST
    many = [piece_name(FIRST, n) for n in (0, 9, 10, 99, 100)]
    assert sorted([*many, SECOND]) == [*many, SECOND]
