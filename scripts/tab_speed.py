"""A large run on the page: 500 modules over 20,000 steps, in a real browser."""

from __future__ import annotations

import statistics
import time

import pytest

from tests.tensorboard import pages
from tests.tensorboard.board import LOADERS
from tests.tensorboard.board import running
from tests.tensorboard.browser import expect
from tests.tensorboard.browser import opened

USABLE = 1500  # milliseconds from opening the page until the heat map stands
PROMPT = 100  # milliseconds from a movement or a choice until what it changes is drawn
SOON = 500  # milliseconds until numbers are drawn that the page has to ask for
TRIES = 5  # of which the best counts
SPIN = 0.2  # seconds of work that tell how much of the machine is left to us

# The heat map and the curves stand.
DRAWN = "document.querySelector('.heat-plot')?.ariaLabel?.includes('steps 0 to')"
DRAWN += " && document.querySelector('.curve-range').textContent"

# From the event to the end of the frame in which the page has drawn what came of it.
TIMED = """(act) => new Promise((done) => {
  const began = performance.now();
  act();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
})"""


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("large")
    pages.large(logdir)
    return logdir


@pytest.fixture(scope="module")
def large(logdir, browser):
    with running(logdir) as board:
        board.wait_for_runs()
        yield board


def best(title: str, measure) -> float:
    """The best of some times, as it would be with the machine to ourselves."""
    raw = [measure() for _ in range(TRIES)]
    share = statistics.median(contention() for _ in range(3))
    print(f"\n{title}: {min(raw):.0f} ms at best, {statistics.median(raw):.0f} ms in the median of {TRIES}", end="")
    print(f" ({min(raw) / share:.0f} and {statistics.median(raw) / share:.0f} with the machine to itself)")
    return min(raw) / share


def contention() -> float:
    """How many times as long work takes as it would if nobody else worked here."""
    wall, own = time.perf_counter(), time.process_time()
    while time.process_time() < own + SPIN:
        pass
    return max(1.0, (time.perf_counter() - wall) / SPIN)


def when(tab, condition: str) -> float:
    """Milliseconds from opening the page until then."""
    script = f"() => ({condition}) && performance.now()"
    return float(tab.page.wait_for_function(script, polling=20, timeout=60_000).json_value())


@pytest.mark.parametrize("load_fast", LOADERS)
def test_a_server_that_was_never_asked_gives_a_usable_page_in_a_moment(browser, logdir, load_fast):
    verdicts = []

    def opening() -> float:
        with running(logdir, load_fast=load_fast) as board:
            board.wait_for_runs()
            with opened(browser, board.url) as tab:
                usable = when(tab, DRAWN)
                verdicts.append(when(tab, "document.querySelector('.headline')"))
        return usable

    assert best(f"usable at first, --load_fast={load_fast}", opening) < USABLE
    print(f"the verdict then: {min(verdicts):.0f} ms at best, as the machine was")


def test_it_is_usable_in_a_moment_later_too(browser, large):
    def opening() -> float:
        with opened(browser, large.url) as tab:
            when(tab, "document.querySelector('.headline')")
            return when(tab, DRAWN)

    with opened(browser, large.url) as tab:
        when(tab, "document.querySelector('.headline')")
    assert best("usable again, with the verdict", opening) < USABLE


def test_it_follows_the_pointer_and_a_choice(browser, large):
    with opened(browser, large.url) as tab:
        expect(tab.page.get_by_role("application")).to_be_visible()
        expect(tab.page.locator(".step-number")).to_contain_text("step")
        event = """(kind, x) => {
          const box = document.querySelector(".heat-plot").getBoundingClientRect();
          const place = { clientX: box.left + x, clientY: box.top + 60, bubbles: true, button: 0, pointerId: 1 };
          document.querySelector(".heat-plot").dispatchEvent(new PointerEvent(kind, place));
        }"""
        hover = f"() => ({TIMED})(() => ({event})('pointermove', 100 + 300 * Math.random()))"
        assert best("hover", lambda: tab.evaluate(hover)) < PROMPT
        expect(tab.page.locator(".tooltip")).to_be_visible()
        choose = f"() => ({TIMED})(() => document.querySelectorAll('.row-label')[4 + Math.floor(9 * Math.random())].click())"
        assert best("choice of a module", lambda: tab.evaluate(choose)) < PROMPT
        assert "module" in tab.address
        key = "new KeyboardEvent('keydown', { key: 'ArrowLeft' })"
        step = f"() => ({TIMED})(() => document.querySelector('.heat-plot').dispatchEvent({key}))"
        assert best("choice of a step", lambda: tab.evaluate(step)) < PROMPT
        unfold = f"() => ({TIMED})(() => document.querySelectorAll('.row-label.group .twisty')[2].click())"
        assert best("folding", lambda: tab.evaluate(unfold)) < PROMPT


def test_another_statistic_is_marked_at_once_and_drawn_soon(browser, large):
    with opened(browser, large.url) as tab:
        expect(tab.page.locator(".headline")).to_be_visible(timeout=60_000)
        names = ["Gradient scale", "Update over weight", "Not finite", "Activation scale"]
        for name in names:  # so that the server has read them
            tab.page.get_by_role("radio", name=name).click()
            when(tab, f"document.querySelector('.heat-plot').ariaLabel.startsWith('Heat map of {name.lower()}')")
        chosen = iter(names * 2)

        def drawn() -> float:
            name = next(chosen)
            script = f"""() => new Promise((done) => {{
              const began = performance.now();
              [...document.querySelectorAll("[role=radio]")].find((radio) => radio.textContent === "{name}").click();
              const look = () => document.querySelector(".heat-plot").ariaLabel.startsWith("Heat map of {name.lower()}")
                ? requestAnimationFrame(() => done(performance.now() - began)) : requestAnimationFrame(look);
              look();
            }})"""
            return float(tab.evaluate(script))

        assert best("another statistic drawn", drawn) < SOON
        radios = f"() => ({TIMED})(() => document.querySelectorAll('[role=radio]')[Math.floor(4 * Math.random())].click())"
        assert best("another statistic marked", lambda: tab.evaluate(radios)) < PROMPT


def test_all_modules_can_be_unfolded(browser, large):
    with opened(browser, large.url) as tab:
        tree = tab.page.get_by_role("tree")
        expect(tree).to_be_visible()
        tab.page.locator(".row-label.group .twisty").nth(2).click()
        expect(tab.page.locator(".row-name", has_text="layer0").first).to_be_visible()
        tree.press("End")
        expect(tab.page.locator(".row-label[aria-selected=true]")).to_be_visible()
        assert tab.address["module"] == "model.stage4.block9"
