"""List what gradscope can name, or print one rule's page."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

import click
from rich.markdown import Markdown

from gradscope.cli import _output
from gradscope.diagnosis import UnknownRule
from gradscope.diagnosis import chosen
from gradscope.legible import one_line
from gradscope.report.pages import by_family
from gradscope.report.pages import page
from gradscope.report.pages import summary
from gradscope.rule import Rule
from gradscope.rule import all_rules


@click.command("rules")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List what gradscope can name, or print the page of the rule NAME."""
    if name is None:
        _output.write("\n".join(_catalogue()))
    elif _output.in_colour():
        _output.show(Markdown(page(_rule(name))), _output.terminal())
    else:
        _output.write(page(_rule(name)).rstrip())


def _rule(name: str) -> Rule:
    try:
        return chosen((name,), ())[0]
    except UnknownRule as error:
        raise _output.Unusable(one_line(str(error))) from error


def _catalogue() -> Iterator[str]:
    """A line a rule, family by family; wrapped in a terminal, whole in a pipe."""
    rules = all_rules()
    width = max((len(rule.name) for rule in rules), default=0)
    room = shutil.get_terminal_size().columns if _output.in_colour() else 10_000
    for family, members in by_family(rules).items():
        yield f"\n{family.capitalize()}"
        for rule in members:
            head = f"  {rule.name:<{width}}  {rule.kind:<7}  "
            yield textwrap.fill(summary(rule), max(room, 60), initial_indent=head, subsequent_indent=" " * len(head))
    yield "\n`gradscope rules NAME` prints a rule's page."
