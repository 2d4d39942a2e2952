from __future__ import annotations

import pytest
from click.testing import CliRunner

from gradscope.cli import main
from gradscope.report.pages import page
from gradscope.rule import all_rules
from tests.cli import terminal


def rules(*arguments):
    return CliRunner().invoke(main, ["rules", *arguments])


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.name)
def test_each_rule_is_listed_under_its_family_and_has_its_page(rule):
    listed = rules().stdout.splitlines()
    line = next(i for i, line in enumerate(listed) if line.split()[:2] == [rule.name, rule.kind])
    family = next(listed[i] for i in range(line, 0, -1) if listed[i] and not listed[i].startswith(" "))
    assert family.lower() == rule.family
    assert rules(rule.name).stdout == page(rule)


def test_an_unknown_rule_is_told_with_near_names():
    result = rules("missing-zerograd")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "missing-zero-grad" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_terminal_shows_a_page_with_its_words_whole():
    shown = terminal.shown("rules", "missing-zero-grad", columns=60)
    assert "\x1b[" in shown
    words = terminal.plain(shown).split()
    written = page(next(rule for rule in all_rules() if rule.name == "missing-zero-grad"))
    assert [
        word for word in written.partition("## What it does")[2].replace("`", "").split() if word not in {*words, "##"}
    ] == []


def test_a_terminal_shows_the_catalogue_wrapped():
    lines = terminal.plain(terminal.shown("rules", columns=80)).splitlines()
    assert max(map(len, lines)) <= 80
    assert max(map(len, rules().stdout.splitlines())) > 80
