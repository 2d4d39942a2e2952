from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope.logdir.framing import framed
from gradscope.logdir.framing import masked_crc
from gradscope.logdir.reader import EventDirectory
from gradscope.logdir.reader import EventFile

PAYLOADS = [bytes([65 + n]) * (5 + 37 * n) + bytes(n) for n in range(8)]
RECORDS = [framed(payload) for payload in PAYLOADS]
WHOLE = b"".join(RECORDS)
NAME = "events.out.tfevents.1.h"


def _header(length: int) -> bytes:
    encoded = struct.pack("<Q", length)
    return encoded + struct.pack("<I", masked_crc(encoded))


def _read(data: bytes, *, window: int = 2**20) -> tuple[list[bytes], str | None]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, NAME)
        path.write_bytes(data)
        file = EventFile(path, window=window)
        return list(file.records()), file.damage


@pytest.mark.parametrize("window", [1, 13, 100, 2**20])
def test_records_come_whole_and_in_order_whatever_is_read_at_once(window):
    assert _read(WHOLE, window=window) == (PAYLOADS, None)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(bit=st.integers(0, 8 * len(WHOLE) - 1), window=st.sampled_from([1, 50, 2**20]))
def test_a_flipped_bit_costs_the_record_it_is_in_and_no_other(bit, window):
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    ends = [sum(map(len, RECORDS[: n + 1])) for n in range(len(RECORDS))]
    hit = next(n for n, end in enumerate(ends) if bit // 8 < end)
    found, damage = _read(bytes(data), window=window)
    assert found == PAYLOADS[:hit] + PAYLOADS[hit + 1 :]
    assert damage == f"{NAME}: {len(RECORDS[hit]):,} bytes in one place are damaged and were left out."


@settings(max_examples=80, derandomize=True, deadline=None)
@given(cut=st.integers(0, len(WHOLE)))
def test_a_file_that_is_still_written_is_not_damaged_and_is_read_on(cut):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, NAME)
        path.write_bytes(WHOLE[:cut])
        file = EventFile(path)
        before = list(file.records())
        assert before == PAYLOADS[: len(before)]
        assert file.damage is None
        path.write_bytes(WHOLE)
        assert before + list(file.records()) == PAYLOADS
        assert list(file.records()) == []
        assert file.damage is None


def test_records_after_a_torn_one_in_the_same_file_are_read():
    found, damage = _read(RECORDS[0] + RECORDS[5][:60] + RECORDS[1] + RECORDS[2])
    assert found == [PAYLOADS[0], PAYLOADS[1], PAYLOADS[2]]
    assert "60 bytes in one place" in damage


def test_a_tail_of_zeros_is_damage_and_what_comes_after_it_is_read():
    found, damage = _read(RECORDS[0] + bytes(5000))
    assert found == [PAYLOADS[0]]
    assert "5,000 bytes in one place" in damage
    found, damage = _read(RECORDS[0] + bytes(5000) + RECORDS[1], window=512)
    assert found == [PAYLOADS[0], PAYLOADS[1]]
    assert "5,000 bytes in one place" in damage


def test_a_damaged_tail_is_counted_once_when_the_file_grows(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(RECORDS[0] + bytes(50))
    file = EventFile(path)
    assert list(file.records()) == [PAYLOADS[0]]
    path.write_bytes(RECORDS[0] + bytes(50) + RECORDS[1])
    assert list(file.records()) == [PAYLOADS[1]]
    assert "50 bytes in one place" in file.damage


@pytest.mark.parametrize("length", [2**20, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_length_is_not_believed(length):
    found, damage = _read(RECORDS[0] + _header(length) + RECORDS[1])
    assert found == [PAYLOADS[0], PAYLOADS[1]]
    assert "12 bytes in one place" in damage


def test_a_vast_sparse_record_is_not_read_into_memory(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(RECORDS[0] + _header(2**30))
    os.truncate(path, 2**20)
    file = EventFile(path)
    assert list(file.records()) == [PAYLOADS[0]]
    assert file.damage is not None


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_never_raises(data):
    found, _ = _read(data + RECORDS[0])
    assert found == [PAYLOADS[0]]


def test_a_directory_is_read_by_name_and_on_from_where_it_stood(tmp_path):
    (tmp_path / "events.out.tfevents.2.h").write_bytes(RECORDS[2])
    (tmp_path / "events.out.tfevents.1.h").write_bytes(RECORDS[0] + bytes(100))
    (tmp_path / "notes.txt").write_bytes(b"not an event file")
    directory = EventDirectory(tmp_path)
    assert [payload for _, payload in directory.records()] == [PAYLOADS[0], PAYLOADS[2]]
    (tmp_path / "events.out.tfevents.3.h").write_bytes(RECORDS[3])
    with (tmp_path / "events.out.tfevents.2.h").open("ab") as file:
        file.write(RECORDS[4])
    assert [payload for _, payload in directory.records()] == [PAYLOADS[4], PAYLOADS[3]]
    assert directory.damage == ("events.out.tfevents.1.h: 100 bytes in one place are damaged and were left out.",)
