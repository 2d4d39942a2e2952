from __future__ import annotations

import io
import unicodedata
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from gradscope.records import ModuleInfo
from gradscope.records import Remedy
from gradscope.report import Report
from gradscope.report import text
from gradscope.report.glyphs import ASCII
from gradscope.report.glyphs import UNICODE
from tests.report import examples


def printed(runs, *, width, colour=True):
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None, markup=False
    )
    console.print(text.styled(runs, width=width), soft_wrap=True)
    return console.file.getvalue()


@pytest.mark.parametrize("name", examples.ALL)
def test_plain_text_holds_no_escape_codes_and_no_control_characters(name):
    plain = str(Report(examples.ALL[name]))
    assert [c for c in plain if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")] == []


def test_plain_text_does_not_depend_on_the_terminal(monkeypatch):
    before = text.render((examples.DEEP,))
    for name, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color", "CLICOLOR_FORCE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert text.render((examples.DEEP,)) == before


@pytest.mark.parametrize("width", [60, 79, 80, 100])
@pytest.mark.parametrize("name", examples.ALL)
def test_lines_keep_to_the_width(name, width):
    lines = text.styled(examples.ALL[name], width=width).plain.splitlines()
    code = [line for run in examples.ALL[name] for f in run.findings for line in (f.remedy.code or "").splitlines()]
    assert [line for line in lines if cell_len(line) > width and line not in code] == []


@pytest.mark.parametrize("name", ["broken", "deep", "symptom"])
def test_a_report_fits_a_screen(name):
    assert len(text.render(examples.ALL[name]).splitlines()) <= 45


def test_a_healthy_report_is_short():
    assert len(text.render((examples.HEALTHY,)).splitlines()) <= 7


def test_code_stands_in_whole_lines_that_can_be_pasted():
    code = "x = 1\nif x:\n    y = '" + "long " * 40 + "'"
    run = replace(examples.BROKEN, findings=(replace(examples.RATE, remedy=Remedy("Do.", code)),))
    assert f"\n\n{code}\n\n" in text.render((run,)) + "\n\n"
    assert code in printed((run,), width=70, colour=False)


def test_a_terminal_gets_colours_around_the_same_words():
    shown = text.styled((examples.BROKEN,), width=100)
    assert "\x1b[" in printed((examples.BROKEN,), width=100)
    assert [line.rstrip() for line in shown.plain.splitlines()] == text.render((examples.BROKEN,)).splitlines()


def test_names_are_no_markup():
    assert "[bold]not markup[/bold]" in printed(examples.ALL["hostile"], width=100, colour=False)


def test_a_pasted_escape_cannot_reach_the_terminal():
    shown = printed(examples.ALL["hostile"], width=100)
    assert "\x1b[31m`" not in shown
    assert "\x1b]0;" not in shown
    assert "\u202e" not in shown


def test_ascii_alone_draws_bars_and_marks():
    drawn = text.render((examples.BROKEN, examples.DEEP), glyphs=ASCII)
    assert drawn.isascii()
    assert "* layers.3" in drawn
    assert "#####" in drawn
    assert "loss 2.31 -> 87.4" in drawn


def test_the_primary_finding_is_told_first_and_once():
    plain = text.render((examples.BROKEN,))
    assert plain.count(examples.RATE.message[:40]) == 1
    assert (
        plain.index("lr-too-high")
        < plain.index("Explains: exploding-gradients")
        < plain.index("To do:")
        < plain.index("Also found")
    )


def test_a_finding_that_nothing_explains_is_told_with_its_numbers():
    plain = text.render((examples.BROKEN,))
    assert examples.INPUT.message in plain
    assert examples.EXPLOSION.message not in plain


def test_a_symptom_comes_with_its_candidates_in_order():
    assert "Likely ones, best first: init-too-large,\nunnormalized-input." in text.render((examples.SYMPTOM,))


def test_damage_and_notes_are_told():
    assert "Damage: events.1 is cut off after 1,024 bytes: 3 records are lost." in text.render((examples.DAMAGED,))
    assert "'train/loss' of another tool" in text.render((examples.UNCHECKED,))


def test_a_run_that_no_rule_could_look_at_is_not_called_healthy():
    assert "HEALTHY" not in text.render((examples.UNCHECKED,))


def test_the_directory_itself_goes_by_its_models_name():
    assert text.render((examples.HEALTHY,)).startswith("GPT   400 steps")


def test_several_runs_begin_with_a_line_each():
    head = text.render((examples.BROKEN, examples.HEALTHY, examples.SYMPTOM)).split("\n\n")[0].splitlines()
    assert [line.split() for line in head] == [
        ["3", "runs"],
        ["CRITICAL", "sweep/lr=0.1", "lr-too-high"],
        ["HEALTHY", "."],
        ["WARNING", "symptom", "dead-units"],
    ]


@pytest.mark.parametrize("width", range(1, 40))
@pytest.mark.parametrize("name", ["short", "layers.12.attention.projection", "層" * 30, ""])
def test_a_name_fits_its_cells_exactly(name, width):
    assert cell_len(text.fitted(name, width, UNICODE)) == width


def test_a_cropped_name_keeps_more_of_its_end():
    assert text.fitted("transformer.blocks.11.attention.projection", 21, UNICODE) == "transfo…on.projection"


def test_a_report_of_hundreds_of_modules_stays_on_a_screen():
    run = replace(examples.BROKEN, profile=examples.rows(400, marked=tuple(range(400))))
    run = replace(run, info=replace(run.info, modules=tuple(ModuleInfo(f"layers.{i}", "Linear", "linear") for i in range(400))))
    assert len(text.render((run,)).splitlines()) <= 55
