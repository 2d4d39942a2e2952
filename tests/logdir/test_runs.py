from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from gradscope.logdir.framing import framed
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import LogdirError
from gradscope.logdir.runs import RunDirectory
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.logdir.values import text_value
from gradscope.records import PULSE_FIELDS
from tests.logdir.samples import INFO
from tests.logdir.samples import OTHER_SCHEMA
from tests.logdir.samples import SCALARS
from tests.logdir.samples import assert_same_frame
from tests.logdir.samples import events_in
from tests.logdir.samples import frame
from tests.logdir.samples import pulses
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events

FILE = "events.out.tfevents.1700000000.h.1.0"
LATE_FILE = "events.out.tfevents.9900000000.h.1.0"
LOSS = {"train/loss": {0: 2.0, 10: 1.0}}


def _record(directory: Path, steps: range, *, loss: float = 1.0) -> None:
    recorder = Recorder(directory)
    recorder.info(INFO)
    for step in steps:
        recorder.frame(frame(step), SCALARS)
    recorder.pulses(pulses(steps, loss=loss))
    recorder.close()


def _names(logdir: Path) -> dict[str, str]:
    return {run.name: run.path.relative_to(logdir).as_posix() for run in find_runs(logdir)}


def _write_own(directory: Path, *values: Summary.Value, step: int = 0) -> None:
    write_events(directory / f"{LATE_FILE}.gradscope", [Event(step=step, summary=Summary(value=values))])


def _tensor(tag: str, shape: list[int], content: bytes, *, dtype: int = types_pb2.DT_FLOAT) -> Summary.Value:
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    return Summary.Value(tag=tag, tensor=TensorProto(dtype=dtype, tensor_shape=dims, tensor_content=content))


# -- finding


def test_runs_are_named_for_the_log_directory_their_scope_was_given(tmp_path):
    for place in ("gradscope", "gradscope/critic", "a/b/gradscope", "a/b/gradscope/critic", "moved"):
        _record(tmp_path / place, range(1))
    expected = {
        ".": "gradscope", "critic": "gradscope/critic", "a/b": "a/b/gradscope", "a/b/critic": "a/b/gradscope/critic",
        "moved": "moved",
    }  # fmt: skip
    assert _names(tmp_path) == expected
    assert _names(tmp_path / "a") == {"b": "b/gradscope", "b/critic": "b/gradscope/critic"}
    assert _names(tmp_path / "gradscope") == {".": ".", "critic": "critic"}
    assert _names(tmp_path / "gradscope" / "critic") == {".": "."}


def test_two_runs_that_would_share_a_name_are_told_apart(tmp_path):
    for place in ("x/gradscope", "gradscope/x"):
        _record(tmp_path / place, range(1))
    assert len(_names(tmp_path)) == 2


def test_other_tools_files_beside_a_run_are_no_run(tmp_path):
    _record(tmp_path / "a/gradscope", range(1))
    write_events(tmp_path / "a" / FILE, scalar_events(LOSS))
    write_events(tmp_path / "a/loss_train" / FILE, scalar_events(LOSS))
    write_events(tmp_path / "b" / FILE, scalar_events(LOSS))
    write_events(tmp_path / "hparams" / FILE, scalar_events({"hp_metric": {0: 1.0}}))
    assert [(run.name, run.foreign) for run in find_runs(tmp_path)] == [("a", False), ("b", True)]


def test_links_are_followed_and_loops_are_not(tmp_path):
    _record(tmp_path / "elsewhere/gradscope", range(1))
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "linked").symlink_to(tmp_path / "elsewhere")
    (logs / "loop").symlink_to(logs)
    assert _names(logs) == {"linked": "linked/gradscope"}


# -- reading


def test_a_restart_that_goes_back_takes_the_place_of_what_was_after_it(tmp_path):
    _record(tmp_path, range(10), loss=1.0)
    _record(tmp_path, range(5, 7), loss=2.0)
    run = read_run(RunDirectory(".", tmp_path))
    assert [held.step for held in run.frames] == list(range(7))
    np.testing.assert_array_equal(run.pulses[:, 0], range(7))
    np.testing.assert_array_equal(run.pulses[:, 1], [1, 1, 1, 1, 1, 2, 2])


