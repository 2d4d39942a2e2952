"""Two real processes: none waits for one that does not come, and each that is left says what it has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gradscope
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from tests.capture.ranks.program import KILLED_AT
from tests.capture.ranks.program import STEPS

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 120  # that the processes may take; none does unless it hangs


def both(kind: str, room: Path) -> list[dict[str, Any]]:
    """What each rank printed; empty for one that was killed."""
    command = [sys.executable, "-m", "tests.capture.ranks.program", kind, str(room)]
    children = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for rank in (0, 1)
    ]
    try:
        said = [child.communicate(timeout=SECONDS)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    return [json.loads(text) if text.strip() else {} for text in said]


def test_ranks_of_different_speed_make_one_record_on_a_budget(tmp_path: Path) -> None:
    first, second = both("budget", tmp_path)
    assert (first["slugs"], second["slugs"]) == ([], [])
    assert (first["steps"], second["steps"]) == (STEPS, 0)
    (directory,) = find_runs(tmp_path / "log")
    run = read_run(directory)
    assert run.info.ranks == 2
    assert [frame.step for frame in run.frames] == first["sampled"]
    assert set(range(5)) | {6, 10, 16, 25, 40, 70} <= set(first["sampled"])
    assert all("activation.apart" in frame.columns for frame in run.frames)  # each of both ranks' numbers
    assert "the first rank has the record" in second["notes"][0]


def test_a_rank_that_is_killed_leaves_the_other_to_torch_s_own_error(tmp_path: Path) -> None:
    first, second = both("killed", tmp_path)
    assert not second
    assert first["slugs"] == ["ranks-parted"]
    assert first["error"]
    assert first["closing"] < 5
    (run,) = gradscope.read(tmp_path / "log").runs
    assert run.steps == KILLED_AT


def test_models_of_their_own_have_runs_of_their_own(tmp_path: Path) -> None:
    seen = both("own", tmp_path)
    assert [one["slugs"] for one in seen] == [[], []]
    assert sorted(run.run for run in gradscope.read(tmp_path / "log").runs) == ["Sequential-rank0", "Sequential-rank1"]
    assert [one["steps"] for one in seen] == [40, 40]


def test_a_rank_that_watches_alone_and_is_not_the_first_says_so(tmp_path: Path) -> None:
    _, second = both("second", tmp_path)
    assert second["slugs"] == ["ranks-not-together"]
    (run,) = gradscope.read(tmp_path / "log").runs
    assert run.run.endswith("-rank1")
    assert run.steps == 40
    assert any("not all of the ranks" in note for note in run.info.notes)
    assert pytest.approx(0, abs=5) == second["closing"]
