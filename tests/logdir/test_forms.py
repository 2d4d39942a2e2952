from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event

from gradscope.logdir.forms import learn
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.tags import STATS
from gradscope.logdir.values import array_of
from tests.logdir.samples import OTHER_SCHEMA
from tests.logdir.samples import SCALARS
from tests.logdir.samples import events_in
from tests.logdir.samples import frame


def _payloads(*frames, scalars=SCALARS) -> list[bytes]:
    """Records of ``frames`` as they stand in a file, without those that carry metadata."""
    with TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory))
        for held in (frames[0], *frames):
            recorder.frame(held, scalars)
        events = [event for event in events_in(Path(directory)) if any(v.tag.startswith(STATS) for v in event.summary.value)]
        return [event.SerializeToString() for event in events[1:]]


def _parsed(payload: bytes) -> tuple[int, dict[str, list[float]]]:
    event = Event.FromString(payload)
    columns = {v.tag.split("/", 3)[3]: array_of(v.tensor) for v in event.summary.value if v.tag.startswith(STATS)}
    return event.step, columns


@pytest.mark.parametrize("step", [0, 1, 300, 2**40])
def test_a_form_reads_what_parsing_reads(step):
    first, second = _payloads(frame(7), frame(step))
    form = learn(first)
    found_step, found = form.read(second)
    expected_step, expected = _parsed(second)
    assert found_step == expected_step == step
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_other_scalars_do_not_matter():
    form = learn(_payloads(frame(7))[0])
    assert form.read(_payloads(frame(8), scalars={"gradscope/loss": 1.0})[0])[0] == 8


def test_frames_of_another_form_are_left_to_parsing():
    form = learn(_payloads(frame(7))[0])
    assert form.read(_payloads(frame(7, schema=OTHER_SCHEMA))[0]) is None
    assert form.read(_payloads(frame(7, histograms=True))[0]) is None
    partial = frame(7)
    del partial.columns["update.ratio"]
    assert form.read(_payloads(partial)[0]) is None
    assert learn(_payloads(partial)[0]).read(_payloads(frame(7))[0]) is None


def test_a_record_that_goes_on_after_its_summary_is_left_to_parsing():
    first, second = _payloads(frame(7), frame(8))
    another_step = b"\x10\x09"
    assert Event.FromString(second + another_step).step == 9
    assert learn(first).read(second + another_step) is None


@settings(max_examples=300, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_form_never_reads_anything_else_than_parsing(data):
    first, second = _payloads(frame(7), frame(300))
    form = learn(first)
    changed = bytearray(second)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    found = form.read(bytes(changed))
    if found is None:
        return
    try:
        step, columns = _parsed(bytes(changed))
    except DecodeError:
        return  # the damage is behind the vectors
    assert found[0] == step
    for name, column in columns.items():
        np.testing.assert_array_equal(found[1][name], column)


@pytest.mark.parametrize("payload", [b"", b"\x09", b"\x09" + bytes(8) + b"\x10" + b"\xff" * 20, bytes(100)])
def test_nothing_is_learnt_from_what_is_no_frame(payload):
    assert learn(payload) is None
    assert learn(_payloads(frame(0))[0]).read(payload) is None