def test_a_restart_with_another_model_takes_the_place_of_the_old_ones_later_frames(tmp_path):
    _record(tmp_path, range(4))
    recorder = Recorder(tmp_path)
    recorder.frame(frame(2, schema=OTHER_SCHEMA), {})
    frames = read_run(RunDirectory(".", tmp_path)).frames
    for found, expected in zip(frames, [frame(0), frame(1), frame(2, schema=OTHER_SCHEMA)], strict=True):
        assert_same_frame(found, expected)


def test_a_restart_that_goes_on_adds_to_what_was_there(tmp_path):
    _record(tmp_path, range(3))
    _record(tmp_path, range(3, 6))
    run = read_run(RunDirectory(".", tmp_path))
    assert [held.step for held in run.frames] == list(run.pulses[:, 0]) == list(range(6))


def test_the_later_record_of_a_step_counts(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.frame(frame(3), {})
    again = frame(3)
    again.columns["weight.norm"][:] = 7
    recorder.frame(again, {})
    recorder.pulses(pulses([2, 3], loss=1.0))
    recorder.pulses(pulses([3, 4], loss=9.0))
    run = read_run(RunDirectory(".", tmp_path))
    assert_same_frame(run.frames[0], again)
    np.testing.assert_array_equal(run.pulses[:, :2], [[2, 1], [3, 9], [4, 9]])


def test_steps_of_a_foreign_optimizer_do_not_displace_the_models_own(tmp_path):
    rows = pulses([0, 0, 1])
    rows[1, PULSE_FIELDS.index("foreign")] = 1
    Recorder(tmp_path).pulses(rows)
    np.testing.assert_array_equal(read_run(RunDirectory(".", tmp_path)).pulses, rows)


def test_a_damaged_record_costs_one_frame_and_is_told(tmp_path):
    _record(tmp_path, range(6))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    at = data.index(frame(3).columns["weight.norm"].tobytes())
    data[at] ^= 4
    path.write_bytes(data)
    run = read_run(RunDirectory(".", tmp_path))
    assert [held.step for held in run.frames] == [0, 1, 2, 4, 5]
    assert len(run.damage) == 1 and "in one place are damaged" in run.damage[0]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_no_truncation_and_no_flipped_bits_raise(data):
    with TemporaryDirectory() as directory:
        _record(Path(directory), range(3))
        (path,) = Path(directory).iterdir()
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        for held in read_run(RunDirectory(".", Path(directory))).frames:
            assert_same_frame(held, frame(held.step))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.data())
def test_hostile_protos_with_sound_checksums_do_not_raise(data):
    with TemporaryDirectory() as directory:
        _record(Path(directory), range(3))
        events = events_in(Path(directory))
        (path,) = Path(directory).iterdir()
        path.unlink()
        blobs = [bytearray(event.SerializeToString()) for event in events]
        for _ in range(data.draw(st.integers(1, 5))):
            blob = data.draw(st.sampled_from(blobs))
            blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(b"".join(framed(bytes(blob)) for blob in blobs))
        try:
            run = read_run(RunDirectory(".", Path(directory)))
        except LogdirError as error:
            complaint, frames = str(error), ()
        else:
            complaint, frames = "newer", run.frames
        assert "newer" in complaint
        assert all(held.schema.sites("weight") for held in frames)


@pytest.mark.parametrize(
    "value",
    [
        _tensor("gradscope/stats/12345678/weight.norm", [2**62, 2**62], b""),
        _tensor("gradscope/stats/12345678/weight.norm", [2**40], bytes(8)),
        _tensor("gradscope/stats/12345678/weight.norm", [-1, -2], bytes(8)),
        _tensor("gradscope/stats/12345678/weight.norm", [1] * 500 + [2], bytes(8)),
        _tensor("gradscope/stats/12345678/weight.norm", [2], bytes(8), dtype=999),
        _tensor("gradscope/stats/12345678/weight.norm", [2], bytes(8)),
        _tensor("gradscope/stats/", [2], bytes(8)),
        _tensor("gradscope/stats/a/b/c/d", [2], bytes(8)),
        _tensor("gradscope/hist/12345678/activation", [2**50, 64], bytes(8), dtype=types_pb2.DT_HALF),
        _tensor("gradscope/pulse", [2**61, 9], b"", dtype=types_pb2.DT_DOUBLE),
        _tensor("gradscope/pulse", [1, 9], np.full(9, np.nan).tobytes(), dtype=types_pb2.DT_DOUBLE),
        _tensor("gradscope/pulse", [1, 9], np.full(9, -1.0).tobytes(), dtype=types_pb2.DT_DOUBLE),
        text_value("gradscope/meta", "[" * 10**5),
        text_value("gradscope/meta", '{"name": 3}'),
        text_value("gradscope/schema/12345678", '{"modules": [1]}'),
        text_value("gradscope/schema/12345678", '{"modules": []}'),
        text_value("gradscope/schema/", "x"),
    ],
)
def test_absurd_records_are_left_out_and_told(tmp_path, value):
    _record(tmp_path, range(2))
    _write_own(tmp_path, value, step=50)
    run = read_run(RunDirectory(".", tmp_path), histograms=True)
    assert [held.step for held in run.frames] == [0, 1]
    assert len(run.pulses) == 2
    assert run.info == INFO
    assert len(run.damage) == 1 and run.damage[0].endswith(".")


