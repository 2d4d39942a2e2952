from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradscope.logdir.recorder import SCHEMA_EVERY
from gradscope.logdir.recorder import Recorder
from gradscope.logdir.runs import RunDirectory
from gradscope.logdir.runs import read_run
from gradscope.records import HISTOGRAM_BINS
from gradscope.records import HISTOGRAM_LOWEST
from gradscope.records import PULSE_FIELDS
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.records import Site
from tests.logdir.samples import INFO
from tests.logdir.samples import OTHER_SCHEMA
from tests.logdir.samples import SCALARS
from tests.logdir.samples import SCHEMA
from tests.logdir.samples import assert_same_frame
from tests.logdir.samples import events_in
from tests.logdir.samples import frame
from tests.logdir.samples import pulses
from tests.logdir.samples import values_in

DEEP = Schema(
    modules=tuple(Site(f"block.{n}", call) for n in range(100) for call in (0, 1)),
    parameters=tuple(Site(f"block.{n}.{name}") for n in range(100) for name in ("weight", "bias")),
)


def _read(directory: Path):
    return read_run(RunDirectory(".", directory), histograms=True)


@pytest.mark.parametrize("histograms", [False, True])
def test_frames_come_back_as_they_were(tmp_path, histograms):
    recorder = Recorder(tmp_path)
    recorder.info(INFO)
    # Steps of one, two and three bytes, with and without the metadata of a tag's first value.
    steps = [0, 1, 2, 127, 128, 16_383, 16_384, 2**40]
    for step in steps:
        recorder.frame(frame(step, histograms=histograms and step % 2 == 0), SCALARS)
    run = _read(tmp_path)
    assert [held.step for held in run.frames] == steps
    for held in run.frames:
        assert_same_frame(held, frame(held.step, histograms=histograms and held.step % 2 == 0))
    assert (run.info, run.damage) == (INFO, ())


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_any_numbers_come_back(data):
    floats = st.floats(width=32)
    with TemporaryDirectory() as directory:
        recorder = Recorder(Path(directory))
        recorder.info(INFO)
        frames = []
        for step in range(data.draw(st.integers(1, 5))):
            names = data.draw(st.sets(st.sampled_from(["activation.rms", "activation.mean", "weight.norm", "input.rms"])))
            sizes = {name: len(SCHEMA.sites(name.partition(".")[0])) for name in sorted(names)}
            columns = {name: data.draw(arrays(np.float32, size, elements=floats)) for name, size in sizes.items()}
            frames.append(Frame(step, SCHEMA, columns))
            recorder.frame(frames[-1], {"gradscope/loss": data.draw(floats)} if data.draw(st.booleans()) else {})
        run = _read(Path(directory))
        assert run.damage == ()
        expected = [held for held in frames if held.columns]
        assert [held.step for held in run.frames] == [held.step for held in expected]
        for found, held in zip(run.frames, expected, strict=True):
            assert_same_frame(found, held)


def test_pulses_come_back_as_they_were(tmp_path):
    recorder = Recorder(tmp_path)
    rows = np.random.default_rng(0).standard_normal((7, len(PULSE_FIELDS)))
    rows[:, 0] = np.arange(7)
    rows[3, 1:4] = np.nan, np.inf, -np.inf
    recorder.pulses(rows[:5])
    recorder.pulses(rows[:0])
    recorder.pulses(rows[5:])
    np.testing.assert_array_equal(_read(tmp_path).pulses, rows)
    assert [event.step for event in events_in(tmp_path) if "gradscope/pulse" in [v.tag for v in event.summary.value]] == [4, 6]


def test_the_last_description_of_the_run_counts_and_is_written_only_when_it_changes(tmp_path):
    recorder = Recorder(tmp_path)
    later = replace(INFO, notes=("more is known",))
    for info in (INFO, INFO, later, later):
        recorder.info(info)
    assert _read(tmp_path).info == later
    assert [value.tag for value in values_in(tmp_path)].count("gradscope/meta") == 2


def test_frames_of_several_schemas_keep_their_own(tmp_path):
    recorder = Recorder(tmp_path)
    frames = [frame(0), frame(1), frame(2, schema=OTHER_SCHEMA), frame(3, schema=OTHER_SCHEMA), frame(4)]
    for held in frames:
        recorder.frame(held, SCALARS)
    for found, held in zip(_read(tmp_path).frames, frames, strict=True):
        assert_same_frame(found, held)


