"""Names and messages from outside are text in every rendering: of Markdown, in TensorBoard's own, and in a terminal."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from html.parser import HTMLParser

import markdown as python_markdown
import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tensorboard import plugin_util

from gradscope.legible import one_line
from gradscope.logdir.errors import LogdirError
from gradscope.records import Remedy
from gradscope.report import Report
from gradscope.report import jsonreport
from gradscope.report import markdown
from gradscope.report import text
from tests.report import examples

# What a report in Markdown is made of.
ELEMENTS = frozenset("h2 h3 p strong em code pre ul li hr table thead tbody tr th td br".split())
HARM = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "``` <img src=x onerror=alert(1)> `", "`<b>` ``<b>```<b>",
    "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "<http://evil.example>",
    "http://evil.example", "www.evil.example",
    "someone@evil.example", "[x]: http://evil.example", "a|b|c", "| --- |", "&lt;img&gt;", "\\<img\\>", "x\n\n<img src=x>",
    "# x",
    "~~~\n<img src=x>", "    <img src=x>", "- x\n- <b>", "==\n--", "<!-- x", "]]>",
    "\x1b]8;;http://evil\x07x", "$<b>$", "<details open>",
]  # fmt: skip
RENDERERS = {
    "Python-Markdown, as TensorBoard has it": lambda source: python_markdown.markdown(
        source, extensions=["tables", "fenced_code"]
    ),
    "CommonMark with tables": MarkdownIt("commonmark", {"html": True}).enable("table").render,
    "GitHub's, with links of bare addresses": MarkdownIt("gfm-like", {"html": True, "linkify": False}).render,
    "TensorBoard's with its sanitiser": plugin_util.markdown_to_safe_html,
}


class Elements(HTMLParser):
    """Which elements a page has, and which attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_comment(self, data):
        self.names.add("comment")


def harmful_report(harm: str):
    """A report in which every string that comes from outside is ``harm``."""
    finding = replace(
        examples.DEAD,
        modules=(harm, f"layers.{harm}"),
        message=f"Of the units of {harm} 71 % were zero, and of `{harm}` too.",
        remedy=Remedy(f"Use another one after {harm}.", f"model.x = 1  # {harm}"),
        evidence={"candidates": [harm], harm: harm},
    )
    rows = tuple(replace(row, module=harm, type=harm) for row in examples.rows(3, marked=(1,)))
    return replace(
        examples.SYMPTOM, run=harm, info=replace(examples.SYMPTOM.info, name=harm, model=harm, notes=(harm,)),
        findings=(finding, finding),
        skipped={"lr-too-high": f"no {harm}"}, profile=rows, damage=(harm,),
    )  # fmt: skip


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("harm", HARM)
def test_no_name_becomes_markup(renderer, harm):
    assert_plain(RENDERERS[renderer](markdown.render((harmful_report(harm),))))


@pytest.mark.parametrize("renderer", RENDERERS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.lists(st.sampled_from([*"`*_<>[]()!|&#~\\-=+:/@. \n\tab1", "``", "```", "<b>", "://", "www."]), max_size=14).map("".join)
)
@example("``` <b> `")
def test_no_row_of_marks_becomes_markup(renderer, harm):
    source = f"A {markdown.prose(one_line(harm))} b.\n\n| x |\n| --- |\n| {markdown.name(one_line(harm))} |"
    assert_plain(RENDERERS[renderer](source))


def assert_plain(html: str) -> None:
    elements = Elements()
    elements.feed(html)
    assert elements.names <= ELEMENTS, html
    assert elements.attributes <= {"class", "style", "align"}, html


@pytest.mark.parametrize("harm", HARM)
def test_no_name_steers_a_terminal(harm):
    run = harmful_report(f"{harm}\x1b[2J\x9b31m\r\x08\u202e\x00\ud800")
    shown = {
        "text": text.render((run, run)),
        "styled": text.styled((run, run), width=80).plain,
        "markdown": markdown.render((run,)),
        "json": jsonreport.render((run,)),
        "str": str(Report((run,), unread=(run.run,))),
        "repr": repr(Report((run,), unread=(run.run,))),
        "error": str(LogdirError(f"{run.run} cannot be read")),
    }
    for form, output in shown.items():
        left = {c for c in output if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
        assert not left, (form, left)


def test_the_check_sees_what_becomes_markup():
    for renderer in RENDERERS.values():
        with pytest.raises(AssertionError):
            assert_plain(renderer("a [x](http://example.org)"))
