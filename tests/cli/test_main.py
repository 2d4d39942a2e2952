from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradscope.cli import main
from gradscope.version import __version__

ROOT = Path(__file__).parents[2]


def test_help_lists_the_commands_with_what_they_do():
    lines = CliRunner().invoke(main, ["--help"]).stdout.splitlines()
    for name in ("report", "rules"):
        assert [line for line in lines if line.split()[:1] == [name] and len(line.split()) > 3]


def test_help_imports_no_command():
    code = "import sys; from gradscope.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    loaded = set(printed.stdout.splitlines()[-1].split())
    assert "gradscope.cli" in loaded
    assert loaded.isdisjoint({"gradscope.cli.report", "torch", "tensorboard"})


@pytest.mark.parametrize("name", ["no-such-command", "_output", "demos"])
def test_an_unknown_command_is_usage(name):
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 2
    assert "No such command" in result.stderr


def test_the_version_is_told():
    assert CliRunner().invoke(main, ["--version"]).stdout.split()[-1] == __version__


def test_it_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "gradscope", "rules"], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert "missing-zero-grad" in result.stdout
