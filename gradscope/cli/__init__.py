"""The command ``gradscope``: one subcommand a module of this package, imported when it is called."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from importlib.resources import files
from typing import final

import click

from gradscope.version import __version__


@final
class Commands(click.Group):
    """Finds ``gradscope NAME`` as ``command`` in the module of that name; the list reads their docstrings, imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(
            found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg and not found.name.startswith("_")
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command), f"gradscope.cli.{cmd_name} has no click command named `command`"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_line(name)) for name in self.list_commands(ctx)])


def _first_line(name: str) -> str:
    source = files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gradscope")
def main() -> None:
    """Says why a PyTorch training does not work, from what gradscope.attach(model) recorded."""
