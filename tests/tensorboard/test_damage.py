"""Whatever lies in a log directory, TensorBoard goes on, every route answers, and other runs are shown."""

from __future__ import annotations

import json
from threading import Thread

import numpy as np
import pytest

from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events
from tests.tensorboard import hostile
from tests.tensorboard import samples
from tests.tensorboard.asking import Asking
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import running_each

HARMLESS = {"application/json", "application/octet-stream", "text/plain"}
ROUTES = (
    ("schema", {}),
    ("report", {}),
    ("matrix", {"stat": "activation.rms"}),
    ("matrix", {"stat": "activation.dead", "columns": 3}),
    ("profile", {}),
    ("profile", {"step": -5}),
    ("scalars", {}),
    ("histogram", {"kind": "activation", "site": 0}),
    ("text", {}),
)
SOUND = "sound/gradscope"


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    for name, make in hostile.LOGDIRS.items():
        make(logdir / name)
    hostile.markup(logdir / hostile.MARKUP)
    samples.record(logdir / "sound", samples.ramp())
    write_events(logdir / "other" / "events.out.tfevents.1.h", scalar_events({"users/loss": {0: 1.0}}))
    return logdir


@pytest.fixture(scope="module")
def boards(logdir):
    # Of an empty run TensorBoard lists nothing, of one without a clock the data server neither.
    with running_each(logdir, runs=len(hostile.LOGDIRS)) as started:
        yield started


@pytest.fixture(params=LOADERS)
def board(request, boards):
    return boards[request.param]


@pytest.mark.parametrize("name", [*hostile.LOGDIRS, hostile.MARKUP, "sound"])
def test_every_route_answers_without_a_mistake(board, name):
    for route, parameters in ROUTES:
        answer = board.get(route, run=f"{name}/gradscope", **parameters)
        assert answer.status in (200, 404, 409, 503), (route, answer.content[:300])
        assert answer.media_type in HARMLESS
        if answer.status != 200:
            assert answer.json["error"].endswith("."), answer.content


def test_the_sound_run_and_other_dashboards_are_as_ever(board):
    header, _ = board.numbers("matrix", run=SOUND, stat="activation.rms")
    assert header["shape"] == [5, 29]
    assert list(board.fetch("data/plugin/scalars/tags").json["other"]) == ["users/loss"]
    assert board.json("runs")["others"] == ["other"]


def test_names_come_as_text_and_paths_as_they_are(board):
    run = f"{hostile.MARKUP}/gradscope"
    (listed,) = (found for found in board.json("runs")["runs"] if found["run"] == run)
    assert listed["name"] == hostile.MARKUP
    schema, report = board.json("schema", run=run), board.json("report", run=run)
    sites = schema["kinds"]["activation"]
    assert [site["path"] for site in sites] == [f"{hostile.MARKUP}0", "\u202eevil\x1b[31m\n1"]
    assert [site["name"] for site in sites] == [f"{hostile.MARKUP}0", "evil[31m 1"]
    assert report["findings"][0]["modules"] == [site["path"] for site in sites]
    assert (report["model"], report["notes"][-1]) == (hostile.MARKUP, hostile.MARKUP)


def test_of_a_long_list_of_names_the_first_are_shown(board):
    run = "many_names/gradscope"
    schema = board.json("schema", run=run)
    assert len(schema["kinds"]["activation"]) == 32768
    assert schema["cut"] == "The model has 300,000 places of one kind: the first 32,768 are shown."
    header, numbers = board.numbers("matrix", run=run, stat="activation.rms")
    assert header["shape"] == [32768, 3]
    assert numbers[-1].tolist() == [1.0, 2.0, 3.0]


def test_a_list_of_names_beyond_all_bounds_is_not_read(board):
    run = "too_many_names/gradscope"
    assert board.json("schema", run=run)["kinds"] == {}
    assert any("expected 16,777,216 at most" in sentence for sentence in board.json("report", run=run)["damage"])


def test_what_is_not_sound_is_left_out_and_said(board):
    header, numbers = board.numbers("matrix", run="wrong_columns/gradscope", stat="activation.rms")
    assert (header["first"], numbers.tolist()) == ([0, 2, 4], [[1.0] * 3, [2.0] * 3])
    damage = board.json("report", run="wrong_columns/gradscope")["damage"]
    assert any("records are not what their tag says and were left out." in sentence for sentence in damage)
    damage = board.json("report", run="absurd_shapes/gradscope")["damage"]
    assert any("a record's tensor is not sound" in sentence for sentence in damage)


def test_a_step_that_is_none_is_left_out(board):
    header, numbers = board.numbers("matrix", run="negative_steps/gradscope", stat="activation.rms")
    assert header["first"] == [3, 5] or header["first"] == [5]
    assert numbers[1, -1] == 5.0


def test_a_newer_run_says_what_to_do(board):
    (listed,) = (run for run in board.json("runs")["runs"] if run["run"] == "newer/gradscope")
    assert "written by a newer gradscope" in listed["error"] and "update gradscope" in listed["error"]
    answer = board.get("schema", run="newer/gradscope")
    assert (answer.status, answer.json["error"]) == (409, listed["error"])


def test_nothing_but_numbers_that_are_none_is_a_gap(board):
    _, numbers = board.numbers("matrix", run="not_a_number/gradscope", stat="activation.rms")
    assert np.isnan(numbers).all()
    assert board.json("profile", run="not_a_number/gradscope")["fits"] == {"activation": None, "signal": None, "gradient": None}


def test_a_slow_request_keeps_nobody_waiting(boards):
    """While a long list of names is read anew, the sound run is still shown."""
    board = boards["true"]
    slow = Thread(target=board.get, args=("report",), kwargs={"run": "many_names/gradscope"})
    slow.start()
    assert board.get("schema", run=SOUND).status == 200
    slow.join(60)
    assert not slow.is_alive()


def test_the_log_of_the_server_tells_of_no_mistake(boards):
    for board in boards.values():
        assert not [line for line in board.said if "Traceback" in line and "gradscope" in line]


@pytest.mark.parametrize("content", ["", "no json", json.dumps({"version": "two"}), json.dumps([1])])
def test_metadata_of_another_kind_is_taken_for_this_version(tmp_path, content):
    values = [hostile.schema(hostile.SITES), hostile.column([1.0, 2.0])]
    values[1].metadata.plugin_data.content = content.encode()
    hostile.write(tmp_path, [(0, value) for value in values])
    _, numbers = Asking(tmp_path).numbers("matrix", run="gradscope", stat="activation.rms")
    assert numbers.tolist() == [[1.0], [2.0]]