def test_a_frame_is_one_record_with_all_that_belongs_to_it_and_its_points_are_another(tmp_path):
    recorder = Recorder(tmp_path)
    for step in (3, 4):
        recorder.frame(frame(step, histograms=True), SCALARS)
    own = [event for event in events_in(tmp_path) if event.step in (3, 4)]
    assert [event.step for event in own] == [3, 3, 4, 4]
    for points in own[1::2]:
        assert {value.tag for value in points.summary.value} == set(SCALARS)
    for event in own[::2]:
        tags = {value.tag for value in event.summary.value}
        assert len({tag.split("/")[2] for tag in tags if tag.startswith(("gradscope/stats/", "gradscope/hist/"))}) == 1
        assert "gradscope_activation/layers.0" in tags


def test_metadata_stands_at_the_first_value_of_a_tag_in_each_file_only(tmp_path):
    for _ in range(2):
        recorder = Recorder(tmp_path)
        recorder.info(INFO)
        for step in range(3):
            recorder.frame(frame(step, histograms=step == 1), SCALARS)
            recorder.pulses(pulses([step]))
            recorder.text("# report", step)
        recorder.close()
    for path in tmp_path.iterdir():
        with TemporaryDirectory() as alone:
            (Path(alone) / path.name).write_bytes(path.read_bytes())
            seen: Counter[str] = Counter()
            for value in values_in(Path(alone)):
                assert value.HasField("metadata") == (seen[value.tag] == 0), value.tag
                seen[value.tag] += 1
            assert {"gradscope/meta", "gradscope/report", "gradscope/pulse", "custom_scalars__config__"} <= set(seen)
            assert seen["custom_scalars__config__"] == 1