def test_columns_that_do_not_fit_their_sites_are_left_out(tmp_path):
    _record(tmp_path, range(2))
    digest = next(v.tag for e in events_in(tmp_path) for v in e.summary.value if "/stats/" in v.tag).split("/")[2]
    value = _tensor(f"gradscope/stats/{digest}/weight.norm", [2], bytes(8))
    _write_own(tmp_path, value, step=2)
    run = read_run(RunDirectory(".", tmp_path))
    assert run.frames[2].columns == {}
    assert "does not fit" in run.damage[0]


def test_pulses_of_another_gradscope_are_taken_by_the_names_of_their_fields(tmp_path):
    value = _tensor("gradscope/pulse", [2, 3], np.array([[7.0, 0, 0.5], [8, 1, 0.25]]).tobytes(), dtype=types_pb2.DT_DOUBLE)
    value.metadata.plugin_data.plugin_name = "gradscope"
    value.metadata.plugin_data.content = json.dumps({"version": 1, "fields": ["novel", "step", "loss"]}).encode()
    _write_own(tmp_path, value)
    rows = read_run(RunDirectory(".", tmp_path)).pulses
    np.testing.assert_array_equal(rows[:, :2], [[0, 0.5], [1, 0.25]])
    assert np.isnan(rows[:, 2:]).all()


def test_a_run_that_has_only_begun_is_no_error(tmp_path):
    (tmp_path / f"{FILE}.gradscope").touch()
    run = read_run(*find_runs(tmp_path))
    assert (run.frames, len(run.pulses), run.info.model) == ((), 0, "unknown")
    assert "no description of the run" in run.damage[0]


# -- other tools' runs


@pytest.mark.parametrize(
    ("tag", "field"),
    [
        ("loss", "loss"), ("train/loss", "loss"), ("train_loss", "loss"), ("Loss/train", "loss"), ("training_loss", "loss"),
        ("trainLoss", "loss"), ("train_loss_step", "loss"), ("epoch_loss", "loss"), ("batch/loss", "loss"),
        ("grad_norm", "gradient_norm"), ("train/grad_norm", "gradient_norm"), ("gradients/global_norm", "gradient_norm"),
        ("grad_2.0_norm_total", "gradient_norm"), ("gnorm", "gradient_norm"),
        ("lr", "learning_rate"), ("learning_rate", "learning_rate"), ("train/learning_rate", "learning_rate"),
        ("lr-AdamW", "learning_rate"), ("lr-SGD/pg1", "learning_rate"), ("LearningRate", "learning_rate"),
    ],
)  # fmt: skip
def test_usual_names_are_recognised(tmp_path, tag, field):
    write_events(tmp_path / FILE, scalar_events({tag: {0: 3.0, 4: 2.0}}))
    run = read_run(*find_runs(tmp_path))
    np.testing.assert_array_equal(run.pulses[:, [0, PULSE_FIELDS.index(field)]], [[0, 3], [4, 2]])
    assert (run.name, run.info.model, run.frames) == (".", "unknown", ())
    assert tag in run.info.notes[0]


@pytest.mark.parametrize(
    "tag",
    ["val/loss", "eval_loss", "test/loss", "accuracy", "loss_scale", "weight_norm", "lr_finder", "discriminator/loss_real"],
)
def test_names_of_something_else_are_not(tmp_path, tag):
    write_events(tmp_path / FILE, scalar_events({tag: {0: 3.0}}))
    with pytest.raises(LogdirError, match=f"found {tag}"):
        read_run(*find_runs(tmp_path))


