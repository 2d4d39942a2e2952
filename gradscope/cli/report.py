"""Say what is wrong with the runs in a log directory, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

import click

from gradscope import replay
from gradscope.cli import _output
from gradscope.diagnosis import UnknownRule
from gradscope.legible import one_line
from gradscope.logdir.runs import LogdirError
from gradscope.records import Severity
from gradscope.report import Report
from gradscope.report import jsonreport
from gradscope.report import markdown
from gradscope.report import text
from gradscope.report.glyphs import glyphs_for
from gradscope.run_report import RunReport

FORMATS: Mapping[str, Callable[[Sequence[RunReport]], str]] = {
    "text": text.render,
    "markdown": markdown.render,
    "json": jsonreport.render,
}
LIMITS: Mapping[str, Severity | None] = {"warning": Severity.WARNING, "critical": Severity.CRITICAL, "never": None}


@click.command("report")
@click.argument("logdir")
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)), default="text", show_default=True, help="How to write it.")
@click.option("--output", type=click.Path(path_type=Path), help="Write it to this file instead of standard output.")
@click.option("--run", "name", help="Report on this run only, by its path below LOGDIR.")
@click.option(
    "--fail-on", type=click.Choice(tuple(LIMITS)), default="critical", show_default=True, help="What makes the exit code 1."
)
@click.option("--select", multiple=True, metavar="RULE[,RULE]", help="Check these rules only; may be repeated.")
@click.option("--ignore", multiple=True, metavar="RULE[,RULE]", help="Leave these rules out; may be repeated.")
@click.pass_context
def command(
    ctx: click.Context,
    logdir: str,
    form: str,
    output: Path | None,
    name: str | None,
    fail_on: str,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
) -> None:
    """Say what is wrong with the runs in LOGDIR, and what to change.

    LOGDIR is a directory, or an address such as s3://bucket/run.

    Exit code: 0 nothing at or above --fail-on, 1 findings at or above it, 2 usage or input that cannot be read.
    """
    try:
        report = replay.read(logdir, run=name, select=_names(select), ignore=_names(ignore))
    except (LogdirError, UnknownRule) as error:
        raise _output.Unusable(one_line(str(error))) from error
    _deliver(report, form, output)
    _warn(report, form)
    limit = LIMITS[fail_on]
    ctx.exit(1 if limit is not None and report.severity >= limit else 0)


def _names(given: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names in repeated options and in lists with commas; None where the option was not given."""
    names = tuple(name.strip() for part in given for name in part.split(",") if name.strip())
    return names if given else None


def _deliver(report: Report, form: str, output: Path | None) -> None:
    if output is not None and str(output) != "-":
        _output.save(FORMATS[form](report.runs), output)
    elif form != "text":
        _output.write(FORMATS[form](report.runs))
    elif _output.in_colour():
        console = _output.terminal()
        _output.show(text.styled(report.runs, width=console.width), console, whole_lines=True)
    else:
        _output.write(text.render(report.runs, glyphs=glyphs_for(_output.encoding())))


def _warn(report: Report, form: str) -> None:
    """Say beside the report what stands in none of its runs; JSON has no place for damage either."""
    damage = [f"{run.run}: {sentence}" for run in report.runs for sentence in run.damage] if form == "json" else []
    for sentence in (*report.not_read, *damage):
        click.echo(f"Warning: {one_line(sentence)}", err=True)
