"""What the heat map's colours, columns and marks say, pixel by pixel, in a real browser."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.tensorboard import pages
from tests.tensorboard.board import running
from tests.tensorboard.browser import DRAWN
from tests.tensorboard.browser import STRIPE
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import opened

VARIOUS = {"run": "various/gradscope"}
LAST = 99  # step of the run
ROWS = 5
DARK, MIDDLE, BRIGHT = (68, 1, 84), (34, 144, 140), (253, 231, 37)  # viridis at 0, 1/2 and 1
WHITE = (255, 255, 255)
ZERO = (24, 6, 32)
STATISTICS = {
    "Activation scale": "log scale",
    "Gradient scale": "log scale",
    "Update over weight": "log scale",
    "Dead units": "linear scale",
    "Saturated share": "linear scale",
    "Not finite": "linear scale",
}
# The colour of a cell: its row, and how far across the plot.
PIXEL = """(canvas, [row, rows, across]) => {
  const [x, y] = [Math.floor(canvas.width * across), Math.floor(canvas.height * (row + 0.5) / rows)];
  return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
}"""
PALETTE = """async () => {
  const { palette, FIRST, LEVELS, STRIPES } = await import(`${document.baseURI}static/ramp.js`);
  const bytes = new Uint8Array(palette("#ffffff").buffer);
  const level = (_, at) => [...bytes.subarray(4 * (FIRST + at), 4 * (FIRST + at) + 3)];
  return { levels: Array.from({ length: LEVELS }, level), stripes: [...STRIPES] };
}"""


@pytest.fixture(scope="module")
def board(browser, tmp_path_factory):
    logdir = tmp_path_factory.mktemp("various")
    pages.various(logdir / "various")
    pages.plain(logdir / "plain")
    with running(logdir) as started:
        started.wait_for_runs(2)
        yield started


@pytest.fixture(scope="module")
def shown(browser, board):
    with opened(browser, board.url, **VARIOUS) as tab:
        expect(tab.page.locator(".headline")).to_be_visible()
        yield tab


def cell(tab, row, step):
    return tuple(tab.page.locator(".cells").evaluate(PIXEL, [row, ROWS, (step + 0.5) / (LAST + 1)]))


def wait_for(tab, title):
    label = f"Heat map of {title.lower()}:"
    tab.page.get_by_role("radio", name=title).click()
    tab.page.wait_for_function("(label) => document.querySelector('.heat-plot').ariaLabel.startsWith(label)", arg=label)
    tab.page.wait_for_function("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")


@pytest.mark.parametrize("title", STATISTICS)
def test_each_statistic_is_drawn_and_says_how_its_colours_go(shown, title):
    wait_for(shown, title)
    assert shown.page.locator(".cells").evaluate(DRAWN)
    expect(shown.page.locator(".legend-note")).to_contain_text(STATISTICS[title])
    expect(shown.page.locator(".words > .note")).to_contain_text(f"{title}: ")


def test_equal_factors_are_equal_steps_of_colour(shown):
    wait_for(shown, "Activation scale")
    assert cell(shown, 0, 5) == BRIGHT
    assert cell(shown, 2, 5) == pytest.approx(MIDDLE, abs=2)
    assert cell(shown, 4, 5) == DARK
    ticks = shown.page.locator(".legend-tick")
    assert ticks.all_text_contents() == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]
    places = ticks.evaluate_all("(ticks) => ticks.map((tick) => parseFloat(tick.style.left))")
    assert places == pytest.approx([0, 25, 50, 75, 100], abs=0.01)


def test_a_share_goes_from_nothing_to_all(shown):
    wait_for(shown, "Dead units")
    assert shown.page.locator(".legend-tick").all_text_contents() == ["0", "0.5", "1"]
    dead = cell(shown, 0, 5)  # three units of four
    assert dead == pytest.approx((100, 200, 95), abs=30) and dead not in (DARK, BRIGHT)
    wait_for(shown, "Saturated share")
    missing = cell(shown, 0, 5)
    assert missing == cell(shown, 3, 30) or missing[0] == missing[1] or max(missing) - min(missing) < 12
    assert cell(shown, 3, 5) == pytest.approx((60, 80, 138), abs=12)


def test_zero_has_a_colour_of_its_own_on_a_logarithmic_scale(shown):
    wait_for(shown, "Update over weight")
    pixel = (5 + 0.5) / (LAST + 1)
    colours = [tuple(shown.page.locator(".cells").evaluate(PIXEL, [row, 3, pixel])) for row in range(3)]
    assert colours[1] == ZERO
    assert ZERO not in (colours[0], colours[2], DARK)
    expect(shown.page.locator(".legend-key").first).to_have_text("zero")


def test_what_is_not_finite_is_striped_from_its_first_step_on(shown):
    wait_for(shown, "Activation scale")
    width = shown.page.locator(".cells").evaluate("(canvas) => canvas.width")
    across = [at / width for at in range(width)]
    script = f"(canvas, points) => points.map(([row, rows, across]) => ({PIXEL})(canvas, [row, rows, across]))"
    colours = shown.page.locator(".cells").evaluate(script, [[4, ROWS, place] for place in across])
    striped = [place for place, colour in zip(across, colours, strict=True) if colour in (STRIPE, [255, 255, 255])]
    first, last = (striped[0], striped[-1])
    assert first == pytest.approx(pages.GAP / (LAST + 1), abs=2 / width)
    assert last == pytest.approx((pages.GAP + 10) / (LAST + 1), abs=2 / width)
    assert 0.3 < sum(colour == STRIPE for colour in colours) / len(striped) < 0.7


def test_steps_lie_in_true_proportion(shown):
    """Ten steps, nothing for a while but the last of them, ten steps, nothing to the end."""
    wait_for(shown, "Activation scale")
    missing = cell(shown, 0, 80)
    assert cell(shown, 0, 5) == cell(shown, 0, 30) == BRIGHT != missing
    assert cell(shown, 0, pages.GAP + 12) == missing
    expect(shown.page.locator(".words > .note")).to_contain_text("20 of 100 steps were sampled, the last at step 59.")


def test_the_ramp_rises_evenly_in_lightness_and_has_no_stripe_in_it(shown):
    palette = shown.evaluate(PALETTE)
    lightness = [luminance(level) for level in palette["levels"]]
    assert len(lightness) == 256
    assert all(high > low - 0.3 for low, high in pairwise(lightness))  # but for what rounding to a byte does
    steps = [high - low for low, high in pairwise(lightness[::32])]
    assert max(steps) < 2.5 * min(steps), steps
    stripe = [int(palette["stripes"][0][at : at + 2], 16) for at in (1, 3, 5)]
    assert stripe == STRIPE
    for seen in (lambda colour: colour, protanope, deuteranope):  # the white between is far from all colours of numbers
        assert min(distance(seen(level), seen(WHITE)) for level in palette["levels"]) > 100
        assert luminance(WHITE) - luminance(seen(stripe)) > 40


def test_findings_are_marked_in_the_tree_on_the_map_and_above_it(browser, tmp_path):
    pages.stack(tmp_path / "fault")
    with running(tmp_path) as board:
        board.wait_for_runs()
        with opened(browser, board.url, stat="weight_gradient.norm") as tab:
            expect(tab.page.locator(".lane-bar")).to_have_count(3)
            expect(tab.page.get_by_label("named by a finding: critical").first).to_be_visible()
            outlined = (
                "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v > 250)"
            )
            assert tab.page.locator(".over").evaluate(outlined)
            tab.page.locator(".lane-bar", has_text="nonfinite-loss").click()
            assert tab.address["step"] == str(pages.BREAKS)


def test_a_statistic_that_a_run_lacks_is_not_replaced_by_another(browser, board):
    with opened(browser, board.url, **VARIOUS, versus="plain/gradscope", stat="activation.dead") as tab:
        expect(tab.page.locator(".headline")).to_have_count(2)
        expect(tab.page.locator(".nothing").nth(1)).to_contain_text("This run has no activation.dead")
        expect(tab.page.locator(".legend:visible")).to_have_count(1)
        expect(tab.page.locator(".curve-plot:visible")).to_have_count(6)
        tab.page.get_by_role("radio", name="Activation scale").last.click()
        expect(tab.page.locator(".legend:visible")).to_have_count(2)
        expect(tab.page.locator(".nothing:visible")).to_have_count(0)


def test_two_runs_have_their_rows_magnitudes_and_profiles_alike(browser, board):
    with opened(browser, board.url, **VARIOUS, versus="plain/gradscope") as tab:
        expect(tab.page.locator(".headline")).to_have_count(2)
        expect(tab.page.locator("[aria-label='Magnitudes over time'] canvas:visible")).to_have_count(2)
        for selector in (
            ".curve-plot",
            ".heat-plot",
            ".axis",
            ".legend",
            "[aria-label='Depth profile'] canvas",
            ".moment .note",
        ):
            tops = [box["y"] for box in (found.bounding_box() for found in tab.page.locator(selector).all()) if box]
            half = len(tops) // 2
            assert tops[:half] == tops[half:], selector
        notes = tab.page.locator("[aria-label='Magnitudes over time'] .note").all_text_contents()
        assert notes[0].partition(", at ")[0] == notes[1].partition(", at ")[0]
        for y, edges in ((5, "2 ≤ |x| < 4"), (185, "2e-9 ≤ |x| < 4e-9")):  # of the one's largest and the other's least
            for canvas in tab.page.locator("[aria-label='Magnitudes over time'] canvas").all():
                canvas.hover(position={"x": 60, "y": y})
                expect(tab.page.locator(".tooltip span").first).to_have_text(edges)


def luminance(colour):
    """L* of CIE 1976."""
    linear = [channel / 255 / 12.92 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in colour]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * light ** (1 / 3) - 16 if light > 0.008856 else 903.3 * light


def protanope(colour):
    """F. Viénot, H. Brettel and J. Mollon, 1999: what is left of a colour without the long cones."""
    red, green, blue = colour
    return (0.11238 * red + 0.88762 * green, 0.11238 * red + 0.88762 * green, 0.00401 * red - 0.00401 * green + blue)


def deuteranope(colour):
    """As above, without the middle cones."""
    red, green, blue = colour
    return (0.29275 * red + 0.70725 * green, 0.29275 * red + 0.70725 * green, -0.02234 * red + 0.02234 * green + blue)


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
