"""Damaged and hostile log directories: what can be read is read, within bounds, and what is left out is said."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from gradscope import replay
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.folders import LocalSource
from gradscope.logdir.folders import Opened
from gradscope.logdir.folders import Source
from gradscope.logdir.framing import framed
from gradscope.logdir.reader import MOST_TOLD
from gradscope.logdir.reader import EventDirectory
from gradscope.logdir.reader import EventFile
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import RunDirectory
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.logdir.runs import survey
from tests.logdir import harm
from tests.logdir.samples import assert_same_frame
from tests.logdir.samples import pulses

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
MEMORY = 2**29  # bytes that reading a bomb may take beside what the interpreter has; the files have 47 MB at most
SECONDS = 60  # of one core: hundreds where the work grew with the square of the file

READ = """
import json, resource, sys
from gradscope import replay
from gradscope.diagnosis import chosen
from gradscope.report import jsonreport, markdown, text
chosen(None, None)
had = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (had + {memory}, had + {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
try:
    report = replay.read(sys.argv[1])
except replay.LogdirError as error:
    print(json.dumps([str(error)]))
else:
    for form in (text, markdown, jsonreport):
        form.render(report.runs)
    print(json.dumps([*report.unread, *(sentence for run in report.runs for sentence in run.damage)]))
"""


def read_in_bounds(folder):
    """What the report says was left out, read by a process that may take so much memory and time."""
    code = READ.format(memory=MEMORY, seconds=SECONDS)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file's records, header and all."""
    path = harm.small_file(tmp_path_factory.mktemp("whole"))
    return [framed(payload) for payload in EventFile(path).records()]


@contextmanager
def directory(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / harm.NAME
    path.write_bytes(data)
    yield folder
    path.unlink()
    folder.rmdir()


def steps_read(folder):
    run = read_run(RunDirectory(".", folder))
    for frame in run.frames:
        assert_same_frame(frame, harm.small(frame.step))
    return [frame.step for frame in run.frames], run


# -- damage


def test_cut_off_at_any_byte_all_whole_records_are_read(whole, tmp_path):
    path = tmp_path / harm.NAME
    data = b"".join(whole)
    ends = np.cumsum([len(record) for record in whole])
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        file = EventFile(path)
        assert len(list(file.records())) == np.searchsorted(ends, cut, side="right")
        assert file.damage is None
        if cut % 9 == 0:
            steps, run = steps_read(tmp_path)
            assert steps == list(range(len(steps)))
            assert not any("damaged" in sentence for sentence in run.damage)


def test_with_zeros_from_any_byte_on_all_records_before_are_read_and_the_rest_is_counted(whole, tmp_path):
    path = tmp_path / harm.NAME
    data = b"".join(whole)
    ends = np.cumsum([0, *(len(record) for record in whole)])
    for cut in range(0, len(data) - 64, 7):
        path.write_bytes(data[:cut] + bytes(len(data) - cut))
        file = EventFile(path)
        found = [len(record) + 16 for record in file.records()]
        assert sum(found) >= ends[ends <= cut].max()
        assert file.damage is not None and f"{len(data) - sum(found):,} bytes" in file.damage


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_records_twice_and_in_any_order_never_make_up_a_frame(whole, tmp_path_factory, data):
    order = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=2 * len(whole)))
    with directory(tmp_path_factory, b"".join(whole[i] for i in order)) as folder:
        steps, run = steps_read(folder)
        assert steps == sorted(set(steps))
        assert not any("bytes" in sentence for sentence in run.damage)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.data())
def test_two_writers_in_one_file_cost_the_torn_records_alone(whole, tmp_path_factory, data):
    """The second writer's bytes stand amid the first one's record."""
    torn = data.draw(st.integers(0, len(whole) - 1))
    at = data.draw(st.integers(1, len(whole[torn]) - 1))
    mixed = [*whole[:torn], whole[torn][:at], *whole, whole[torn][at:], *whole[torn + 1 :]]
    with directory(tmp_path_factory, b"".join(mixed)) as folder:
        file = EventFile(folder / harm.NAME)
        assert [framed(payload) for payload in file.records()] == [*whole[:torn], *whole, *whole[torn + 1 :]]
        assert file.damage is not None and f"{len(whole[torn]):,} bytes" in file.damage


