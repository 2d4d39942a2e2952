"""A log directory in an S3 store: recorded, shipped, read by gradscope and by TensorBoard."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

import gradscope
from gradscope.cli import main
from gradscope.logdir import pieces
from gradscope.logdir import remote
from gradscope.logdir.address import Address
from gradscope.logdir.errors import LogdirError
from gradscope.logdir.names import record_name
from gradscope.logdir.runs import find_runs
from gradscope.logdir.runs import read_run
from gradscope.logdir.shipping import ship_all
from gradscope.report import jsonreport
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events
from tests.logdir.stores import KEY
from tests.logdir.stores import SECRET
from tests.models import mlp
from tests.models import regress


def trained(logdir, *, steps=20, name=None):
    torch.manual_seed(0)
    model = mlp(4, 8, 2)
    with gradscope.attach(model, logdir, every=1, name=name) as scope:
        regress(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=steps)
    return scope


def as_json(logdir):
    return jsonreport.render(gradscope.read(logdir).runs)


def test_what_was_recorded_is_in_the_store_and_reads_as_the_disk_does(store, recwarn):
    scope = trained(store.address)
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, gradscope.GradscopeWarning)]
    (path,) = (scope.logdir / "gradscope").glob("*tfevents*")
    assert store.record() == path.read_bytes()
    assert gradscope.read(store.address).runs[0].steps == 20
    assert as_json(store.address) == as_json(scope.logdir)


def test_the_local_directory_is_named_after_the_address(store, tmp_path):
    assert trained(store.address).logdir == tmp_path / "runs" / "s3" / store.bucket / "team" / "run"


def test_several_models_share_an_address(store):
    first, second = mlp(4, 8, 2), mlp(4, 8, 2)
    with gradscope.attach(first, store.address, every=1), gradscope.attach(second, store.address, every=1, name="other"):
        regress(first, torch.optim.SGD(first.parameters(), lr=0.1), steps=5)
    assert {run.run for run in gradscope.read(store.address).runs} == {".", "other"}


def test_a_second_training_at_the_same_address_goes_on_with_its_record(store):
    trained(store.address, steps=10)
    scope = trained(store.address, steps=20)
    assert len({record_name(key) for key in store.listed()}) == 2
    assert as_json(store.address) == as_json(scope.logdir)


@pytest.fixture
def cut_up(store, monkeypatch):
    """A record of twenty steps in many pieces; where it lies on the disk."""
    monkeypatch.setattr(pieces, "PIECE", 4096)
    scope = trained("here")
    ship_all(scope.logdir / "gradscope", Address(f"{store.address}/gradscope"))
    assert len(store.listed()) > 5
    return scope.logdir


def test_pieces_are_read_as_the_one_file_that_they_were(store, cut_up, monkeypatch):
    for most in (1, 3, 64):
        monkeypatch.setattr(remote, "MOST_AT_ONCE", most)
        assert as_json(store.address) == as_json(cut_up)


def test_a_large_file_is_read_in_parts(store, cut_up, monkeypatch):
    monkeypatch.setattr(remote, "BATCH", 1024)
    assert as_json(store.address) == as_json(cut_up)


def test_pieces_that_were_copied_back_to_a_disk_are_read_too(store, cut_up, tmp_path):
    for key in store.listed():
        path = tmp_path / "copied" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.body(key))
    assert as_json(tmp_path / "copied" / "team" / "run") == as_json(cut_up)


def test_frames_and_histograms_are_those_of_the_disk(store, cut_up):
    (there,) = find_runs(Address(store.address))
    (here,) = find_runs(cut_up)
    assert there.name == here.name
    for one, other in zip(read_run(there, histograms=True).frames, read_run(here, histograms=True).frames, strict=True):
        assert one.step == other.step
        for columns in ("columns", "histograms"):
            pairs = [(getattr(one, columns)[kind], getattr(other, columns)[kind]) for kind in getattr(other, columns)]
            assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_the_command_reports_on_an_address(store):
    trained(store.address)
    done = CliRunner().invoke(main, ["report", store.address, "--format", "json"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runs"][0]["steps"] == 20


@pytest.mark.parametrize("way", ["boto3", "s3fs"])
def test_tensorboard_reads_the_address(store, cut_up, way):
    """In a process of its own, as it chooses its way to S3 when it is imported."""
    hide = "import sys; sys.modules['boto3'] = None\n" if way == "s3fs" else ""
    program = f"""{hide}
