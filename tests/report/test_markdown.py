from __future__ import annotations

from dataclasses import replace

import markdown as renderer
import pytest

from gradscope.records import Remedy
from gradscope.report import markdown
from tests.report import examples


def as_html(source):
    return renderer.markdown(source, extensions=["tables", "fenced_code"])  # as TensorBoard's Text dashboard does


@pytest.mark.parametrize("name", examples.ALL)
def test_tables_have_as_many_cells_in_every_row(name):
    for line in markdown.render(examples.ALL[name]).split("\n\n"):
        if line.startswith("|"):
            cells = {row.replace(r"\|", "").count("|") for row in line.splitlines()}
            assert len(cells) == 1, line


def test_names_cannot_bring_in_markup():
    html = as_html(markdown.render(examples.ALL["hostile"]))
    assert "<b>" not in html
    assert "<em>" not in html
    assert "a[31m`|&lt;b&gt;*_[x] very_long_name." in html


@pytest.mark.parametrize(
    "text", ["a_b_c *d*", "<script>", "x|y", "# no heading", r"a\b", "[a](b)", "odd ` tick", "&amp; ~~no~~"]
)
def test_escaped_prose_reads_as_it_was(text):
    html = as_html(markdown.prose(text) + "\n\n| a |\n| --- |\n| b |").split("\n<table>")[0]
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert html.replace("&#126;", "~") == f"<p>{escaped}</p>"


def test_code_in_a_sentence_stays_code():
    assert (
        as_html(markdown.prose("Call `optimizer.zero_grad()` in my_loop."))
        == "<p>Call <code>optimizer.zero_grad()</code> in my_loop.</p>"
    )


@pytest.mark.parametrize(("name", "shown"), [("layers.0.weight", "`layers.0.weight`"), ("a`b", r"a\`b"), ("a|b", r"a\|b")])
def test_usual_names_are_code(name, shown):
    assert markdown.name(name) == shown


def test_code_cannot_end_its_block():
    code = "x = '''\n```\n'''"
    run = replace(examples.BROKEN, findings=(replace(examples.RATE, remedy=Remedy("Do.", code)),))
    assert f"````python\n{code}\n````" in markdown.render((run,))


def test_the_code_block_renders_as_code():
    assert "<code" in as_html(markdown.render((examples.BROKEN,))).split("for group in")[0].rpartition("<pre>")[2]


def test_each_run_has_its_section():
    assert markdown.render((examples.BROKEN, examples.HEALTHY)).count("\n---\n") == 1
