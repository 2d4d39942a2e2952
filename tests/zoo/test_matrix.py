"""What is made of the zoo's results: the page, the golden summary, the baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.timelines import build
from tests.zoo import golden
from tests.zoo.baselines import fired
from tests.zoo.jobs import Job
from tests.zoo.jobs import Result
from tests.zoo.jobs import invents
from tests.zoo.jobs import jobs
from tests.zoo.matrix import page
from tests.zoo.zoo import FAULTS
from tests.zoo.zoo import HANDS
from tests.zoo.zoo import HEALTHY

NAMED = Result(
    Job("fault", "sgd_rate_3", 100, 1),
    "lr-too-high",
    ("lr-too-high", "loss-divergence"),
    ("lr-too-high", "loss-divergence"),
    named=True,
    found=True,
    named_after=2,
    replays=("lr-too-high", "loss-divergence"),
    baselines={},
)
MISSED = replace(
    NAMED,
    job=Job("fault", "rate_tiny", 100, 1),
    diagnosis="dead-units",
    named=False,
    found=False,
    named_after=None,
    replays=(),
)
QUIET = Result(Job("healthy", "mlp_sgd", 100, 1), None, (), (), baselines={})
ALARMED = Result(Job("twin", "rate_tiny", 100, 1), "dead-units", ("dead-units",), ("dead-units",), baselines={})


def test_every_program_is_run_with_each_seed_and_cadence() -> None:
    assert len(jobs([1, 2], [1, None])) == 4 * (len(HEALTHY) + 2 * len(FAULTS))
    assert jobs([1], [None], only=["mlp_sgd"]) == [Job("healthy", "mlp_sgd", 1, None)]


def test_the_page_counts() -> None:
    text = page([NAMED, MISSED, QUIET, ALARMED])
    assert "| right name on top | 1 of 2 (50.0%) |" in text
    assert "| another name on top | 1 of 2 (50.0%) |" in text
    assert "| alarms where nothing is wrong | 1 of 2 (50.0%) |" in text
    assert "| dead-units | 1 | rate_tiny |" in text
    assert "| lr-too-low | 1 | 0 | 0 | dead-units 1 |" in text
    assert "| sgd_rate_3 | lr-too-high | 1 of 1 | 2 | – |" in text
    assert f"| {HANDS[0].title} | every step sampled | 1 of 2 (50.0%) |" in text
    assert f"| {HANDS[1].title} | every step sampled | 0 of 0 (0.0%) |" in text


def test_a_change_shows_as_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "golden.txt"
    path.write_text(golden.summary([NAMED, MISSED, QUIET, replace(ALARMED, alarms=())]))
    monkeypatch.setattr(golden, "PATH", path)
    assert golden.difference([NAMED, QUIET]) == ""
    changed = golden.difference([NAMED, ALARMED]).splitlines()
    assert "-twin rate_tiny: quiet" in changed
    assert "+twin rate_tiny: dead-units 1" in changed


def test_only_a_cause_that_is_not_there_is_invented() -> None:
    fault = FAULTS["sgd_rate_3"]
    assert invents(fault, "init-too-large")
    assert not any(invents(fault, name) for name in ("lr-too-high", "dead-units", "nonfinite-origin", None))


def test_baselines_leave_a_healthy_timeline_in_peace_but_for_the_loss() -> None:
    said = fired(build())
    assert said["AutoTrainer"] == said["DeepDiagnosis"] == ()


def test_baselines_see_what_is_not_finite() -> None:
    said = fired(build(columns={"activation.nonfinite": 0.5}))
    assert "ExplodingTensor" in said["SageMaker Debugger"]
    assert "ExplodingTensor" in said["DeepDiagnosis"]
