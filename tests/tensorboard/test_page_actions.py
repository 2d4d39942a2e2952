"""What a person can do on the page, in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.tensorboard import pages
from tests.tensorboard.board import running
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import opened

FAULT = {"run": "fault/gradscope"}
SCALE = str(np.float32(10**-0.25))  # of the first block's activation, as few digits as tell it from others
HISTOGRAM_LEFT = 40  # pixels for the magnitudes' names
# Whether a plot has an upright line, from its top to its bottom, so far across what is right of `left`.
MARKED = """(canvas, [left, across]) => {
  const ratio = canvas.width / canvas.clientWidth;
  const x = Math.round(ratio * (left + across * (canvas.clientWidth - left)));
  const context = canvas.getContext("2d");
  const column = (at) => context.getImageData(at, 0, 1, canvas.height).data;
  const uniform = (data) => data[3] > 200 && data.every((value, at) => Math.abs(value - data[at % 4]) < 12);
  const extreme = ([...first]) => first.slice(0, 3).every((value) => value > 250 || value < 60);
  return [-2, -1, 0, 1, 2].some((by) => uniform(column(x + by)) && extreme(column(x + by).slice(0, 3)));
}"""
COUNTING = """() => {
  window.asked = [];
  window.painted = 0;
  const { fetch } = window;
  window.fetch = (url, ...rest) => (window.asked.push(String(url)), fetch(url, ...rest));
  const { putImageData } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.putImageData = function (...given) {
    window.painted++;
    return putImageData.apply(this, given);
  };
}"""
GREYED = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) if (Math.abs(data[at] - 127) < 4 && Math.abs(data[at + 1] - 127) < 4) count++;
  return count;
}"""


@pytest.fixture
def tab(browser, board):
    with opened(browser, board.url, **FAULT) as found:
        expect(found.page.get_by_role("heading", name="CRITICAL")).to_be_visible()
        expect(found.page.locator(".step-number")).to_contain_text("step")
        yield found


def heat(tab):
    return tab.page.get_by_role("application")


def spot(tab, *, row: int, step: int, last: int = 99):
    """The middle of a cell, as a place in the heat map."""
    box = heat(tab).bounding_box()
    height = tab.page.locator(".row-label").first.bounding_box()["height"]
    return {"x": (step + 0.5) / (last + 1) * box["width"], "y": (row + 0.5) * height}


def test_a_finding_moves_everything_to_its_module_and_step(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    tab.page.locator(".row-label.group .twisty").nth(1).click()  # folds the block that the finding names
    expect(tab.page.locator(".row-label[aria-expanded=false]")).to_have_count(1)
    tab.page.locator(".finding", has_text="nonfinite-origin").click()
    step = pages.BREAKS
    assert (tab.address["module"], tab.address["step"]) == ("blocks.0.expand", str(step))
    expect(tab.page.locator(".step-number")).to_have_text(f"step {step}")  # the depth profile
    expect(tab.page.locator(".row-label[aria-selected=true]")).to_have_attribute("title", "blocks.0.expand · Linear")
    expect(tab.page.locator(".row-label[aria-expanded=false]")).to_have_count(0)
    expect(tab.page.locator(".card-head .path")).to_have_text("blocks.0.expand")  # the histogram
    expect(tab.page.locator(".curve-value").first).to_have_text("not finite")  # the loss at that step
    expect(tab.page.locator("[aria-live=polite].unseen")).to_have_text(
        f"Moved to nonfinite-origin, step {step}, blocks.0.expand."
    )
    for canvas, left in (
        (".over", 0),
        (".curve-plot canvas", 0),
        ("[aria-label='Magnitudes over time'] canvas", HISTOGRAM_LEFT),
    ):
        assert tab.page.locator(canvas).first.evaluate(MARKED, [left, (step + 0.5) / 100]), canvas
        assert not tab.page.locator(canvas).first.evaluate(MARKED, [left, 0.405]), canvas  # where it was before


def test_a_finding_outside_of_what_is_zoomed_to_brings_the_whole_run_back(tab):
    heat(tab).click(position=spot(tab, row=2, step=10))
    heat(tab).press("+")
    assert tab.address["last"] == "35"
    tab.page.locator(".finding", has_text="nonfinite-loss").click()
    assert "last" not in tab.address
    expect(tab.page.locator(".step-number")).to_have_text(f"step {pages.BREAKS}")


def test_a_finding_is_scrolled_to_again_after_one_looked_elsewhere(browser, tmp_path):
    pages.deep(tmp_path / "deep")
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url) as found:
            row = found.page.locator(".row-label[aria-selected=true]")
            for _ in range(2):
                found.page.get_by_role("button", name="Show it below").click()
                expect(row).to_be_visible()
                found.page.locator(".heat-scroll").evaluate("(at) => at.scrollTo(0, at.scrollHeight)")
                expect(row).to_have_count(0)