# -- bombs


@pytest.mark.parametrize("name", [name for name in harm.BOMBS if name not in ("claims 256 MB", "many lists of sites")])
def test_a_bomb_takes_bounded_memory_and_time_and_is_said(tmp_path, name):
    harm.plant(tmp_path, name)
    said = read_in_bounds(tmp_path)
    told = ("Found ", "damaged") if name != "falling steps" else ("lost",)
    assert any(word in said for word in told), said


def test_a_claim_beyond_the_end_is_a_record_that_is_still_being_written(tmp_path):
    harm.plant(tmp_path, "claims 256 MB")
    assert steps_read(tmp_path)[0] == list(range(6))
    assert EventFile(tmp_path / harm.LATE).damage is None


class Counting(Source):
    """A file that counts the bytes that are read of it."""

    def __init__(self, path):
        self._path, self.read_bytes = path, 0

    @property
    def name(self):
        return self._path.name

    @contextmanager
    def open(self):
        with LocalSource(self._path).open() as file:
            yield Counted(self, file)


class Counted(Opened):
    def __init__(self, counting, file):
        self._counting, self._file = counting, file

    @property
    def size(self):
        return self._file.size

    def read(self, offset, count):
        found = self._file.read(offset, count)
        self._counting.read_bytes += len(found)
        return found


@pytest.mark.parametrize(
    "data", [harm.wrong(b"x" * 40) * 2000, harm.header(40_000) * 5000, bytes(100_000), os.urandom(100_000)]
)
def test_what_is_damaged_is_read_from_the_disk_once_or_twice(tmp_path, data):
    path = tmp_path / harm.NAME
    path.write_bytes(data + framed(b"sound"))
    source = Counting(path)
    assert list(EventFile(source, window=20_000).records()) == [b"sound"]
    assert source.read_bytes <= 14 * len(data)


# -- what is no file


@pytest.mark.parametrize("kind", harm.NO_FILES)
def test_what_is_no_file_is_not_waited_for_and_is_said(tmp_path, kind):
    harm.small_file(tmp_path)
    harm.NO_FILES[kind](tmp_path / harm.LATE)
    said = read_in_bounds(tmp_path)
    assert f"{harm.LATE}: could not be read (" in said


def test_where_nothing_is_a_file_the_run_cannot_be_read(tmp_path):
    for number, make in enumerate(harm.NO_FILES.values()):
        make(tmp_path / f"events.out.tfevents.{number}.gradscope")
    assert "cannot be read: " in read_in_bounds(tmp_path)


def test_a_directory_that_is_called_like_a_file_is_a_directory(tmp_path):
    harm.small_file(tmp_path / harm.LATE / "gradscope")
    harm.small_file(tmp_path / "gradscope")
    assert {run.name for run in find_runs(tmp_path)} == {".", harm.LATE}
    assert not replay.read(tmp_path).unread


# -- many, deep, closed


def test_of_very_many_damaged_files_some_are_named_and_the_rest_counted(tmp_path):
    for number in range(40):
        (tmp_path / f"events.out.tfevents.{number:03d}").write_bytes(bytes(30))
    folder = EventDirectory(tmp_path)
    assert list(folder.records()) == []
    assert len(folder.damage) == MOST_TOLD + 1
    assert folder.damage[-1] == f"{40 - MOST_TOLD} more files are damaged or could not be read."


def test_of_very_many_unreadable_runs_some_are_named_and_the_rest_counted(tmp_path):
    harm.small_file(tmp_path / "sound" / "gradscope")
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / harm.NAME).write_bytes(bytes(40))
    report = replay.read(tmp_path)
    assert len(report.unread) == 50
    assert len(report.not_read) == 21
    assert str(report).endswith("Not read: 30 more runs could not be read.")


