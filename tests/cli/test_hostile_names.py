"""``gradscope report`` in a terminal, on files, directories and models whose names are escape sequences."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradscope.records import PULSE_FIELDS
from gradscope.timeline import Timeline
from tests import recorded
from tests import timelines
from tests.cli import terminal
from tests.logdir import harm
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\r\n\u202egnp"
NOT_UTF8 = os.fsdecode(b"\xff\xfe\x1b[31m")


@pytest.fixture(scope="module")
def logdir(tmp_path_factory) -> Path:
    logdir = tmp_path_factory.mktemp("hostile") / f"logs{ESCAPES}"
    logdir.mkdir()
    net = timelines.linear(f"a{ESCAPES}", 4, 4, activation="relu") + timelines.linear(
        f"b{NOT_UTF8}".encode("utf-8", "replace").decode(), 4, 4
    )
    timeline = timelines.build(net, columns={"weight_gradient.carried": 1.0}, pulses={"loss": 2.3})
    info = replace(timeline.info, model=ESCAPES, notes=(ESCAPES,), select=None, ignore=(ESCAPES,))
    named = Timeline(info, timeline.frames, recorded_pulses(timeline))
    recorded.record(logdir / f"run{ESCAPES}", named)
    recorded.record(logdir / NOT_UTF8, named)
    damaged = recorded.record(logdir / "damaged", named)
    damaged = damaged.rename(damaged.with_name(f"{ESCAPES}.{damaged.name}"))
    damaged.write_bytes(damaged.read_bytes() + bytes(100))
    write_events(logdir / "other" / "events.out.tfevents.1", scalar_events({f"accuracy{ESCAPES}": {0: 1.0}}))
    write_events(
        logdir / "theirs" / f"{ESCAPES}.tfevents.1", scalar_events({f"{ESCAPES[:3]}/loss": {0: 1.0}, f"lr/{ESCAPES}": {0: 1.0}})
    )
    (logdir / f"broken{ESCAPES}").mkdir()
    (logdir / f"broken{ESCAPES}" / harm.NAME).write_bytes(bytes(50))
    return logdir


def recorded_pulses(timeline: Timeline) -> np.ndarray:
    return np.column_stack([timeline.pulse(field) for field in PULSE_FIELDS])


OURS = re.compile(r"\x1b\[[0-9;]*m")  # rich's colours


@pytest.mark.parametrize(
    "arguments",
    [[], ["--format", "markdown"], ["--format", "json"], ["--run", "absent"], ["--run", ESCAPES], ["--select", ESCAPES]],
    ids=["text", "markdown", "json", "absent run", "odd run", "odd rule"],
)
def test_nothing_but_our_own_colours_reaches_the_terminal(logdir, arguments):
    output = terminal.shown("report", str(logdir), *arguments, "--fail-on", "never")
    assert output
    left = OURS.sub("", output)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left), ascii(left)
    if "text" in arguments or not arguments:
        assert "missing-zero-grad" in left


@pytest.mark.parametrize("make", ["absent", "empty", "file", "broken"])
def test_messages_about_a_directory_repeat_its_name_without_escapes(tmp_path, make):
    place = tmp_path / f"{make}{ESCAPES}"
    if make == "file":
        place.touch()
    elif make != "absent":
        place.mkdir()
    if make == "broken":
        (place / f"{ESCAPES}tfevents").write_bytes(bytes(80))
    output = terminal.shown("report", str(place))
    assert "\x1b" not in output and "\u202e" not in output and "\x9b" not in output
    assert make in output
