"""A live run's archive: what it holds is what its record gives when read, however long the run and short the ration."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from gradscope import live
from gradscope.live import Archive
from gradscope.logdir import replay
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.memory.history import History
from gradscope.records import PULSE_FIELDS
from tests.logdir.samples import INFO
from tests.logdir.samples import frame
from tests.logdir.samples import pulses

FRAME_BYTES = 3000  # of a record of tests.logdir.samples, about


@pytest.fixture
def short_memory(monkeypatch):
    for module in (live, replay):
        monkeypatch.setattr(module, "History", partial(History, most_frames=64, most_pulses=256))


@pytest.fixture
def short_rations(monkeypatch):
    """Room for about a hundred frames and as many pulses, and no more however long it takes."""
    monkeypatch.setattr(live, "FRAMES_AT_ONCE", 100.0 * FRAME_BYTES)
    monkeypatch.setattr(live, "PULSES_AT_ONCE", 100.0 * 8 * len(PULSE_FIELDS))
    for name in ("FRAMES_A_DAY", "PULSES_A_DAY"):
        monkeypatch.setattr(live, name, 0.0)


def watched(directory, steps, *, outstanding=(), alarming=(), flush_every=100, histograms=False):
    archive = Archive(directory / "gradscope")
    archive.info(INFO)
    for step in range(steps):
        taken = frame(step % 7, histograms=histograms)
        columns = {name: np.abs(column) * (1000 if step in outstanding else 1) for name, column in taken.columns.items()}
        archive.frame(type(taken)(step, taken.schema, columns, taken.histograms), alarming=step in alarming)
        archive.pulse(tuple(pulses([step])[0]))
        if step % flush_every == 0:
            archive.flush()
    archive.flush()
    return archive


def read(directory, **options):
    (run,) = find_runs(directory)
    return read_run(run, **options)


def assert_same(archive, run):
    assert [held.step for held in archive.frames] == [held.step for held in run.frames]
    for held, found in zip(archive.frames, run.frames, strict=True):
        assert held.schema == found.schema and held.columns.keys() == found.columns.keys()
        for name, column in held.columns.items():
            np.testing.assert_array_equal(column, found.columns[name])
    np.testing.assert_array_equal(archive.pulses, run.pulses)
    assert archive.sampled == run.sampled


@pytest.mark.parametrize("steps", [10, 64, 65, 700])
def test_what_is_read_is_what_was_held(tmp_path, short_memory, steps):
    archive = watched(tmp_path, steps)
    archive.close()
    assert archive.sampled == steps
    assert len(archive.frames) <= 64 and len(archive.pulses) <= 256
    assert_same(archive, read(tmp_path))


@pytest.mark.parametrize("memory", [True, False])
def test_it_is_so_also_where_not_everything_is_written(tmp_path, short_rations, memory, request):
    if memory:
        request.getfixturevalue("short_memory")
    archive = watched(tmp_path, 600, outstanding=(400, 401), alarming=(500,))
    archive.close()
    assert archive.sampled < 300
    assert_same(archive, read(tmp_path))


def test_a_frame_that_stands_out_is_written_with_its_neighbours_when_the_ration_is_used_up(tmp_path, short_rations):
    watched(tmp_path, 400, outstanding=(300,)).close()
    steps = {held.step for held in read(tmp_path).frames}
    assert {298, 299, 300, 301, 302} <= steps
    assert len([step for step in steps if step > 200]) < 20


def test_a_frame_that_is_alarming_is_written_when_the_ration_is_used_up(tmp_path, short_rations):
    watched(tmp_path, 400, alarming=(300,)).close()
    assert {298, 299, 300, 301, 302} <= {held.step for held in read(tmp_path).frames}


def test_frames_that_stand_out_have_a_reserve_and_no_more(tmp_path, short_rations, monkeypatch):
    monkeypatch.setattr(live, "RESERVE", 20.0 * FRAME_BYTES)
    watched(tmp_path, 600, alarming=range(600)).close()
    size = sum(path.stat().st_size for path in (tmp_path / "gradscope").iterdir())
    assert len(read(tmp_path).frames) < 400
    assert size < 150 * FRAME_BYTES + 100_000


def test_histograms_are_left_out_first_and_are_not_kept_in_memory(tmp_path, short_rations):
    archive = watched(tmp_path, 30, histograms=True)
    archive.close()
    assert all(not held.histograms for held in archive.frames)
    found = read(tmp_path, histograms=True).frames
    with_some = [bool(held.histograms) for held in found]
    assert len(found) == 30 and any(with_some) and with_some == sorted(with_some, reverse=True)
    assert not with_some[-1]


def test_pulses_that_are_left_out_are_counted_in_the_others(tmp_path, short_rations):
    archive = watched(tmp_path, 2000, flush_every=500)
    archive.close()
    rows = read(tmp_path).pulses
    assert rows[0, 0] == 0 and rows[-1, 0] == 1999
    assert len(rows) < 500


def test_a_schema_that_comes_anew_each_time_costs_no_memory(tmp_path):
    archive = Archive(tmp_path / "gradscope")
    for step in range(300):
        taken = frame(step)
        archive.frame(type(taken)(step, type(taken.schema)(**vars(taken.schema)), taken.columns))
    assert len(archive._layouts) <= live._MOST_LAYOUTS