def test_the_other_views_move_the_heat_map_too(tab):
    profile = tab.page.locator("[aria-label='Depth profile'] canvas")
    profile.click(position={"x": 45, "y": 100})
    assert tab.address["module"] == "blocks.0.expand"
    histogram = tab.page.locator("[aria-label='Magnitudes over time'] canvas")
    width = histogram.bounding_box()["width"] - HISTOGRAM_LEFT
    histogram.click(position={"x": HISTOGRAM_LEFT + 0.055 * width, "y": 60})
    assert tab.address["step"] == "5"
    expect(tab.page.locator(".step-number")).to_have_text("step 5")
    curve = tab.page.locator(".curve-plot").first
    curve.click(position={"x": 0.305 * curve.bounding_box()["width"], "y": 20})
    assert tab.address["step"] == "30"
    tab.page.locator(".lane-bar", has_text="nonfinite-loss").click()
    assert tab.address["step"] == str(pages.BREAKS)


def test_a_module_without_histograms_says_so(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    expect(tab.page.locator(".card-head .path")).to_have_text("blocks.1.act")
    tab.page.locator(".row-label.group").first.click()
    expect(tab.page.get_by_role("region", name="Magnitudes over time")).to_contain_text("No histogram of this module")
    expect(tab.page.locator("[aria-label='Magnitudes over time'] canvas")).to_be_hidden()


def test_dragging_over_a_curve_zooms_too_and_shows_what_will_be(tab):
    curve = tab.page.locator(".curve-plot").first
    box, canvas = curve.bounding_box(), curve.locator("canvas")
    before = canvas.evaluate(GREYED)
    tab.page.mouse.move(box["x"] + 0.305 * box["width"], box["y"] + 20)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.505 * box["width"], box["y"] + 20, steps=3)
    tab.page.wait_for_function(
        f"(before) => ({GREYED})(document.querySelector('.curve-plot canvas')) > before + 1000", arg=before
    )
    tab.page.mouse.up()
    assert (tab.address["first"], tab.address["last"]) == ("30", "50")
    tab.page.wait_for_function(f"(before) => ({GREYED})(document.querySelector('.curve-plot canvas')) <= before", arg=before)


def test_the_cause_is_shown_below(tab):
    tab.page.get_by_role("button", name="Show it below").click()
    title = re.compile(f"^{re.escape(tab.address['module'])} ·")
    expect(tab.page.locator(".row-label[aria-selected=true]")).to_have_attribute("title", title)
    assert "step" in tab.address


def test_zooming_to_the_cause_shows_the_steps_around_it(tab):
    tab.page.get_by_role("button", name="Zoom to it").click()  # steps 1 to 11
    assert (tab.address["step"], tab.address["first"], tab.address["last"]) == ("1", "0", "21")
    expect(tab.page.locator(".zoomed .facts")).to_have_text("steps 0 to 21")


def test_another_statistic(tab):
    tab.page.get_by_role("radio", name="Gradient scale").click()
    expect(tab.page.locator(".timeline .note").first).to_contain_text("dL/d(output)")
    assert tab.address["stat"] == "activation_gradient.rms"
    tab.page.get_by_role("radio", name="Gradient scale").press("ArrowLeft")
    expect(tab.page.get_by_role("radio", name="Activation scale")).to_be_focused()
    assert tab.address["stat"] == "activation.rms"
    tab.page.get_by_label("Other statistics").select_option("weight.norm")
    expect(heat(tab)).to_have_attribute("aria-label", re.compile("^Heat map of weight: norm: .* steps 0 to 99$"))


def test_groups_fold_by_pointer_and_by_keyboard(tab):
    rows = tab.page.locator(".row-label")
    before = rows.count()
    tab.page.locator(".row-label.group .twisty").nth(1).click()
    expect(rows).to_have_count(before - 3)
    assert tab.address["fold"] == "blocks.0"
    tree = tab.page.get_by_role("tree")
    tree.press("Home")
    expect(rows.first).to_have_attribute("aria-selected", "true")
    tree.press("ArrowLeft")
    expect(rows).to_have_count(1)
    tree.press("ArrowRight")
    expect(rows).to_have_count(before - 3)
    tree.press("ArrowDown")
    tree.press("Enter")
    expect(rows).to_have_count(before)


