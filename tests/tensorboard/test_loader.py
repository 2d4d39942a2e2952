"""Whatever is wrong with gradscope, TensorBoard starts, as fast as without it, and the tab says what is wrong."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from tensorboard.plugins import base_plugin

from gradscope.tensorboard.apology import INCOMPLETE
from gradscope.tensorboard.apology import Apology
from gradscope.tensorboard.apology import apologetic_module
from gradscope.tensorboard.loader import NAME
from gradscope.tensorboard.loader import SAMPLES
from gradscope.tensorboard.loader import Loader
from gradscope.tensorboard.plugin import ROUTES
from gradscope.tensorboard.plugin import Plugin
from tests.tensorboard import samples
from tests.tensorboard.board import ROOT
from tests.tensorboard.board import copied
from tests.tensorboard.board import running
from tests.tensorboard.board import taken_away
from tests.test_imports import modules_after

ENTRY_POINT = "gradscope.tensorboard.loader:Loader"
HEAVY = {"torch", "rich", "click", "gradscope.records", "gradscope.timeline", "gradscope.diagnosis", "gradscope.logdir"}
# What TensorBoard itself has imported by the time it loads plugins.
_TENSORBOARD = "from tensorboard import default, program; default.get_static_plugins()"
_CONTEXT = "from tensorboard.plugins.base_plugin import TBContext"
_LOAD = f"from gradscope.tensorboard.loader import Loader; {_CONTEXT}; Loader().load(TBContext()).get_plugin_apps()"


def test_the_entry_point_names_the_loader():
    assert EntryPoint(NAME, ENTRY_POINT, "tensorboard_plugins").load() is Loader
    assert f"tensorboard_plugins =\n    {NAME} = {ENTRY_POINT}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_importing_the_loader_imports_nothing_of_ours_but_its_package():
    imported = modules_after("import gradscope.tensorboard.loader")
    own = {name for name in imported if name.startswith("gradscope")}
    assert own == {
        "gradscope",
        "gradscope.failures",
        "gradscope.version",
        "gradscope.tensorboard",
        "gradscope.tensorboard.loader",
    }
    assert imported.isdisjoint({"torch", "numpy", "tensorboard.compat.proto.event_pb2"})


def test_starting_tensorboard_imports_only_what_serves_requests():
    with_it = modules_after(f"{_TENSORBOARD}; {_LOAD}")
    added = with_it - modules_after(f"{_TENSORBOARD}; {_CONTEXT}")
    assert {name for name in added if not name.startswith("gradscope")} == set()
    assert added.isdisjoint(HEAVY)
    assert len(added) <= 9, added


def test_nothing_is_imported_that_needs_torch(tmp_path):
    samples.record(tmp_path, samples.ramp())
    program = (
        "import sys; from tests.tensorboard.asking import Asking; import pathlib; a = Asking(pathlib.Path(sys.argv[1])); "
        "a.json('report', run='gradscope'); a.numbers('matrix', run='gradscope', stat='activation.rms')"
    )
    imported = modules_after(program, tmp_path)
    assert "gradscope.rules.lr_too_high" in imported
    assert "torch" not in imported


def test_more_samples_are_kept_unless_the_user_said_how_many():
    for given, kept in [({}, SAMPLES), ({NAME: 5}, 5), ({NAME: 0}, 0)]:
        flags = argparse.Namespace(samples_per_plugin={**given, "images": 3})
        Loader().fix_flags(flags)
        assert flags.samples_per_plugin == {NAME: kept, "images": 3}


@pytest.mark.parametrize("flags", [argparse.Namespace(), argparse.Namespace(samples_per_plugin=None)])
def test_flags_of_another_tensorboard_do_no_harm(flags):
    Loader().fix_flags(flags)


def test_the_plugin_has_every_route_and_leaves_it_to_tensorboard_whether_it_is_active():
    plugin = Loader().load(base_plugin.TBContext())
    assert isinstance(plugin, Plugin)
    assert set(plugin.get_plugin_apps()) == {*(f"/{route}" for route in ROUTES), "/static/*"}
    assert plugin.is_active() is False
    assert plugin.data_plugin_names() == (NAME,)


@pytest.fixture
def damaged(tmp_path):
    """Takes parts of a copy of the package away; gives the copy's root."""

    def take(*parts: str) -> Path:
        root = copied(tmp_path)
        for part in parts:
            taken_away(root / "gradscope" / part)
        return root

    return take


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("logdir")
    samples.record(logdir, samples.ramp())
    return logdir


@pytest.mark.parametrize(
    ("missing", "sentence_from"),
    [
        ("tensorboard/page", "page"),
        ("tensorboard/plugin.py", "page"),
        ("tensorboard/server.py", "routes"),
        ("tensorboard/routes/matrix.py", "routes"),
        ("diagnosis.py", "routes"),
        ("logdir", "routes"),
        ("records.py", "routes"),
    ],
)
def test_with_a_part_missing_tensorboard_goes_on_and_the_tab_says_so(damaged, logdir, missing, sentence_from):
    with running(logdir, root=damaged(missing)) as board:
        board.wait(lambda: "gradscope" in board.fetch("data/plugin/text/tags").json)
        page = board.get("static/index.js")
        assert (page.status, page.media_type) == (200, "text/javascript")
        assert (INCOMPLETE in page.content.decode()) == (sentence_from == "page")
        if sentence_from == "routes":
            answer = board.get("runs")
            assert answer.status == 500
            assert answer.json["error"].startswith(f"{INCOMPLETE} (")


def test_with_nothing_left_but_the_loader_tensorboard_goes_on_without_a_tab(damaged, logdir):
    with running(logdir, root=damaged("tensorboard/plugin.py", "tensorboard/apology.py")) as board:
        board.wait(lambda: "gradscope" in board.fetch("data/plugin/text/tags").json)
        assert "gradscope" not in board.fetch("data/plugins_listing").json


def test_a_plugin_that_cannot_be_made_is_apologised_for():
    flags = argparse.Namespace(samples_per_plugin={NAME: "many"})
    assert isinstance(Loader().load(base_plugin.TBContext(flags=flags)), Apology)


def test_the_apology_needs_nothing_of_the_context():
    assert set(Apology(base_plugin.TBContext()).get_plugin_apps()) == {"/static/index.js"}


@pytest.mark.parametrize("sentence", ['</script><b>"\\', "two\nlines \u2028 \u00fcn\u00ef"])
def test_the_apology_is_a_string_whatever_it_says(sentence):
    program = apologetic_module(sentence)
    (line,) = (line for line in program.splitlines() if "textContent" in line)
    literal = line.partition(" = ")[2].rstrip(";")
    assert literal.isascii()
    assert json.loads(literal) == sentence
