"""The tab within TensorBoard's own page, with both of its loaders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gradscope.logdir.recorder import Recorder
from tests import recorded as recorded_run
from tests import timelines
from tests.logdir.samples import scalar_events
from tests.logdir.samples import write_events
from tests.tensorboard import pages
from tests.tensorboard import samples
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


def test_it_rests_while_another_dashboard_is_looked_at_and_keeps_its_state(browser, board):
    looks = "async () => (await import(`${document.baseURI}static/live.js`)).inSight()"
    with visited(browser, f"{board.url}#gradscope&p.gradscope.run=fault%2Fgradscope") as tab:
        frame = frame_of(tab)
        frame.get_by_role("radio", name="Gradient scale").click()
        assert frame.evaluate(looks)
        tab.page.get_by_role("tab", name="Time Series").click()
        tab.page.wait_for_url("**#timeseries**")
        expect(tab.page.locator("iframe[src*='gradscope']")).to_be_hidden()
        assert not frame.evaluate(looks)
        tab.page.get_by_role("tab", name="GradScope").click()
        expect(frame.get_by_role("radio", name="Gradient scale")).to_be_checked()
        assert frame.evaluate(looks)


def test_it_is_light_or_dark_as_tensorboard_is(browser, board):
    with visited(browser, f"{board.url}?darkMode=true#gradscope") as tab:
        root = frame_of(tab).locator("html")
        expect(root).to_have_attribute("data-theme", "dark")
        tab.page.evaluate("document.body.classList.remove('dark-mode')")
        expect(root).to_have_attribute("data-theme", "light")


@pytest.mark.parametrize("load_fast", LOADERS)
def test_a_run_grows_before_the_eyes_and_what_is_being_read_stays(browser, tmp_path, load_fast):
    timeline = timelines.build(steps=range(40), columns={"weight_gradient.carried": 1.0}, pulses={"loss": 2.3})
    rows = samples.pulse_rows(timeline)
    recorder = Recorder(tmp_path / "gradscope")
    recorder.info(timeline.info)
    for frame in timeline.frames[:20]:
        recorder.frame(frame, {})
    recorder.pulses(rows[:20])
    with running(tmp_path, load_fast=load_fast) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            plot = tab.page.get_by_role("application")
            expect(plot).to_have_attribute("aria-label", "Heat map of activation scale: 6 rows, steps 0 to 19")
            summary = tab.page.locator(".verdict summary")
            expect(summary).to_contain_text("on 20 sampled steps")
            summary.click()
            tab.page.get_by_role("button", name="Show it below").focus()
            chosen = tab.page.locator(".row-label[aria-selected=true]")
            chosen.evaluate("(label) => (label.marked = true)")
            for frame in timeline.frames[20:]:
                recorder.frame(frame, {})
            recorder.pulses(rows[20:])
            expect(plot).to_have_attribute("aria-label", "Heat map of activation scale: 6 rows, steps 0 to 39", timeout=30_000)
            expect(tab.page.get_by_role("status")).to_have_text("up to step 39")
            expect(summary).to_contain_text("on 40 sampled steps", timeout=30_000)
            expect(tab.page.locator(".verdict details li").first).to_be_visible()
            expect(tab.page.get_by_role("button", name="Show it below")).to_be_focused()
            assert chosen.evaluate("(label) => label.marked")  # a click on it, begun before, is not lost
    recorder.close()


@pytest.mark.parametrize("load_fast", LOADERS)
def test_a_restart_with_another_model_shows_the_modules_of_both(browser, tmp_path, load_fast):
    samples.record(tmp_path, samples.ramp(steps=range(0, 60, 5)))
    samples.record(tmp_path, samples.ramp(samples.DEEP_NET, steps=range(42, 90, 3)), begin=40)
    with running(tmp_path, load_fast=load_fast) as board:
        board.wait_for_runs()
        with opened(browser, board.url, module="layers.8", step=60) as tab:
            plot = tab.page.get_by_role("application")
            expect(plot).to_have_attribute("aria-label", "Heat map of activation scale: 10 rows, steps 0 to 87")
            tab.page.get_by_text("Numbers around the chosen step").click()
            numbers = tab.page.get_by_role("row", name="layers.8").get_by_role("cell")
            expect(numbers.first).to_have_text(str(np.float32(8 + 51 / 1000 + 1)))
            plot.press("Home")
            expect(numbers.first).to_have_text("not captured")
            expect(tab.page.get_by_role("row", name="layers.0").get_by_role("cell").first).to_have_text("1")


def test_of_many_runs_the_one_that_began_last_is_shown_and_each_can_be_chosen(browser, tmp_path):
    names = [f"run-{number:02}" for number in range(40)]
    for name in [*names, "a-run-that-began-last"]:
        samples.record(tmp_path / name, timelines.build(steps=range(6), total=6))
    with running(tmp_path) as board:
        board.wait_for_runs(41)
        with opened(browser, board.url) as tab:
            choice = tab.page.get_by_label("Run", exact=True)
            expect(choice).to_have_value("a-run-that-began-last/gradscope")
            expect(choice.locator("option")).to_have_count(41)
            for name in (names[0], names[-1]):
                choice.select_option(f"{name}/gradscope")
                expect(tab.page.get_by_role("article", name=f"Run {name}/gradscope").locator(".headline")).to_be_visible()
            samples.record(tmp_path / "another", timelines.build(steps=range(6), total=6))
            expect(choice.locator("option")).to_have_count(42, timeout=30_000)
            expect(choice).to_have_value("run-39/gradscope")


def test_a_run_that_begins_is_shown_unless_somebody_reads(browser, tmp_path):
    samples.record(tmp_path / "b", timelines.build(steps=range(6), total=6))
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            choice = tab.page.get_by_label("Run", exact=True)
            expect(choice).to_have_value("b/gradscope")
            samples.record(tmp_path / "a", timelines.build(steps=range(6), total=6))
            expect(choice).to_have_value("a/gradscope", timeout=30_000)
            tab.page.mouse.wheel(0, 50)
            samples.record(tmp_path / "c", timelines.build(steps=range(6), total=6))
            expect(choice.locator("option")).to_have_count(3, timeout=30_000)
            expect(choice).to_have_value("a/gradscope")


def test_an_empty_log_directory_says_what_to_do_and_a_run_that_comes_is_shown(browser, tmp_path):
    with running(tmp_path) as board, opened(browser, board.url) as tab:
        expect(tab.page.get_by_role("heading", name="No data yet")).to_be_visible()
        expect(tab.page.locator(".empty pre")).to_contain_text("gradscope.attach(model")
        pages.healthy(tmp_path / "first-try")
        expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible(timeout=30_000)


def test_a_run_that_was_described_and_has_not_made_a_step(browser, tmp_path):
    timeline = timelines.build(steps=(2,), total=3)
    recorder = Recorder(tmp_path / "first-try" / "gradscope")
    recorder.info(timeline.info)
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("heading", name="first-try has not made a step yet")).to_be_visible()
            rows = samples.pulse_rows(timeline)
            recorder.pulses(rows[:2])
            expect(tab.page.get_by_text("No step was sampled yet.")).to_be_visible(timeout=30_000)
            expect(tab.page.get_by_role("img", name="Loss over steps 0 to 1.")).to_be_visible()
            recorder.frame(timeline.frames[0], {})
            recorder.pulses(rows[2:])
            expect(tab.page.get_by_role("application")).to_be_visible(timeout=30_000)
            expect(tab.page.get_by_role("img", name="Depth profile at step 2")).to_be_visible()
    recorder.close()


def test_where_only_the_written_report_is_left_it_is_shown(browser, tmp_path):
    samples.record(tmp_path, recorded_run.broken(), report="## Critical\n\n<b>as it was written</b>")
    samples.keep_only_the_report(tmp_path)
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as tab:
            expect(tab.page.get_by_role("region", name="Report")).to_contain_text("<b>as it was written</b>")
            expect(tab.page.get_by_role("heading", name="NOT CHECKED")).to_be_visible()
            expect(tab.page.locator(".timeline")).to_be_hidden()


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