def test_other_tools_scalars_of_every_form_make_up_the_pulses(tmp_path):
    single = TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.5])
    packed = TensorProto(dtype=types_pb2.DT_DOUBLE, tensor_content=np.float64(0.25).tobytes())
    values = [Summary.Value(tag="train/loss", simple_value=float("nan")), Summary.Value(tag="lr", tensor=single)]
    events = [*scalar_events(LOSS), Event(step=20, summary=Summary(value=values))]
    events.append(Event(step=15, summary=Summary(value=[Summary.Value(tag="grad_norm", simple_value=float("nan"))])))
    events.append(Event(step=20, summary=Summary(value=[Summary.Value(tag="grad_norm", tensor=packed)])))
    events += scalar_events({"loss": {5: 100.0}, "val/loss": dict.fromkeys(range(9), 50.0)})
    write_events(tmp_path / FILE, events)
    rows = read_run(*find_runs(tmp_path)).pulses
    nan, inf = np.nan, np.inf
    shown = rows[:, [PULSE_FIELDS.index(name) for name in ("step", "loss", "gradient_norm", "learning_rate", "backwards")]]
    np.testing.assert_array_equal(
        shown, [[0, 2, nan, nan, 1], [10, 1, nan, nan, 1], [15, nan, inf, nan, 0], [20, nan, 0.25, 0.5, 1]]
    )


def test_a_later_file_of_another_tool_that_goes_back_counts(tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.h", scalar_events({"loss": {0: 1.0, 10: 1.0, 20: 1.0}}))
    write_events(tmp_path / "events.out.tfevents.2.h", scalar_events({"loss": {10: 2.0}}))
    np.testing.assert_array_equal(read_run(*find_runs(tmp_path)).pulses[:, :2], [[0, 1], [10, 2]])


# -- what cannot be read


def test_a_missing_directory(tmp_path):
    with pytest.raises(LogdirError, match="absent does not exist"):
        find_runs(tmp_path / "absent")


def test_a_file_in_place_of_a_directory(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(LogdirError, match="x is a file"):
        find_runs(tmp_path / "x")
    with pytest.raises(LogdirError):
        find_runs(tmp_path / "x" / "y")


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_what_is_no_path(tmp_path, name):
    with pytest.raises(LogdirError):
        find_runs(tmp_path / name)


def test_a_directory_without_event_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "notes.txt").touch()
    with pytest.raises(LogdirError, match="holds no event files"):
        find_runs(tmp_path)


def test_other_tools_files_without_anything_to_go_by(tmp_path):
    for place in ("a", "b"):
        write_events(tmp_path / place / FILE, scalar_events({"accuracy": {0: 1.0}}))
    (run,) = find_runs(tmp_path)
    with pytest.raises(LogdirError, match=r"other tools' event files.*found accuracy"):
        read_run(run)


def test_records_of_a_newer_version(tmp_path):
    value = text_value("gradscope/meta", "{}")
    value.metadata.plugin_data.plugin_name = "gradscope"
    value.metadata.plugin_data.content = b'{"version": 2}'
    _write_own(tmp_path, value)
    with pytest.raises(LogdirError, match=r"format 2.*newer gradscope.*update"):
        read_run(*find_runs(tmp_path))


@pytest.mark.parametrize("closed", ["logdir", "logdir/gradscope", f"logdir/gradscope/{LATE_FILE}.gradscope"])
def test_what_may_not_be_read(tmp_path, closed):
    _write_own(tmp_path / "logdir/gradscope", text_value("gradscope/meta", "{}"))
    code = """
import os, sys
from pathlib import Path
from gradscope.logdir.runs import LogdirError, find_runs, read_run
if os.getuid() == 0:
    os.setuid(65534)
try:
    read_run(*find_runs(Path(sys.argv[1])))
except LogdirError as error:
    print(error)
"""
    for directory in [tmp_path, *tmp_path.parents][:3]:
        directory.chmod(directory.stat().st_mode | 0o055)
    path = tmp_path / closed
    path.chmod(0)
    try:
        argv = [sys.executable, "-c", code, str(tmp_path / "logdir")]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    finally:
        path.chmod(0o700)
    assert "ermission denied" in done.stdout


@pytest.mark.parametrize("module", ["gradscope.logdir.runs", "gradscope.logdir.recorder"])
def test_importing_does_not_import_torch(module):
    code = f"import sys, {module}; assert not {{'torch', 'tensorflow'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ)
