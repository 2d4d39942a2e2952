"""What a person can do on the page, in a real browser."""

from __future__ import annotations

import re

import pytest

from tests.tensorboard import pages
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import opened

FAULT = {"run": "fault/gradscope"}


@pytest.fixture
def tab(browser, board):
    with opened(browser, board.url, **FAULT) as found:
        expect(found.page.get_by_role("heading", name="CRITICAL")).to_be_visible()
        expect(found.page.locator(".step-number")).to_contain_text("step")
        yield found


def chosen(tab) -> str:
    return str(tab.page.locator(".row-label[aria-selected=true]").get_attribute("title"))


def heat(tab):
    return tab.page.get_by_role("application")


def spot(tab, *, row: int, step: int, last: int = 99):
    """The middle of a cell, as a place in the heat map."""
    box = heat(tab).bounding_box()
    height = tab.page.locator(".row-label").first.bounding_box()["height"]
    return {"x": (step + 0.5) / (last + 1) * box["width"], "y": (row + 0.5) * height}


def test_a_finding_moves_everything_to_its_module_and_step(tab):
    finding = tab.page.locator(".finding", has_text="nonfinite-loss").or_(tab.page.locator(".finding").last)
    finding.first.click()
    step = int(tab.address["step"])
    expect(tab.page.locator(".step-number")).to_have_text(f"step {step}")
    expect(tab.page.locator("[aria-live=polite].unseen")).to_contain_text(f"step {step}")


def test_the_cause_is_shown_below(tab):
    tab.page.get_by_role("button", name="Show it below").click()
    assert tab.address["module"] in chosen(tab)
    assert "step" in tab.address


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
    expect(tab.page.locator(".tooltip")).to_contain_text(f"Activation scale: {10**-0.25:.7f}")
    expect(tab.page.locator(".tooltip")).to_contain_text("Step 20")
    heat(tab).hover(position=spot(tab, row=3, step=pages.BREAKS + 5))
    expect(tab.page.locator(".tooltip")).to_contain_text("not finite")
    tab.page.mouse.move(5, 5)
    expect(tab.page.locator(".tooltip")).to_be_hidden()


def test_a_click_chooses_module_and_step(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    assert (tab.address["module"], tab.address["step"]) == ("blocks.1.act", "40")
    assert chosen(tab) == "blocks.1.act · ReLU"
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
    expect(tab.page.locator("[aria-live=polite].unseen")).to_contain_text("blocks.0.act. Activation scale: 0.5623413. Step 11")
    heat(tab).press("End")
    assert tab.address["step"] == "95"
    heat(tab).press("+")
    assert (tab.address["first"], tab.address["last"]) == ("70", "99")
    heat(tab).press("Escape")
    assert "first" not in tab.address


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
    expect(table.get_by_role("row", name="blocks.0.act").get_by_role("cell").first).to_have_text("0.5623413")


def test_the_address_brings_everything_back(tab):
    tab.page.get_by_role("radio", name="Gradient scale").click()
    heat(tab).click(position=spot(tab, row=7, step=40))
    tab.page.reload()
    expect(tab.page.get_by_role("radio", name="Gradient scale")).to_be_checked()
    expect(tab.page.locator(".step-number")).to_have_text("step 40")
    expect(tab.page.locator(".row-label[aria-selected=true]")).to_have_attribute("title", "blocks.1.act · ReLU")


def test_another_run_begins_afresh(tab):
    heat(tab).click(position=spot(tab, row=7, step=40))
    tab.page.get_by_label("Run", exact=True).select_option("fine/gradscope")
    expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible()
    assert tab.address == {"run": "fine/gradscope"}
