"""What starts without torch, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import recorded

ROOT = Path(__file__).parents[1]


def modules_after(program: str, *arguments: object) -> set[str]:
    """The names of the modules that are imported when ``program`` has run."""
    command = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules, file=sys.stderr)", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.split())


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logdir")
    recorded.record(folder, recorded.healthy())
    return folder


def test_the_package_alone_starts_without_torch_tensorboard_and_rules():
    imported = modules_after("import gradscope; gradscope.Finding, gradscope.Report, gradscope.__version__")
    assert "gradscope" in imported
    assert imported.isdisjoint({"torch", "tensorboard", "gradscope.rule"})


def test_reading_needs_no_torch(logdir):
    imported = modules_after("import sys, gradscope; print(gradscope.read(sys.argv[1]))", logdir)
    assert {"gradscope.rules.lr_too_high", "tensorboard"} <= imported
    assert "torch" not in imported


@pytest.mark.parametrize("command", ["report", "rules"])
def test_commands_need_no_torch(command, logdir):
    arguments = [command, logdir] if command == "report" else [command]
    imported = modules_after("import gradscope.cli; gradscope.cli.main(standalone_mode=False)", *arguments)
    assert {f"gradscope.cli.{command}", "gradscope.rules.lr_too_high"} <= imported
    assert "torch" not in imported


def test_the_list_of_commands_needs_no_numpy():
    imported = modules_after("import gradscope.cli; gradscope.cli.main(standalone_mode=False)", "--help")
    assert "gradscope.cli" in imported
    assert imported.isdisjoint({"torch", "numpy", "rich", "gradscope.records"})


def test_watching_does():
    assert "torch" in modules_after("import gradscope; gradscope.attach")