def test_directories_of_any_depth_are_looked_into(tmp_path):
    """As deep as a path may be long; from there on it is said."""
    harm.small_file(tmp_path / "gradscope")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = survey(tmp_path)
    assert [run.name for run in found.runs] == ["."]
    assert len(found.unread) == 1 and "name too long" in found.unread[0]
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_links_that_lead_in_circles_are_followed_once(tmp_path):
    harm.small_file(tmp_path / "a" / "gradscope")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert [run.name for run in find_runs(tmp_path)] == ["a"]


def test_a_directory_that_may_not_be_looked_into_is_said_beside_the_others():
    code = """
import os, sys
from gradscope import replay
if os.getuid() == 0:
    os.setuid(65534)
print(replay.read(sys.argv[1]).unread)
"""
    with tempfile.TemporaryDirectory() as place:  # not pytest's own, whose parents are closed to other users
        logdir = Path(place)
        logdir.chmod(0o755)
        harm.small_file(logdir / "open" / "gradscope")
        (logdir / "closed").mkdir(mode=0)
        argv = [sys.executable, "-c", code, place]
        done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False)
        (logdir / "closed").chmod(0o700)
    assert "closed cannot be read (permission denied); runs below it are not in this report." in done.stdout, done.stderr


# -- files that change while they are read


def test_a_file_that_vanishes_while_others_are_read_is_said(tmp_path):
    harm.small_file(tmp_path)
    (tmp_path / harm.LATE).write_bytes(framed(b""))
    folder = EventDirectory(tmp_path)
    records = folder.records()
    next(records)
    (tmp_path / harm.LATE).unlink()
    assert len(list(records)) > 5
    assert folder.damage == (f"{harm.LATE}: could not be read (No such file or directory).",)


def test_a_file_that_vanishes_while_it_is_read_itself_is_read_to_its_end(tmp_path):
    path = harm.small_file(tmp_path)
    expected = list(EventFile(path).records())
    file = EventFile(path, window=64)
    records = file.records()
    found = [next(records)]
    path.unlink()
    assert [*found, *records] == expected


def test_a_file_that_is_cut_short_while_it_is_read_gives_what_is_left(tmp_path):
    path = harm.small_file(tmp_path)
    expected = list(EventFile(path).records())
    file = EventFile(path, window=64)
    records = file.records()
    found = [next(records)]
    os.truncate(path, path.stat().st_size // 2)
    found += records
    assert found == expected[: len(found)] and 1 < len(found) < len(expected)
    path.write_bytes(b"".join(map(framed, expected)))
    assert [*found, *file.records()] == expected


def test_a_file_that_grows_while_it_is_read_is_read_on_the_next_time(tmp_path):
    path = harm.small_file(tmp_path)
    expected = list(EventFile(path).records())
    file = EventFile(path)
    records = file.records()
    next(records)
    with path.open("ab") as more:
        more.write(framed(b"later"))
    assert len(list(records)) == len(expected) - 1
    assert list(file.records()) == [b"later"]


def test_a_run_whose_directory_vanishes_is_told_beside_the_others(tmp_path):
    harm.small_file(tmp_path / "a" / "gradscope")
    (run,) = find_runs(tmp_path)
    subprocess.run(["rm", "-r", str(tmp_path / "a")], check=True)
    with pytest.raises(LogdirError, match="no such file"):
        read_run(run)


def test_pulses_that_go_back_again_and_again_are_those_of_the_last_time(tmp_path):
    recorder = Recorder(tmp_path)
    for again in range(50):
        recorder.pulses(pulses([3, 4, 5], loss=float(again)))
    np.testing.assert_array_equal(read_run(RunDirectory(".", tmp_path)).pulses[:, :2], [[3, 49], [4, 49], [5, 49]])


def test_limits_hold_in_this_process_too():
    """The test of bombs takes for granted that the system keeps to the limits that it sets."""
    code = READ.split("try:")[0].format(memory=2**26, seconds=SECONDS) + "bytearray(2**28)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert "MemoryError" in done.stderr
