"""What goes wrong while a request is answered reaches the page as a sentence, and nothing else."""

from __future__ import annotations

import gzip
import logging

import numpy as np
import pytest
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from gradscope.tensorboard.plugin import Plugin
from gradscope.tensorboard.replies import packed
from tests.tensorboard import samples
from tests.tensorboard.asking import Asking
from tests.tensorboard.board import unpacked


class Failing:
    """A data provider that cannot answer."""

    def list_tensors(self, *arguments, **named):
        raise RuntimeError("the data server is gone\nand more of it")


class Confused:
    """One that answers what it must not."""

    def list_tensors(self, *arguments, **named):
        return {"gradscope": {"gradscope/meta": None}}

    def list_runs(self, *arguments, **named):
        return ()


def client(provider, route="/runs"):
    return Client(Plugin(TBContext(data_provider=provider)).get_plugin_apps()[route])


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    samples.record(logdir, samples.ramp(steps=range(200)))
    return Asking(logdir).provider


def test_a_data_provider_that_fails_is_not_gradscopes_mistake():
    answer = client(Failing()).get("/runs")
    assert answer.status_code == 503
    assert answer.json == {"error": "TensorBoard could not list its runs: the data server is gone."}


def test_a_mistake_is_said_and_logged(caplog):
    with caplog.at_level(logging.ERROR, logger="gradscope.tensorboard"):
        answer = client(Confused()).get("/runs")
    assert answer.status_code == 500
    assert answer.json["error"].startswith("gradscope failed with AttributeError: ")
    assert answer.json["error"].endswith("This is a mistake in gradscope.")
    assert "could not answer /runs" in caplog.text


def test_after_a_failure_the_next_request_is_answered(provider):
    plugin = Plugin(TBContext(data_provider=provider))
    matrix = Client(plugin.get_plugin_apps()["/matrix"])
    assert matrix.get("/matrix?run=nothing&stat=a").status_code == 404
    assert matrix.get("/matrix?run=gradscope&stat=activation.rms").status_code == 200


def test_numbers_are_packed_for_those_who_can_unpack_them(provider):
    route, query = "/matrix", "/matrix?run=gradscope&stat=activation.rms"
    plain = client(provider, route).get(query)
    small = client(provider, route).get(query, headers={"Accept-Encoding": "gzip"})
    assert (plain.headers.get("Content-Encoding"), small.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(small.data) == plain.data
    assert len(small.data) < len(plain.data)
    assert unpacked(plain.data)[1].shape == (5, 200)


def test_no_browser_takes_an_answer_for_a_page(provider):
    for route, query in (("/runs", "/runs"), ("/text", "/text?run=gradscope"), ("/matrix", "/matrix?run=<script>")):
        answer = client(provider, route).get(query)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.mimetype in ("application/json", "text/plain")


def test_what_is_packed_is_what_comes_out():
    numbers = np.array([[1.5, np.nan, np.inf], [-0.0, 1e-45, -np.inf]], dtype=np.float32)
    for name in ("", "a", "ab", "abc", "ü"):
        header, found = unpacked(packed({"name": name, "low": float("nan"), "high": float("inf")}, numbers).content)
        assert header == {"name": name, "low": None, "high": "inf", "shape": [2, 3]}
        assert found.tobytes() == numbers.tobytes()