import json, sys
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
multiplexer = EventMultiplexer(tensor_size_guidance={{"tensors": 0}})
multiplexer.AddRunsFromDirectory(sys.argv[1])
multiplexer.Reload()
tags = multiplexer.PluginRunToTagToContent("gradscope")["gradscope"]
print(json.dumps([sorted(tags), [event.step for event in multiplexer.Tensors("gradscope", "gradscope/loss")]]))
"""
    environment = {**os.environ, "AWS_ENDPOINT_URL": os.environ["S3_ENDPOINT"]}
    done = subprocess.run([sys.executable, "-c", program, store.address], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    local = EventMultiplexer(tensor_size_guidance={"tensors": 0})
    local.AddRunsFromDirectory(str(cut_up))
    local.Reload()
    tags, steps = json.loads(done.stdout)
    assert tags == sorted(local.PluginRunToTagToContent("gradscope")["gradscope"])
    assert steps == [event.step for event in local.Tensors("gradscope", "gradscope/loss")] and len(steps) == 20


def test_other_tools_files_in_a_store(store, tmp_path):
    write_events(tmp_path / "events.out.tfevents.1.h", scalar_events({"train/loss": dict.fromkeys(range(30), 1.0)}))
    store.put("team/run/events.out.tfevents.1.h", (tmp_path / "events.out.tfevents.1.h").read_bytes())
    (run,) = gradscope.read(store.address).runs
    assert run.steps == 30


def refusal(address):
    with pytest.raises(LogdirError) as raised:
        gradscope.read(address)
    assert KEY not in str(raised.value) and SECRET not in str(raised.value)
    return str(raised.value)


def test_what_cannot_be_read_is_said_in_a_sentence(store, monkeypatch):
    assert "holds no event files" in refusal(store.address)
    assert "does not exist" in refusal("s3://no-such-bucket-here/run")
    store.put("team/file", b"x")
    assert "is a file" in refusal(f"s3://{store.bucket}/team/file")
    store.line.become(403)
    assert "denies access" in refusal(store.address)
    store.line.become("gone")
    assert "cannot be reached" in refusal(store.address)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials" in refusal(store.address)
    assert "gs:// needs the package gcsfs" in refusal("gs://bucket/run")
    assert "knows no store called nosuch://" in refusal("nosuch://bucket/run")
    done = CliRunner().invoke(main, ["report", "nosuch://bucket/run"])
    assert done.exit_code == 2 and "Traceback" not in done.stderr


def test_a_store_that_fails_while_it_is_read_is_no_half_report(store, cut_up, monkeypatch):
    found = find_runs(Address(store.address))
    store.line.become(403)
    with pytest.raises(LogdirError, match="denies access"):
        read_run(*found)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://run", "is seen by one process alone"),
        ("nosuch://user:hush@host/run", "knows no store called nosuch://"),
        ("gs://bucket/run", "needs the package gcsfs, which is not installed: pip install gcsfs"),
    ],
)
def test_attach_refuses_at_once_what_cannot_work(address, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said) as raised:
        gradscope.attach(mlp(4, 8, 2), address)
    assert "hush" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_without_s3fs_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs the package s3fs, which is not installed: pip install 'gradscope-torch\[remote"
    ):
        gradscope.attach(mlp(4, 8, 2), "s3://bucket/run")


def test_memory_and_files_are_read_by_the_process_that_has_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = trained("here")
    for address in ("memory://there/run", f"file://{tmp_path}/there/run"):
        ship_all(scope.logdir / "gradscope", Address(f"{address}/gradscope"))
        assert as_json(address) == as_json(scope.logdir)


def test_a_training_may_ship_to_a_directory_by_its_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = trained(f"file://{tmp_path}/there/run")
    assert as_json(tmp_path / "there" / "run") == as_json(scope.logdir)
