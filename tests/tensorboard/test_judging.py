"""The tab's verdict is the report's, and costs no more than it may."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gradscope
from gradscope.report import jsonreport
from gradscope.report import markdown
from gradscope.report import text
from gradscope.tensorboard import judging
from gradscope.tensorboard.judging import Judge
from tests import recorded
from tests import timelines
from tests.tensorboard import samples
from tests.tensorboard.asking import ASKER
from tests.tensorboard.asking import Asking

RUN = "gradscope"
BLOWN_UP = {"loss": lambda step: 2.0 if step < 30 else 2.0 * 10.0 ** min(step - 30, 30)}
RUNS = {
    "healthy": recorded.healthy(),
    "broken": recorded.broken(),
    "blown up": timelines.build(pulses=BLOWN_UP, columns={"update.ratio": lambda step: 0.4 if step > 20 else 0.003}),
    "all NaN": timelines.poisoned(np.nan),
    "all infinite": timelines.poisoned(np.inf),
    "deep": samples.ramp(samples.DEEP_NET),
    "not sampled": timelines.build(steps=(), total=100),
    "no step": timelines.build(steps=()),
}


@pytest.fixture(params=RUNS.values(), ids=RUNS)
def logdir(request, tmp_path):
    samples.record(tmp_path, request.param)
    return tmp_path


def test_the_findings_are_the_reports(logdir):
    found, (run,) = Asking(logdir).json("report", run=RUN), gradscope.read(logdir).runs
    expected = json.loads(jsonreport.render([run]))["runs"][0]
    for key in ("diagnosis", "skipped", "steps", "sampled_steps"):
        assert found[key] == expected[key]
    assert [{key: finding[key] for key in expected["findings"][0]} for finding in found["findings"]] == expected["findings"]
    assert found["verdict"] in (expected["verdict"], "unknown")
    assert found["profile_step"] == run.profile_step
    assert [finding["rule"] for finding in found["findings"] if finding["primary"]] == (
        [run.diagnosis] if run.diagnosis else []
    )


def test_the_texts_are_the_reports(logdir):
    asking, (run,) = Asking(logdir), gradscope.read(logdir).runs
    assert asking.ask("text", run=RUN, format="text").content.decode() == text.render([run])
    assert asking.ask("text", run=RUN).content.decode() == markdown.render([run])


def test_where_only_the_written_report_is_left_it_is_shown(tmp_path):
    samples.record(tmp_path, recorded.broken(), report="## Critical\n\n<b>as it was written</b>")
    samples.keep_only_the_report(tmp_path)
    asking = Asking(tmp_path)
    found = asking.json("report", run=RUN)
    assert (found["verdict"], found["source"], found["findings"]) == ("unknown", "written", [])
    assert asking.ask("text", run=RUN).content.decode() == "## Critical\n\n<b>as it was written</b>"
    assert asking.ask("text", run=RUN).media_type == "text/plain"


def test_the_runs_own_choice_of_rules_holds_and_an_unknown_rule_does_not(tmp_path):
    samples.record(tmp_path / "a", recorded.broken(select=("loss-plateau",)))
    samples.record(tmp_path / "b", recorded.broken(ignore=("a-rule-of-the-future",)))
    asking = Asking(tmp_path)
    assert asking.json("report", run="a/gradscope")["checked"] == ["loss-plateau"]
    found = asking.json("report", run="b/gradscope")
    assert found["diagnosis"] == "missing-zero-grad"
    assert "There is no rule named 'a-rule-of-the-future'" in found["damage"][-1]


def test_a_run_of_which_only_some_steps_are_held_says_so(tmp_path):
    samples.record(tmp_path, recorded.broken())
    asking = Asking(tmp_path, keep=10)
    found = asking.json("report", run=RUN)
    assert found["sampled_steps"] == 10
    assert "TensorBoard holds 10 of this run's sampled steps, chosen at random" in found["damage"][0]
    assert asking.json("runs")["runs"][0]["complete"] is False
    assert Asking(tmp_path).json("report", run=RUN)["damage"] == []


def test_a_judgement_looks_at_no_more_numbers_than_there_is_room_for(tmp_path, monkeypatch):
    samples.record(tmp_path, recorded.broken())
    monkeypatch.setattr(judging, "ROOM", 4 * 200 * 10)
    found = Asking(tmp_path).json("report", run=RUN)
    assert found["diagnosis"] == "missing-zero-grad"
    (sentence,) = found["damage"]
    assert sentence.startswith("Judged by ") and sentence.endswith(" of the 29 sampled steps that TensorBoard holds.")


def test_a_run_that_grows_is_judged_again_only_after_a_rest(tmp_path):
    now = [0.0]

    def clock():
        now[0] += 1.0  # so that each judgement takes one second
        return now[0]

    judge, views = Judge(clock=clock), []
    for total in (20, 40):
        samples.record(tmp_path / str(total), samples.ramp(steps=range(total)))
        server = Asking(tmp_path).server
        views.append(server._view(ASKER, server._source.listing(ASKER), f"{total}/gradscope"))
    first = judge.judged("run", views[0])
    assert judge.judged("run", views[0]) is first
    assert judge.judged("run", views[1]) is first
    now[0] += judging.REST
    assert judge.judged("run", views[1]).report.steps == 40
