"""TensorBoard itself, with both of its loaders, shows what we write to people without the plugin."""

from __future__ import annotations

import json
import math
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
from tensorboard import program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2

from gradscope.logdir.recorder import Recorder
from gradscope.logdir.summaries import CHARTS
from tests.logdir.samples import INFO
from tests.logdir.samples import frame
from tests.logdir.samples import pulses
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events

STEPS = range(4)
WAIT = 60  # seconds until a server must have loaded four steps


@pytest.fixture
def logdir(tmp_path):
    recorder = Recorder(tmp_path / "run" / "gradscope")
    recorder.info(INFO)
    for step in STEPS:
        scalars = {"gradscope/loss": 2.0**-step, "gradscope/learning_rate": math.nan if step == 2 else 0.1}
        recorder.frame(frame(step, histograms=True), scalars)
    recorder.pulses(pulses(STEPS))
    recorder.text("## healthy\n\n| a | b |\n| --- | --- |\n| 1 | 2 |", 3)
    recorder.close()
    write_events(tmp_path / "run" / "events.out.tfevents.1.h", scalar_events({"users/loss": {0: 1.0}}))
    return tmp_path


def test_the_accumulator_sees_scalars_histograms_and_text(logdir):
    accumulator = EventAccumulator(str(logdir / "run" / "gradscope"))
    accumulator.Reload()
    loss = accumulator.Tensors("gradscope/loss")
    assert [(event.step, event.tensor_proto.float_val[0]) for event in loss] == [(step, 2.0**-step) for step in STEPS]
    tags = accumulator.Tags()["tensors"]
    assert {"gradscope/report", "gradscope/pulse", "gradscope_activation/layers.0", "custom_scalars__config__"} <= set(tags)


def test_the_multiplexer_gives_our_plugin_its_tags_and_their_metadata(logdir):
    multiplexer = EventMultiplexer(tensor_size_guidance={"tensors": 0})
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    tags = multiplexer.PluginRunToTagToContent("gradscope")["run/gradscope"]
    assert all(json.loads(content)["version"] == 1 for content in tags.values())
    (norms,) = (tag for tag in tags if tag.endswith("/weight.norm"))
    vectors = [
        np.frombuffer(event.tensor_proto.tensor_content, np.float32) for event in multiplexer.Tensors("run/gradscope", norms)
    ]
    np.testing.assert_array_equal(vectors, [frame(step).columns["weight.norm"] for step in STEPS])
    (layout,) = multiplexer.Tensors("run/gradscope", "custom_scalars__config__")
    charts = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category[0].chart
    assert [chart.title for chart in charts] == [title for title, _ in CHARTS]


@pytest.fixture(params=["true", "false"])
def server(request, logdir):
    board = program.TensorBoard()
    board.configure(
        argv=["tensorboard", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0", "--reload_interval", "1",
              "--load_fast", request.param]
    )  # fmt: skip
    return board.launch()


def _get(server: str, route: str, **parameters: str):
    with urlopen(f"{server}data/plugin/{route}?{urlencode(parameters)}", timeout=30) as reply:
        return json.loads(reply.read())


def _wait_until_loaded(server: str) -> None:
    """The server loads in the background: wait until it has the last record of either run."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if _get(server, "text/tags").get("run/gradscope") and _get(server, "scalars/tags").get("run"):
            return
        time.sleep(0.05)


def test_the_standard_dashboards_show_it(server):
    run = "run/gradscope"
    _wait_until_loaded(server)
    tags = _get(server, "scalars/tags")
    assert set(tags[run]) == {"gradscope/loss", "gradscope/learning_rate"}
    assert set(tags["run"]) == {"users/loss"}
    points = _get(server, "scalars/scalars", run=run, tag="gradscope/loss")
    assert [(step, value) for _, step, value in points] == [(step, 2.0**-step) for step in STEPS]
    points = _get(server, "scalars/scalars", run=run, tag="gradscope/learning_rate")
    assert points[2][2] == "NaN" and points[1][2] == pytest.approx(0.1)

    tags = _get(server, "histograms/tags")[run]
    assert {tag.partition("/")[0] for tag in tags} == {
        "gradscope_activation", "gradscope_activation_gradient", "gradscope_weight_gradient"
    }  # fmt: skip
    assert "log2" in tags["gradscope_activation/layers.0"]["description"]
    drawn = _get(server, "histograms/histograms", run=run, tag="gradscope_activation/layers.0")
    assert [step for _, step, _ in drawn] == list(STEPS)
    shares = frame(1, histograms=True).histograms["activation"][0]
    held = {left: height for left, right, height in drawn[1][2] if height > 0 and right == left + 1}
    assert held == {left: pytest.approx(100 * share, rel=1e-5) for left, share in zip(range(-47, 16), shares[1:], strict=True)}

    assert _get(server, "text/tags")[run] == ["gradscope/report"]
    (report,) = _get(server, "text/text", run=run, tag="gradscope/report")
    assert report["step"] == 3 and "<table>" in report["text"]

    layout = _get(server, "custom_scalars/layout")
    assert [chart["title"] for chart in layout["category"][0]["chart"]] == [title for title, _ in CHARTS]
    shown = _get(server, "custom_scalars/scalars", run=run, tag=layout["category"][0]["chart"][0]["multiline"]["tag"][0])
    assert len(shown["tag_to_events"]["gradscope/loss"]) == len(STEPS)
