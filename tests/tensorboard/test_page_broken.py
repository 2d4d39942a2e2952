"""With a part of gradscope missing or failing, TensorBoard and its other dashboards go on, and the tab says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events
from tests.tensorboard import hostile
from tests.tensorboard import pages
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import copied
from tests.tensorboard.board import running
from tests.tensorboard.board import taken_away
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import frame_of
from tests.tensorboard.browser import opened
from tests.tensorboard.browser import visited

INCOMPLETE = "Install gradscope again in the environment that TensorBoard runs in"
PAGE = Path("tensorboard", "page")
TOLD = {
    "absurd_shapes/gradscope": "a record's tensor is not sound",
    "wrong_columns/gradscope": "are not what their tag says and were left out",
    "too_many_names/gradscope": "expected 16,777,216 at most",
    "newer/gradscope": "update gradscope",
}


@pytest.fixture(scope="module")
def logdir(tmp_path_factory) -> Path:
    logdir = tmp_path_factory.mktemp("logdir")
    pages.healthy(logdir / "fine")
    write_events(logdir / "theirs" / "events.out.tfevents.1.h", scalar_events({"users/loss": {0: 1.0}}))
    return logdir


def cut_short(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8")[:-40] + "\n(", encoding="utf-8")


def raising(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n\ndef answer(*_):\n    raise KeyError('<b>lost</b>')\n")


@pytest.mark.parametrize(
    ("part", "harm", "said"),
    [
        (PAGE / "app.js", taken_away, INCOMPLETE),
        (PAGE / "paint.js", cut_short, INCOMPLETE),
        (PAGE / "heatmap.css", taken_away, "heatmap.css is missing"),
        (Path("tensorboard", "plugin.py"), taken_away, INCOMPLETE),
        (Path("report"), taken_away, INCOMPLETE),
        (Path("rules", "lr_too_high.py"), cut_short, "gradscope failed with SyntaxError"),
        (Path("tensorboard", "routes", "matrix.py"), raising, "gradscope failed with KeyError: '<b>lost</b>'"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_tab_says_what_is_wrong(browser, logdir, tmp_path, part: Path, harm: Callable[[Path], None], said: str):
    root = copied(tmp_path)
    harm(root / "gradscope" / part)
    with running(logdir, root=root) as board:
        board.wait(lambda: "theirs" in board.fetch("data/plugin/scalars/tags").json)
        board.wait(lambda: board.fetch("data/plugins_listing").json["gradscope"]["enabled"])
        with visited(browser, f"{board.url}#gradscope") as tab:
            place = frame_of(tab).locator("[role=alert]:visible, .status.bad").first
            expect(place).to_contain_text(said, timeout=20_000)
            assert frame_of(tab).locator("[role=alert] b").count() == 0
            tab.page.goto("about:blank")
            tab.page.goto(f"{board.url}#scalars")
            expect(tab.page.get_by_text("users").first).to_be_visible(timeout=20_000)
            tab.complaints.clear()  # the browser's own words about what could not be loaded
        assert list(board.fetch("data/plugin/scalars/tags").json["theirs"]) == ["users/loss"]


def test_where_a_route_fails_the_other_views_stand(browser, logdir, tmp_path):
    root = copied(tmp_path)
    raising(root / "gradscope" / "tensorboard" / "routes" / "report.py")
    with running(logdir, root=root) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("alert")).to_contain_text("This is a mistake in gradscope.")
            expect(tab.page.get_by_role("application")).to_be_visible()
            expect(tab.page.get_by_role("region", name="Depth profile")).to_be_visible()
            expect(tab.page.get_by_role("region", name="Magnitudes over time")).to_be_visible()
            tab.complaints.clear()


@pytest.mark.parametrize("load_fast", LOADERS)
def test_every_hostile_run_is_shown_as_far_as_it_can_be_and_runs_nothing(browser, tmp_path, load_fast):
    for name, make in hostile.LOGDIRS.items():
        make(tmp_path / name)
    hostile.markup(tmp_path / hostile.MARKUP)
    pages.healthy(tmp_path / "sound")
    with running(tmp_path, load_fast=load_fast) as board:
        runs = [run["run"] for run in board.wait_for_runs(len(hostile.LOGDIRS))]
        with opened(browser, board.url, run="sound/gradscope") as tab:
            tab.page.on("dialog", lambda dialog: tab.complaints.append(f"a dialog: {dialog.message}"))
            for run in runs:
                tab.page.get_by_label("Run", exact=True).select_option(run)
                expect(tab.page.locator(".headline, .empty h2, .trouble p").locator("visible=true").first).to_be_visible()
                expect(tab.page.get_by_role("status")).not_to_have_class("status bad")
                assert tab.page.locator(".page img, .page script").count() == 0
                if said := TOLD.get(run):
                    expect(tab.page.locator(".verdict .note, .empty p").filter(has_text=said).first).to_be_visible()
            tab.page.get_by_label("Run", exact=True).select_option("sound/gradscope")
            expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible()
            tab.complaints[:] = [said for said in tab.complaints if "status of 4" not in said and "status of 5" not in said]