def test_metadata_of_own_tags_is_json_with_the_version(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.info(INFO)
    recorder.frame(frame(0, histograms=True), {})
    recorder.pulses(pulses([0]))
    own = [v for v in values_in(tmp_path) if v.metadata.plugin_data.plugin_name == "gradscope"]
    facts = {value.tag.split("/")[1]: json.loads(value.metadata.plugin_data.content) for value in own}
    assert facts["pulse"] == {"version": 1, "fields": list(PULSE_FIELDS)}
    assert facts["hist"] == {"version": 1, "bins": HISTOGRAM_BINS, "lowest": HISTOGRAM_LOWEST}
    assert facts["stats"] == facts["schema"] == facts["meta"] == {"version": 1}


def test_a_damaged_list_of_sites_does_not_take_the_whole_run_with_it(tmp_path):
    recorder = Recorder(tmp_path)
    for step in range(SCHEMA_EVERY + 5):
        recorder.frame(Frame(step, SCHEMA, {"weight.norm": np.ones(3, np.float32)}), {})
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[data.index(b'{"inputs"') + 20] ^= 1
    path.write_bytes(data)
    run = _read(tmp_path)
    assert len(run.frames) == SCHEMA_EVERY + 5
    assert "damaged" in run.damage[0]


def test_visible_tags_stay_within_the_budget_and_are_the_same_sites_throughout(tmp_path):
    recorder = Recorder(tmp_path)
    scalars = {f"gradscope/scalar_{n}": 1.0 for n in range(20)}
    for step in range(3):
        recorder.frame(frame(step, schema=DEEP, histograms=True), scalars)
    recorder.text("report", 3)
    tags = [value.tag for value in values_in(tmp_path)]
    visible = {tag for tag in tags if not tag.startswith(tuple(f"gradscope/{x}/" for x in ("stats", "hist", "schema")))}
    assert len(visible) <= 200
    for kind, name in (("activation", ""), ("activation_gradient", ""), ("weight_gradient", ".weight")):
        drawn = Counter(tag for tag in tags if tag.startswith(f"gradscope_{kind}/"))
        assert len(drawn) == 16 and set(drawn.values()) == {3}
        assert {f"gradscope_{kind}/block.0{name}", f"gradscope_{kind}/block.99{name}"} <= set(drawn)


def test_a_drawn_histogram_has_the_magnitudes_and_leaves_out_the_zeros(tmp_path):
    shares = np.zeros((3, HISTOGRAM_BINS), np.float32)
    shares[0, [0, 46, 48]] = 0.5, 0.125, 0.375
    shares[1, 0] = 1.0
    shares[2] = np.nan
    held = Frame(0, SCHEMA, {"activation.rms": np.ones(3, np.float32)}, {"activation": shares})
    Recorder(tmp_path).frame(held, {})
    drawn = {value.tag: value for value in values_in(tmp_path) if value.tag.startswith("gradscope_activation/")}
    assert set(drawn) == {"gradscope_activation/layers.0"}  # the second holds zeros only
    bars = np.frombuffer(drawn["gradscope_activation/layers.0"].tensor.tensor_content, np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(bars, [[-2, -1, 12.5], [-1, 0, 0], [0, 1, 37.5]])
    np.testing.assert_array_equal(_read(tmp_path).frames[0].histograms["activation"], shares)


def test_each_file_of_a_long_run_can_be_read_without_the_others(tmp_path):
    recorder = Recorder(tmp_path / "run", rotate_at=10_000)
    recorder.info(INFO)
    for step in range(30):
        recorder.frame(frame(step, histograms=step % 7 == 0), SCALARS)
        recorder.pulses(pulses([step]))
    files = sorted((tmp_path / "run").iterdir())
    assert len(files) > 3
    steps = []
    for number, path in enumerate(files):
        alone = tmp_path / str(number)
        alone.mkdir()
        path.rename(alone / path.name)
        run = _read(alone)
        assert (run.info, run.damage) == (INFO, ())
        steps += [held.step for held in run.frames]
        first = {value.tag: value for value in reversed(values_in(alone))}
        assert all(value.HasField("metadata") for value in first.values())
    assert steps == list(range(30))


def test_metadata_that_a_full_disk_refused_is_written_later(tmp_path):
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from gradscope.logdir.recorder import Recorder
from gradscope.records import Frame, RunInfo, Schema, Site
recorder = Recorder(Path(sys.argv[1]))
recorder.info(RunInfo("net", "Net"))
(path,) = Path(sys.argv[1]).iterdir()
frame = Frame(1, Schema(parameters=(Site("w"),)), {"weight.norm": np.ones(1, np.float32)})
for room in (20, 300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
    try:
        recorder.frame(frame, {"gradscope/loss": 1.0})
    except OSError:
        continue
    raise AssertionError("a short write passed")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.frame(frame, {"gradscope/loss": 1.0})
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    first = {value.tag: value for value in reversed(values_in(tmp_path))}
    assert {"gradscope/loss", "gradscope/meta"} < set(first)
    assert all(value.HasField("metadata") for value in first.values())
    run = _read(tmp_path)
    assert ([held.step for held in run.frames], run.damage) == ([1], ())


def test_after_a_failed_write_the_record_goes_on_complete(tmp_path):
    directory = tmp_path / "run"
    directory.write_text("a file where the directory should be")
    recorder = Recorder(directory)
    with pytest.raises(FileExistsError):
        recorder.frame(frame(0), SCALARS)
    directory.unlink()
    recorder.frame(frame(1), SCALARS)
    run = _read(directory)
    assert_same_frame(run.frames[0], frame(1))


def test_a_forked_child_writes_nothing(tmp_path):
    code = """
import os, sys
from pathlib import Path
import numpy as np
from gradscope.logdir.recorder import Recorder
from gradscope.records import PULSE_FIELDS, Frame, RunInfo, Schema, Site
recorder = Recorder(Path(sys.argv[1]))
recorder.info(RunInfo("parent", "Net"))
(path,) = Path(sys.argv[1]).iterdir()
size = path.stat().st_size
child = os.fork()
if child == 0:
    schema = Schema(parameters=(Site("w"),))
    recorder.frame(Frame(1, schema, {"weight.norm": np.ones(1, np.float32)}), {"gradscope/loss": 1.0})
    recorder.pulses(np.ones((1, len(PULSE_FIELDS))))
    recorder.text("x", 1)
    recorder.info(RunInfo("child", "Net"))
    recorder.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [held.stat().st_size for held in Path(sys.argv[1]).iterdir()] == [size]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
