"""What each format prints for each sort of run. GRADSCOPE_ACCEPT=1 takes what is printed now as right; read the diff then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradscope.report import jsonreport
from gradscope.report import markdown
from gradscope.report import text
from tests.report import examples

GOLDEN = Path(__file__).parent / "golden"
ENDINGS = {text.render: "txt", markdown.render: "md", jsonreport.render: "json"}


@pytest.mark.parametrize("render", ENDINGS, ids=ENDINGS.values())
@pytest.mark.parametrize("name", examples.ALL)
def test_a_report_reads_as_it_was_accepted(name, render):
    printed = render(examples.ALL[name]) + "\n"
    golden = GOLDEN / f"{name}.{ENDINGS[render]}"
    if os.environ.get("GRADSCOPE_ACCEPT") == "1":
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")


def test_every_golden_file_is_of_an_example():
    assert {path.stem for path in GOLDEN.iterdir()} == set(examples.ALL)
