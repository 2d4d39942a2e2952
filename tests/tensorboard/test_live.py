"""A run that grows while it is shown."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gradscope.logdir.recorder import Recorder
from tests.tensorboard import samples
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import running

RUN = "live/gradscope"


@pytest.mark.parametrize("load_fast", LOADERS)
def test_what_a_training_writes_shows_up(tmp_path, load_fast):
    timeline = samples.ramp(steps=range(60))
    rows, grown = samples.pulse_rows(timeline), []
    recorder = Recorder(tmp_path / "live" / "gradscope")
    recorder.info(timeline.info)
    with running(tmp_path, load_fast=load_fast) as board:
        for part in (range(20), range(20, 40), range(40, 60)):
            for step in part:
                recorder.frame(timeline.frames[step], {})
            recorder.pulses(rows[part.start : part.stop])
            last = part.stop - 1
            board.wait(lambda last=last: _max_step(board) == last)
            header, numbers = board.numbers("matrix", run=RUN, stat="activation.rms")
            assert header["first"] == list(range(part.stop))
            np.testing.assert_array_equal(numbers[0], np.float32([step / 1000 + 1 for step in range(part.stop)]))
            grown.append(_listed(board)["etag"])
        assert all(before != after for before, after in pairwise(grown))
        assert _listed(board)["etag"] == grown[-1]
        assert board.json("schema", run=RUN)["etag"] == grown[-1]
    recorder.close()


def test_tensorboard_may_start_before_the_training(tmp_path):
    with running(tmp_path) as board:
        assert board.json("runs") == {"runs": [], "others": [], "version": board.json("runs")["version"]}
        assert board.get("static/index.js").status == 200
        samples.record(tmp_path / "live", samples.ramp())
        board.wait_for_runs()
        assert board.json("report", run=RUN)["steps"] == 100


def test_behind_a_path_prefix_all_is_the_same(tmp_path):
    samples.record(tmp_path / "live", samples.ramp())
    with running(tmp_path, "--path_prefix", "/a/b") as board:
        assert board.url.endswith("/a/b/")
        board.wait_for_runs()
        assert board.json("schema", run=RUN)["sampled"] == 29
        assert board.get("static/index.js").status == 200
        assert board.fetch("data/plugins_listing").json["gradscope"]["enabled"] is True


def test_the_users_own_number_of_samples_wins(tmp_path):
    samples.record(tmp_path / "live", samples.ramp())
    with running(tmp_path, "--samples_per_plugin", "gradscope=7") as board:
        board.wait_for_runs()
        header, _ = board.numbers("matrix", run=RUN, stat="activation.rms")
        assert len(header["first"]) == 7
        assert header["first"][-1] == 95
        assert _listed(board)["complete"] is False


def _listed(board):
    runs = board.json("runs")["runs"]
    return runs[0] if runs else {}


def _max_step(board):
    """The last step of which both frames and pulses are there."""
    if not _listed(board):
        return None
    steps = board.json("schema", run=RUN)["last_step"], (board.numbers("scalars", run=RUN)[0]["range"] or [None])[-1]
    return steps[0] if steps[0] == steps[1] else None
