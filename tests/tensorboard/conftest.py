"""One server and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tensorboard import pages
from tests.tensorboard.board import Board
from tests.tensorboard.board import running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MARKUP = '<img src=x onerror="window.executed=1"><script>window.executed=1</script>'


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    from tests.tensorboard.browser import chromium  # not above: it skips whoever imports it where Playwright is missing

    with chromium() as found:
        yield found


@pytest.fixture(scope="package")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log directory with a fault, a healthy run and a hostile one."""
    logdir = tmp_path_factory.mktemp("recorded")
    pages.stack(logdir / "fault")
    pages.healthy(logdir / "fine")
    pages.hostile(logdir / "hostile", MARKUP)
    return logdir


@pytest.fixture(scope="package")
def board(browser: Browser, recorded: Path) -> Iterator[Board]:
    with running(recorded) as started:
        started.wait_for_runs(3)
        yield started
