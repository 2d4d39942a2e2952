"""The tab within TensorBoard's own page, with both of its loaders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gradscope.logdir.recorder import Recorder
from gradscope.records import PULSE_FIELDS
from tests import timelines
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events
from tests.tensorboard import pages
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import running
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import frame_of
from tests.tensorboard.browser import opened
from tests.tensorboard.browser import visited


@pytest.mark.parametrize("load_fast", LOADERS)
def test_the_tab_shows_the_run(browser, recorded, load_fast):
    with running(recorded, load_fast=load_fast) as board:
        board.wait_for_runs(3)
        with visited(browser, f"{board.url}#gradscope&p.gradscope.run=fault%2Fgradscope") as tab:
            frame = frame_of(tab)
            expect(frame.get_by_role("heading", name="CRITICAL")).to_be_visible(timeout=20_000)
            expect(frame.get_by_role("application")).to_have_attribute(
                "aria-label", "Heat map of activation scale: 33 rows, steps 0 to 99; 192 cells of the run not finite"
            )


def test_state_stands_in_the_address_of_tensorboard_behind_a_path_prefix(browser, recorded):
    with running(recorded, "--path_prefix", "/a/b") as board:
        board.wait_for_runs(3)
        with visited(browser, f"{board.url}#gradscope&p.gradscope.run=fault%2Fgradscope&p.gradscope.step=7") as tab:
            frame = frame_of(tab)
            expect(frame.locator(".step-number")).to_have_text("step 7", timeout=20_000)
            frame.get_by_role("radio", name="Gradient scale").click()
            tab.page.wait_for_url("**/a/b/#gradscope&**stat=activation_gradient.rms**")
            tab.page.evaluate("location.hash = location.hash.replace('step=7', 'step=9')")
            expect(frame.locator(".step-number")).to_have_text("step 9")


def test_it_is_light_or_dark_as_tensorboard_is(browser, board):
    with visited(browser, f"{board.url}?darkMode=true#gradscope") as tab:
        root = frame_of(tab).locator("html")
        expect(root).to_have_attribute("data-theme", "dark")
        tab.page.evaluate("document.body.classList.remove('dark-mode')")
        expect(root).to_have_attribute("data-theme", "light")


def test_a_run_grows_before_the_eyes(browser, tmp_path):
    timeline = timelines.build(steps=range(40))
    rows = np.column_stack([timeline.pulse(field) for field in PULSE_FIELDS])
    recorder = Recorder(tmp_path / "gradscope")
    recorder.info(timeline.info)
    for frame in timeline.frames[:20]:
        recorder.frame(frame, {})
    recorder.pulses(rows[:20])
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            plot = tab.page.get_by_role("application")
            expect(plot).to_have_attribute("aria-label", "Heat map of activation scale: 6 rows, steps 0 to 19")
            for frame in timeline.frames[20:]:
                recorder.frame(frame, {})
            recorder.pulses(rows[20:])
            expect(plot).to_have_attribute("aria-label", "Heat map of activation scale: 6 rows, steps 0 to 39", timeout=30_000)
            expect(tab.page.get_by_role("status")).to_have_text("up to step 39")
    recorder.close()


def test_an_empty_log_directory_says_what_to_do_and_a_run_that_comes_is_shown(browser, tmp_path):
    with running(tmp_path) as board, opened(browser, board.url) as tab:
        expect(tab.page.get_by_role("heading", name="No data yet")).to_be_visible()
        expect(tab.page.locator(".empty pre")).to_contain_text("gradscope.attach(model")
        pages.healthy(tmp_path / "first-try")
        expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible(timeout=30_000)


def test_other_tools_data_alone(browser, tmp_path):
    write_events(tmp_path / "theirs" / "events.out.tfevents.1.h", scalar_events({"users/loss": {0: 1.0}}))
    with running(tmp_path) as board:
        board.wait(lambda: bool(board.json("runs")["others"]))
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("heading", name="Only other tools’ data here")).to_be_visible()
            expect(tab.page.locator(".empty")).to_contain_text("theirs")


def test_data_of_a_newer_gradscope(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.logdir.values.VERSION", 99)
    pages.healthy(tmp_path)
    with running(tmp_path) as board:
        (run,) = board.wait_for_runs()
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("heading", name="This run cannot be shown")).to_be_visible()
            expect(tab.page.locator(".empty")).to_contain_text(json.loads(json.dumps(run))["error"])


def test_a_server_that_goes_away_is_told_of(browser, recorded):
    with running(recorded) as board:
        board.wait_for_runs(3)
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("status")).to_contain_text("up to step")
            tab.page.route("**/runs", lambda route: route.abort())
            expect(tab.page.get_by_role("status")).to_contain_text("TensorBoard does not answer", timeout=15_000)
            tab.complaints.clear()  # the browser's own words about what could not be loaded
