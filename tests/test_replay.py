from __future__ import annotations

import pytest

from gradscope.diagnosis import UnknownRule
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.logdir.runs import LogdirError
from gradscope.replay import read
from gradscope.report import Report
from tests import recorded


def test_what_is_read_is_what_was_seen_live(tmp_path):
    timeline = recorded.broken()
    recorded.record(tmp_path, timeline)
    live = Report((diagnose(timeline, chosen(None, None), run="."),))
    assert str(read(tmp_path)) == str(live)
    assert read(str(tmp_path)).findings == live.findings
    assert live.verdict == "critical"


def test_every_run_below_is_read_and_one_can_be_named(tmp_path):
    recorded.record(tmp_path / "a" / "b", recorded.healthy())
    recorded.record(tmp_path / "c", recorded.broken())
    assert [(run.run, run.verdict_label) for run in read(tmp_path).runs] == [("a/b", "healthy"), ("c", "critical")]
    assert [run.run for run in read(tmp_path, run="c").runs] == ["c"]


def test_an_unknown_run_is_told_with_those_there_are(tmp_path):
    recorded.record(tmp_path / "a", recorded.healthy())
    with pytest.raises(LogdirError, match=r"'b'.*there are: a"):
        read(tmp_path, run="b")


def test_rules_can_be_chosen(tmp_path):
    recorded.record(tmp_path, recorded.broken())
    assert read(tmp_path, select=["missing-zero-grad"]).runs[0].checked == ("missing-zero-grad",)
    ignoring = read(tmp_path, ignore=["missing-zero-grad"]).runs[0]
    assert "missing-zero-grad" not in {*ignoring.checked, *ignoring.skipped}


def test_the_runs_own_choice_holds_where_none_is_given(tmp_path):
    recorded.record(tmp_path / "selected", recorded.broken(select=("missing-zero-grad",)))
    recorded.record(tmp_path / "ignored", recorded.broken(ignore=("missing-zero-grad",)))
    ignored, selected = read(tmp_path).runs
    assert selected.checked == ("missing-zero-grad",)
    assert "missing-zero-grad" not in ignored.checked
    assert "missing-zero-grad" in read(tmp_path, run="ignored", ignore=()).runs[0].checked


def test_a_mistyped_rule_is_told_with_near_names(tmp_path):
    with pytest.raises(UnknownRule, match="missing-zero-grad"):
        read(tmp_path, select=["missing-zerograd"])


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    recorded.record(tmp_path / "good", recorded.healthy())
    recorded.record(tmp_path / "bad", recorded.healthy()).write_bytes(b"no event file" * 100)
    report = read(tmp_path)
    assert [run.run for run in report.runs] == ["good"]
    assert len(report.unread) == 1
    assert "bad" in report.unread[0]
    assert f"Not read: {report.unread[0]}" in str(report)
    with pytest.raises(LogdirError, match="bad"):
        read(tmp_path, run="bad")
