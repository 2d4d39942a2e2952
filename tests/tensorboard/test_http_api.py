"""The page about the interface tells what the routes answer: its examples have the keys and kinds of real replies."""

from __future__ import annotations

import json
import re

import pytest

from gradscope.tensorboard.loader import NAME
from gradscope.tensorboard.plugin import ROUTES
from gradscope.tensorboard.routes.arguments import MOST_COLUMNS
from gradscope.tensorboard.routes.arguments import USUAL_COLUMNS
from gradscope.tensorboard.texts import MOST_SITES
from tests import recorded
from tests.tensorboard import samples
from tests.tensorboard.asking import Asking
from tests.tensorboard.board import ROOT

PAGE = (ROOT / "docs" / "http_api.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0].strip(): part for part in PAGE.split("\n## ")[1:]}
RUN = {"run": "first-try/gradscope"}
JSON_ROUTES = {"runs": {}, "report": RUN, "schema": RUN, "profile": {**RUN, "step": 5}}
BINARY_ROUTES = {
    "matrix": {**RUN, "stat": "activation.rms"},
    "histogram": {**RUN, "kind": "activation", "site": 0},
    "scalars": RUN,
}
SAY_IT_THEMSELVES = {
    "checked", "count", "device", "diagnosis", "first_loss", "last_loss", "model", "next", "notes", "overhead", "previous",
    "sampled_steps", "scale", "skipped", "steps", "thinned", "version",
}  # fmt: skip
ANYTHING = {"evidence", "skipped", "kinds"}  # whose keys are the run's own


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    samples.record(logdir / "first-try", recorded.broken())
    return Asking(logdir)


def example(route):
    (found,) = re.findall(r"```json\n(.*?)```", SECTIONS[route], re.DOTALL)
    return json.loads(found)


def test_every_route_has_a_section_and_stands_in_the_table():
    assert set(ROUTES) <= set(SECTIONS)
    assert [route for route in ROUTES if f"| [`{route}`](#{route}) |" not in PAGE] == []
    assert f"data/plugin/{NAME}/" in PAGE


@pytest.mark.parametrize("route", JSON_ROUTES)
def test_the_example_is_like_a_reply(asking, route):
    reply = asking.json(route, **JSON_ROUTES[route])
    assert_alike(example(route), reply, route)


@pytest.mark.parametrize("route", BINARY_ROUTES)
def test_the_example_is_like_a_header(asking, route):
    header, numbers = asking.numbers(route, **BINARY_ROUTES[route])
    shown = example(route)
    assert_alike(shown, header, route)
    assert header["shape"] == list(numbers.shape)
    assert len(shown["first"]) == len(shown["last"]) == len(shown["count"]) == shown["shape"][1]
    assert len(header["first"]) == len(header["last"]) == len(header["count"]) == header["shape"][1]


@pytest.mark.parametrize("route", [*JSON_ROUTES, *BINARY_ROUTES])
def test_the_text_tells_of_every_key_but_those_that_say_it_themselves(route):
    text = re.sub(r"```json\n.*?```", "", SECTIONS[route] + SECTIONS["Rules for all routes"], flags=re.DOTALL)
    assert {key for key in example(route) if not re.search(rf"\b{key}\b", text)} <= SAY_IT_THEMSELVES


def test_the_main_statistics_are_those_that_are_offered(asking):
    named = SECTIONS["schema"].partition("The main statistics:")[2]
    offered = [found["name"] for found in asking.json("schema", **RUN)["statistics"] if found["main"]]
    assert re.findall(r"`([a-z_]+\.[a-z_]+)`", named) == offered


@pytest.mark.parametrize("name", ["http_api.md", "tab.md"])
def test_lines_are_no_longer_than_elsewhere(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 128] == []


def test_limits_are_those_of_the_code():
    assert f"(default {USUAL_COLUMNS}, from 1 to {MOST_COLUMNS})" in PAGE
    assert f"({MOST_SITES:,} of each)" in PAGE


def assert_alike(shown, found, where):
    """The same keys, and values of one kind; lists by their first item."""
    if isinstance(shown, dict):
        assert isinstance(found, dict), where
        if where.rpartition(".")[2] in ANYTHING:
            shown, found = ({"any": next(iter(part.values()), None)} for part in (shown, found))
        assert set(shown) == set(found), where
        for key, value in shown.items():
            assert_alike(value, found[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(found, list), where
        if shown and found:
            assert_alike(shown[0], found[0], f"{where}[0]")
    elif shown is not None and found is not None and not (_is_number(shown) and _is_number(found)):
        assert type(shown) is type(found), (where, shown, found)


def _is_number(value):
    return value in ("inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool))
