"""What the page shows of recorded runs, in a real browser."""

from __future__ import annotations

import pytest

from tests.tensorboard import pages
from tests.tensorboard.browser import COLOURED
from tests.tensorboard.browser import DRAWN
from tests.tensorboard.browser import STRIPE
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import opened

FAULT = {"run": "fault/gradscope"}
CANVASES = (".curve-plot canvas", ".cells", ".axis canvas", "[aria-label='Depth profile'] canvas")


def test_the_verdict_names_the_cause_and_what_to_do(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        verdict = tab.page.get_by_role("region", name="Verdict")
        expect(verdict).to_contain_text("CRITICAL")
        expect(verdict).to_contain_text("missing-zero-grad")
        expect(verdict.locator("pre")).to_contain_text("zero_grad()")


def test_the_remedy_is_copied(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        tab.page.get_by_role("button", name="Copy").click()
        expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
        code = tab.page.locator(".remedy pre").text_content()
        assert tab.evaluate("() => navigator.clipboard.readText()") == code


def test_a_remedy_without_code_is_copied_as_it_stands(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        expect(tab.page.locator(".headline")).to_be_visible()
        report = board.json("report", run="fault/gradscope")
        report["findings"][0]["remedy"] = {"text": "Print <b>one</b> batch.", "code": None}
        tab.page.route("**/report?*", lambda route: route.fulfill(json=report))
        tab.page.reload()
        expect(tab.page.locator(".remedy p")).to_contain_text("Print <b>one</b> batch.")
        tab.page.get_by_role("button", name="Copy").click()
        expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
        assert tab.evaluate("() => navigator.clipboard.readText()") == "Print <b>one</b> batch."


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_enough_contrast_to_be_read(browser, board, theme):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    with opened(browser, board.url, theme=theme, **FAULT) as tab:
        expect(tab.page.locator(".headline")).to_be_visible()
        script = (
            "(names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim())"
        )
        inks = ("ink", "quiet", "accent", "critical", "warning", "healthy", "info", "forward", "backward")
        grounds = [light_of(colour) for colour in tab.evaluate(script, ["card", "ground", "sunken"])]
        for name, ink in zip(inks, tab.evaluate(script, list(inks)), strict=True):
            for ground in grounds:
                low, high = sorted((light_of(ink), ground))
                assert (high + 0.05) / (low + 0.05) >= 4.5, name


def light_of(colour: str) -> float:
    """The relative luminance of `#rrggbb`, by WCAG."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_view_is_drawn(browser, board, theme):
    with opened(browser, board.url, theme=theme, **FAULT) as tab:
        expect(tab.page.locator("html")).to_have_attribute("data-theme", theme)
        expect(tab.page.get_by_role("region", name="Magnitudes over time")).to_be_visible()
        for selector in (*CANVASES, "[aria-label='Magnitudes over time'] canvas"):
            assert tab.page.locator(selector).first.evaluate(DRAWN), selector


def test_light_and_dark_differ_in_ground_and_ink(browser, board):
    seen = set()
    for theme in ("light", "dark"):
        with opened(browser, board.url, theme=theme, **FAULT) as tab:
            expect(tab.page.locator("html")).to_have_attribute("data-theme", theme)
            style = "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            seen.add(tuple(tab.evaluate(style)))
    assert len(seen) == 2


def test_what_is_not_finite_is_striped_and_nothing_else_is(browser, board):
    with opened(browser, board.url, **FAULT, first=0, last=pages.BREAKS - 1) as tab:
        expect(tab.page.locator(".row-label[aria-selected=true]")).to_be_visible()
        cells = tab.page.locator(".cells")
        tab.page.wait_for_function("() => document.querySelector('.zoomed .facts').textContent.includes('to 59')")
        assert cells.evaluate(COLOURED, STRIPE) == 0
        tab.page.get_by_role("button", name="Whole run").click()
        tab.page.wait_for_function(f"() => ({COLOURED})(document.querySelector('.cells'), {STRIPE}) > 1000")


def test_nothing_is_loaded_from_elsewhere(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        asked = []
        tab.page.on("request", lambda request: asked.append(request.url))
        tab.page.reload()
        expect(tab.page.get_by_role("region", name="Magnitudes over time")).to_be_visible()
        assert len(asked) > 40
        assert [url for url in asked if not url.startswith(board.url)] == []


def test_the_verdict_which_may_take_long_is_asked_for_once_the_map_is_there(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        told: list[str] = []
        tab.page.on("request", lambda request: told.append(f"asked {route_of(request)}"))
        tab.page.on("requestfinished", lambda request: told.append(f"came {route_of(request)}"))
        tab.page.reload()
        expect(tab.page.get_by_role("region", name="Magnitudes over time")).to_be_visible()
        assert told.index("came matrix") < told.index("asked report") < told.index("asked histogram")


def route_of(request) -> str:
    return str(request.url.partition("?")[0].rpartition("/")[2])


def test_the_tree_groups_modules_in_execution_order(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        names = tab.page.locator(".row-name")
        expect(names.first).to_have_text("blocks")
        assert names.all_text_contents()[:9] == ["blocks", "0", "expand", "act", "contract", "1", "expand", "act", "contract"]
        expect(tab.page.get_by_role("treeitem", name="expand").first).to_have_attribute("aria-level", "3")


def test_two_runs_stand_side_by_side_on_the_same_scales(browser, board):
    with opened(browser, board.url, **FAULT, versus="fine/gradscope") as tab:
        expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible()
        expect(tab.page.get_by_role("heading", name="CRITICAL")).to_be_visible()
        expect(tab.page.locator(".legend-scale")).to_have_count(2)
        one, other = tab.page.locator(".legend").all_text_contents()
        assert one == other
        ranges = tab.page.locator(".curve-range").all_text_contents()
        assert ranges[:3] == ranges[3:]
        tops = [box["y"] for box in (card.bounding_box() for card in tab.page.locator(".timeline").all()) if box]
        assert tops[0] == tops[1]


def test_names_from_outside_are_text(browser, board):
    with opened(browser, board.url, run="hostile/gradscope") as tab:
        expect(tab.page.get_by_role("heading", name="CRITICAL")).to_be_visible()
        expect(tab.page.locator(".row-name").first).to_contain_text("<img src=x")
        tab.page.locator(".numbers summary").click()
        expect(tab.page.locator(".numbers tbody th")).to_contain_text("<script>")
        assert tab.page.locator(".page img, .page script").count() == 0
        assert tab.evaluate("() => window.executed") is None


def test_a_run_that_the_address_names_and_nobody_has(browser, board):
    with opened(browser, board.url, run="<b>gone</b>") as tab:
        expect(tab.page.get_by_role("heading", name="There is no run <b>gone</b> here")).to_be_visible()
        expect(tab.page.get_by_label("Run", exact=True)).to_be_enabled()


def test_everything_that_is_clicked_has_a_name(browser, board):
    with opened(browser, board.url, **FAULT) as tab:
        expect(tab.page.get_by_role("heading", name="CRITICAL")).to_be_visible()
        for control in tab.page.locator("button, select, [role=application], [role=tree], canvas[role=img]").all():
            named = control.evaluate(
                "(at) => at.hidden || at.closest('[hidden]') || at.ariaLabel || at.textContent || at.labels?.length"
            )
            assert named, control.evaluate("(at) => at.outerHTML")


def test_a_part_that_fails_says_so_and_the_others_stand(browser, board):
    with opened(browser, board.url, run="fine/gradscope") as tab:
        expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible()
        sentence = {"error": "The report <b>failed</b>."}
        tab.page.route("**/report?*", lambda route: route.fulfill(status=500, json=sentence))
        tab.page.goto("about:blank")
        tab.page.goto(f"{board.url}data/plugin_entry.html?name=gradscope#gradscope&p.gradscope.run=fine%2Fgradscope")
        expect(tab.page.get_by_role("alert")).to_have_text("The report <b>failed</b>.")
        expect(tab.page.get_by_role("application")).to_be_visible()
        tab.page.unroute("**/report?*")
        expect(tab.page.get_by_role("heading", name="HEALTHY")).to_be_visible(timeout=15_000)  # asked for again by itself
        expect(tab.page.get_by_role("alert")).to_be_hidden()
        tab.complaints.clear()  # the browser's own words about what could not be loaded
