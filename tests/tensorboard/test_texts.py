"""Descriptions from outside are read within bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from gradscope.logdir.codec import dumps
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.tensorboard.texts import MOST_BYTES
from gradscope.tensorboard.texts import MOST_SITES
from gradscope.tensorboard.texts import Texts
from gradscope.tensorboard.texts import shown_info
from gradscope.tensorboard.texts import sites_of
from gradscope.tensorboard.texts import text_in
from tests import timelines

INFO = timelines.build().info


def test_what_was_read_once_is_the_same_the_next_time():
    texts, text = Texts(), dumps(INFO).encode()
    assert texts.parsed(RunInfo, text).value == INFO
    assert texts.parsed(RunInfo, text) is texts.parsed(RunInfo, bytes(bytearray(text)))


def test_one_text_may_be_two_things():
    texts = Texts()
    assert isinstance(texts.parsed(Schema, b"{}").value, Schema)
    assert texts.parsed(RunInfo, b"{}").value is None


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b"[]", json.dumps({"modules": 3}).encode()])
def test_what_is_no_description_is_said_to_be_none(text):
    parsed = Texts().parsed(Schema, text)
    assert parsed.value is None
    assert parsed.fault is not None and parsed.fault.startswith("a description was left out: ") and len(parsed.fault) < 300


def test_a_text_beyond_all_bounds_is_not_looked_at():
    parsed = Texts().parsed(Schema, b" " * MOST_BYTES + b"{}")
    assert parsed.fault == f"a description of {MOST_BYTES + 2:,} bytes was left out: expected {MOST_BYTES:,} at most."


def test_more_sites_than_are_shown_are_counted():
    schema = Schema(modules=tuple(Site(f"m{i}") for i in range(MOST_SITES + 1)), parameters=(Site("w"),))
    sites = sites_of(schema)
    assert (len(sites.schema.modules), sites.schema.parameters) == (MOST_SITES, (Site("w"),))
    assert (sites.counts["activation_gradient"], sites.counts["update"], sites.cut) == (MOST_SITES + 1, 1, MOST_SITES + 1)
    few = Schema(modules=(Site("a"),))
    assert (sites_of(few).schema is few, sites_of(few).cut) == (True, 0)


def test_more_modules_than_are_shown_are_cut():
    many = replace(INFO, modules=INFO.modules * 8000)
    assert len(many.modules) > MOST_SITES
    assert len(shown_info(many).modules) == MOST_SITES
    assert shown_info(INFO) is INFO


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (np.array(b"abc", dtype=object), b"abc"),
        (np.array("ab\ud800", dtype=object), b"ab?"),
        (np.array(3.0), b"3.0"),
        (np.array([b"a", b"b"], dtype=object), b""),
        (np.zeros(0), b""),
    ],
)
def test_a_text_is_taken_out_of_whatever_tensor(tensor, text):
    assert text_in(tensor) == text
