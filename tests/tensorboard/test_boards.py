"""The tab's data as TensorBoard itself serves it, by each of its loaders, in a process of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradscope
from gradscope.report import jsonreport
from tests import recorded
from tests.tensorboard import samples
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import running_each

ROUTES = (
    ("schema", {}),
    ("report", {}),
    ("matrix", {"stat": "activation.rms"}),
    ("matrix", {"stat": "update.ratio", "columns": 5, "first": 3}),
    ("matrix", {"stat": "activation.dead"}),
    ("scalars", {"columns": 20}),
    ("histogram", {"kind": "activation", "site": 1}),
    ("profile", {"step": 17}),
    ("text", {"format": "text"}),
)
RUNS = ("broken/gradscope", "changed/gradscope", "healthy/gradscope", "long/gradscope", "resumed/gradscope")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    samples.record(logdir / "broken", recorded.broken())
    samples.record(logdir / "healthy", recorded.healthy())
    # Back to step 30 with the same model, and to step 40 with another one.
    samples.record(logdir / "resumed", samples.ramp(steps=range(0, 60, 5)))
    samples.record(logdir / "resumed", samples.ramp(steps=range(32, 90, 3)), begin=30)
    samples.record(logdir / "changed", samples.ramp(steps=range(0, 60, 5)))
    samples.record(logdir / "changed", samples.ramp(samples.DEEP_NET, steps=range(42, 90, 3)), begin=40)
    samples.record(logdir / "long", samples.ramp(steps=range(300)))
    return logdir


@pytest.fixture(scope="module")
def boards(logdir):
    with running_each(logdir, runs=len(RUNS)) as started:
        yield started


@pytest.fixture(params=LOADERS)
def board(request, boards):
    return boards[request.param]


@pytest.mark.parametrize("run", RUNS)
def test_both_loaders_give_the_same(boards, run):
    for route, parameters in ROUTES:
        answers = {loader: board.get(route, run=run, **parameters) for loader, board in boards.items()}
        assert [answer.status for answer in answers.values()] == [200, 200], (route, answers)
        first, second = (_without_etag(answer) for answer in answers.values())
        assert first == second, route


def test_the_verdict_is_the_reports(board, logdir):
    expected = {run["run"]: run for run in json.loads(jsonreport.render(gradscope.read(logdir).runs))["runs"]}
    for run in board.json("runs")["runs"]:
        found = board.json("report", run=run["run"])
        assert (found["verdict"], found["diagnosis"]) == (expected[run["name"]]["verdict"], expected[run["name"]]["diagnosis"])
    assert {run["name"]: run["diagnosis"] for run in board.json("runs")["runs"]}["broken"] == "missing-zero-grad"


def test_more_steps_are_held_than_tensorboard_holds_by_itself(board):
    header, _ = board.numbers("matrix", run="long/gradscope", stat="activation.rms")
    assert header["first"] == list(range(300))
    assert {run["run"]: run["complete"] for run in board.json("runs")["runs"]}["long/gradscope"] is True


def test_a_run_that_was_resumed_shows_what_came_last(board):
    header, numbers = board.numbers("matrix", run="resumed/gradscope", stat="activation.rms")
    steps = [*range(0, 32, 5), *range(32, 90, 3)]
    assert header["first"] == steps
    np.testing.assert_array_equal(numbers[0], np.array([step / 1000 + 1 for step in steps], dtype=np.float32))
    header, _ = board.numbers("scalars", run="resumed/gradscope")
    assert header["first"] == list(range(90))
    header, _ = board.numbers("histogram", run="resumed/gradscope", kind="activation", site=0)
    assert header["first"] == [0, 25, 32, 47, 62, 77]


def test_a_run_that_goes_on_with_another_model_has_the_sites_of_both(board):
    run = "changed/gradscope"
    header, numbers = board.numbers("matrix", run=run, stat="activation.rms")
    schema = board.json("schema", run=run)
    old, new = range(0, 42, 5), range(42, 90, 3)
    assert header["first"] == [*old, *new]
    paths = [site["path"] for site in schema["kinds"]["activation"]]
    assert paths == [f"layers.{i}" for i in range(9)]
    assert np.isnan(numbers[5:, : len(old)]).all()
    np.testing.assert_array_equal(numbers[8, len(old) :], np.array([8 + step / 1000 + 1 for step in new], dtype=np.float32))


def test_the_page_is_served_and_nothing_else_is(board):
    index = board.get("static/index.js")
    assert (index.status, index.media_type) == (200, "text/javascript")
    for path in ("../plugin.py", "..%2Fplugin.py", "%2e%2e/loader.py", "//etc/passwd", "", "nothing.js"):
        assert board.fetch(f"data/plugin/gradscope/static/{path}").status == 404, path


def test_the_tab_is_there(board):
    listed = board.fetch("data/plugins_listing").json["gradscope"]
    assert (listed["enabled"], listed["tab_name"]) == (True, "GradScope")


def test_only_get_is_answered(board):
    for method in ("POST", "PUT", "DELETE"):
        assert board.get("runs", method=method).status == 405
    head = board.get("runs", method="HEAD")
    assert (head.status, head.content) == (200, b"")


def _without_etag(answer):
    """The reply but for its etag, which stands for what each loader holds."""
    if answer.media_type == "text/plain":
        return answer.content
    if answer.media_type == "application/json":
        return {key: value for key, value in answer.json.items() if key != "etag"}
    length = int.from_bytes(answer.content[:4], "little")
    header = json.loads(answer.content[4 : 4 + length])
    return {key: value for key, value in header.items() if key != "etag"}, answer.content[4 + length :]
