"""The page in a real browser: Debian's Chromium, driven by Playwright. Nothing is installed here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: install gradscope-torch[test]")
expect = playwright.expect
expect.set_options(timeout=20_000)  # a busy machine draws late

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1440, "height": 1000}


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium. Skips the test, and says how to get one, where there is none."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("found no Chromium, which these tests drive: install it with `apt-get install chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Tab:
    """An open page, and what it complained of."""

    page: Any
    complaints: list[str]

    def evaluate(self, script: str, *arguments: Any) -> Any:
        return self.page.evaluate(script, *arguments)

    @property
    def address(self) -> dict[str, str]:
        """What the address says of the state."""
        script = (
            "() => Object.fromEntries(new URLSearchParams(location.hash.slice(1).split('&')"
            ".filter((part) => part.startsWith('p.gradscope.')).map((part) => part.slice(12)).join('&')))"
        )
        return dict(self.page.evaluate(script))


@contextmanager
def opened(browser: Any, url: str, *, theme: str = "light", **state: Any) -> Iterator[Tab]:
    """The page by itself, in a state. Fails where the console heard an error."""
    hash_ = "&".join(["gradscope", *(f"p.gradscope.{key}={quote(str(value), safe='')}" for key, value in state.items())])
    with visited(browser, f"{url}data/plugin_entry.html?name=gradscope#{hash_}", theme=theme) as tab:
        yield tab


@contextmanager
def visited(browser: Any, address: str, *, theme: str = "light") -> Iterator[Tab]:
    """Any address of the server. Fails where the console heard an error."""
    context = browser.new_context(viewport=SIZE, color_scheme=theme, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    tab = Tab(page, [])
    page.on("pageerror", lambda error: tab.complaints.append(str(error)))
    page.on("console", lambda message: tab.complaints.extend(_complaint(message)))
    page.goto(address)
    yield tab
    context.close()
    assert not tab.complaints, tab.complaints


def _complaint(message: Any) -> list[str]:
    url = message.location.get("url", "")
    theirs = url.endswith("/favicon.ico") or "/font-roboto/" in url  # which TensorBoard itself asks for and does not have
    return [f"{message.text} {message.location}"] if message.type == "error" and not theirs else []


def frame_of(tab: Tab) -> Any:
    """The page within TensorBoard's own."""
    element = tab.page.wait_for_selector("iframe[src*='gradscope']")
    assert element is not None
    frame = element.content_frame()
    assert frame is not None
    return frame


# Whether a canvas shows anything, and how many pixels of a colour it has.
DRAWN = """(canvas) => new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)
  .some((pixel) => pixel)"""
COLOURED = """(canvas, [red, green, blue]) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4)
    if (data[at] === red && data[at + 1] === green && data[at + 2] === blue) count++;
  return count;
}"""
STRIPE = [228, 0, 79]  # of what is not finite