def test_the_pointer_is_told_exact_numbers(tab):
    heat(tab).hover(position=spot(tab, row=3, step=20))
    expect(tab.page.locator(".tooltip")).to_contain_text("blocks.0.act")
    expect(tab.page.locator(".tooltip")).to_contain_text(f"Activation scale: {SCALE}")
    expect(tab.page.locator(".tooltip")).to_contain_text("Step 20")
    heat(tab).hover(position=spot(tab, row=3, step=pages.BREAKS + 5))
    expect(tab.page.locator(".tooltip")).to_contain_text("not finite")
    tab.page.mouse.move(5, 5)
    expect(tab.page.locator(".tooltip")).to_be_hidden()


def test_a_click_chooses_module_and_step(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    assert (tab.address["module"], tab.address["step"]) == ("blocks.1.act", "40")
    expect(tab.page.locator(".row-label[aria-selected=true]")).to_have_attribute("title", "blocks.1.act · ReLU")
    expect(tab.page.locator(".step-number")).to_have_text("step 40")
    expect(tab.page.locator(".card-head .path")).to_have_text("blocks.1.act")


def test_dragging_zooms_and_the_whole_run_comes_back(tab):
    box, start, end = heat(tab).bounding_box(), spot(tab, row=3, step=20), spot(tab, row=3, step=39)
    tab.page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + end["x"], box["y"] + end["y"], steps=4)
    tab.page.mouse.up()
    assert (tab.address["first"], tab.address["last"]) == ("20", "39")
    expect(heat(tab)).to_have_attribute(
        "aria-label", "Heat map of activation scale: 33 rows, steps 20 to 39; 192 cells of the run not finite"
    )
    tab.page.get_by_role("button", name="Whole run").click()
    assert "first" not in tab.address


def test_the_keyboard_reaches_every_cell(tab):
    heat(tab).click(position=spot(tab, row=2, step=10))
    heat(tab).press("ArrowRight")
    assert tab.address["step"] == "11"
    heat(tab).press("ArrowDown")
    assert tab.address["module"] == "blocks.0.act"
    expect(tab.page.locator("[aria-live=polite].unseen")).to_contain_text(f"blocks.0.act. Activation scale: {SCALE}. Step 11")
    heat(tab).press("End")
    assert tab.address["step"] == "95"
    heat(tab).press("+")
    assert (tab.address["first"], tab.address["last"]) == ("70", "99")
    heat(tab).press("Escape")
    assert "first" not in tab.address


def test_keys_faster_than_the_picture_are_all_heard(tab):
    heat(tab).click(position=spot(tab, row=0, step=0))
    pressed = """(at, keys) => {
      for (const key of keys) at.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    }"""
    heat(tab).evaluate(pressed, ["ArrowRight"] * 4 + ["ArrowDown"] * 3)
    assert (tab.address["step"], tab.address["module"]) == ("4", "blocks.0.act")
    tab.page.get_by_role("tree").evaluate(pressed, ["Home", "ArrowDown", "Enter"])
    assert (tab.address["module"], tab.address["fold"]) == ("blocks.0", "blocks.0")


def test_the_focus_goes_from_above_to_below(tab):
    order = []
    tab.page.locator("body").press("Tab")
    for _ in range(40):
        order.append(
            tab.evaluate(
                "() => document.activeElement.closest('header.bar, .verdict, .also, .tools, .heat-scroll, .moment')?.className"
            )
        )
        tab.page.keyboard.press("Tab")
    reached = [name for name in dict.fromkeys(order) if name]
    assert [name.split()[-1] for name in reached if "zoomed" not in name][:6] == [
        "bar",
        "critical",
        "also",
        "tools",
        "heat-scroll",
        "moment",
    ]


def test_the_profile_goes_from_step_to_step(tab):
    heat(tab).click(position=spot(tab, row=3, step=10))
    expect(tab.page.locator(".step-number")).to_have_text("step 10")
    tab.page.get_by_role("button", name="Next sampled step").click()
    expect(tab.page.locator(".step-number")).to_have_text("step 11")
    tab.page.get_by_role("button", name="Previous sampled step").click()
    expect(tab.page.locator(".step-number")).to_have_text("step 10")


