"""The page tells of every stack there is, and of none that did not hold."""

from __future__ import annotations

from tests.stacks import table
from tests.stacks.stacks import all_stacks


def test_the_page_has_a_row_for_every_stack():
    assert sorted(table.titles()) == sorted(stack.title for stack in all_stacks())


def test_no_cell_says_that_something_did_not_hold():
    rows = [line for line in table.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [line for line in rows if "NO" in line] == []