def test_the_profile_gives_its_slopes(tab):
    slopes = tab.page.locator(".slopes li")
    # Layers are every third module, or two modules apart, and each module takes a quarter of a decade.
    expect(slopes.nth(0)).to_contain_text("Signal: −0.3")
    expect(slopes.nth(1)).to_contain_text("Gradient: +0.3")


def test_numbers_are_there_as_a_table(tab):
    heat(tab).click(position=spot(tab, row=3, step=10))
    expect(tab.page.locator(".step-number")).to_have_text("step 10")
    tab.page.get_by_text("Numbers around the chosen step").click()
    table = tab.page.get_by_role("table")
    expect(table.get_by_role("columnheader").nth(4)).to_have_text("step 10")
    expect(table.get_by_role("row", name="blocks.0.act").get_by_role("cell").first).to_have_text(SCALE)


def test_the_address_brings_everything_back(browser, board, tab):
    tab.page.get_by_label("beside").select_option("fine/gradscope")
    expect(tab.page.locator(".headline")).to_have_count(2)
    tab.page.get_by_role("radio", name="Gradient scale").first.click()
    tab.page.locator(".row-label", has_text="contract").nth(1).click()
    tab.page.locator(".row-label.group .twisty").nth(1).click()
    expect(tab.page.locator(".row-label[aria-expanded=false]")).to_have_count(1)
    heat(tab).first.press("Home")
    for _ in range(5):
        heat(tab).first.press("ArrowRight")
    heat(tab).first.press("+")
    address = {
        "run": "fault/gradscope", "versus": "fine/gradscope", "stat": "activation_gradient.rms", "module": "blocks.1.contract",
        "step": "5", "first": "0", "last": "30", "fold": "blocks.0",
    }  # fmt: skip
    assert tab.address == address
    with opened(browser, board.url, **address) as other:  # somebody else, who was given the address
        expect(other.page.locator(".headline")).to_have_count(2)
        expect(other.page.get_by_role("radio", name="Gradient scale").first).to_be_checked()
        expect(other.page.locator(".step-number").first).to_have_text("step 5")
        expect(other.page.locator(".row-label[aria-selected=true]")).to_have_attribute("title", "blocks.1.contract · Linear")
        expect(other.page.locator(".row-label[aria-expanded=false]")).to_have_count(1)
        expect(other.page.locator(".zoomed .facts").first).to_have_text("steps 0 to 30")
        assert other.address == address


def test_whatever_is_chosen_the_address_names_the_run(browser, board):
    with opened(browser, board.url) as found:
        expect(found.page.locator(".headline")).to_be_visible()
        run = found.page.get_by_label("Run", exact=True).input_value()
        assert found.address == {}
        found.page.get_by_role("radio", name="Gradient scale").click()
        assert found.address == {"run": run, "stat": "activation_gradient.rms"}


def test_another_run_begins_afresh(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    tab.page.get_by_label("Run", exact=True).select_option("fine/gradscope")
    expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible()
    assert tab.address == {"run": "fine/gradscope"}


def test_looking_around_asks_the_server_nothing_and_paints_no_cell_anew(browser, tmp_path):
    """What keeps a model of 500 modules as quick under the pointer as a small one; scripts/bench_tab takes the times."""
    pages.large(tmp_path, sampled=100)
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url, module="model.stage0", step=0) as found:
            expect(found.page.locator(".headline")).to_be_visible()
            expect(found.page.get_by_role("region", name="Magnitudes over time")).to_be_visible()
            found.page.wait_for_load_state("networkidle")
            found.evaluate(COUNTING)
            heat(found).hover(position={"x": 200, "y": 30})
            heat(found).hover(position={"x": 400, "y": 60})
            expect(found.page.locator(".tooltip")).to_contain_text("Stands out most of")
            found.page.locator(".curve-plot").first.hover()
            assert found.evaluate("() => [window.asked.filter((url) => !url.includes('runs')), window.painted]") == [[], 0]
            heat(found).press("ArrowRight")
            expect(found.page.locator(".step-number")).to_have_text("step 200")
            asked = found.evaluate("() => [window.asked.map((url) => url.split('?')[0]).filter((url) => url !== './runs')]")
            assert asked == [["./profile"]]
            assert found.evaluate("() => window.painted") <= 1  # of the histogram, on which the step is marked
