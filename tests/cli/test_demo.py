from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import gradscope.demos
from gradscope.cli import demo
from gradscope.cli import main
from gradscope.demos import Demo
from gradscope.demos import all_demos
from tests.cli import terminal

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


def commands(output):
    """The commands that the demo gives to look further, by the program's name."""
    lines = [shlex.split(line) for line in output.partition("To look further:\n")[2].splitlines() if line.startswith("  ")]
    return {Path(words[0]).name: words[1:] for words in lines}


def test_all_demos_are_listed_with_their_stories():
    listed = run("--list").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [[demo.name, demo.story] for demo in all_demos().values()]


def test_a_demo_ends_in_its_report_and_in_commands_that_work():
    result = run("missing-zero-grad")
    assert (result.exit_code, result.stderr) == (0, "")
    assert all_demos()["missing-zero-grad"].story in result.stdout
    found = commands(result.stdout)
    assert found["tensorboard"] == ["--logdir", "runs/demo-missing-zero-grad"]
    reported = CliRunner().invoke(main, found["gradscope"])
    assert "CRITICAL   missing-zero-grad" in reported.stdout
    assert reported.stdout in result.stdout


def test_without_a_name_one_is_shown_and_the_others_are_named():
    result = run()
    assert result.exit_code == 0
    assert f"CRITICAL   {demo.DEFAULT}" in result.stdout
    others = result.stdout.partition("Other demos: ")[2]
    assert [name for name in all_demos() if name not in others] == [demo.DEFAULT]


def test_each_run_has_a_directory_of_its_own():
    outputs = [run("stale-optimizer").stdout for _ in range(3)]
    used = {commands(output)["tensorboard"][1] for output in outputs}
    assert len(used) == 3
    assert {str(Path("runs", path.name)) for path in Path("runs").iterdir()} == used


def test_a_directory_can_be_given(tmp_path):
    chosen = tmp_path / "my runs"
    result = run("decay-for-clipping", "--logdir", chosen)
    assert result.exit_code == 0
    assert commands(result.stdout)["gradscope"] == ["report", str(chosen)]
    assert list(chosen.glob("gradscope/*tfevents*"))


@pytest.mark.parametrize(("name", "hint"), [("missing-zerograd", "did you mean missing-zero-grad?"), ("xyz", "--list")])
def test_an_unknown_demo_is_told_with_near_names(name, hint):
    result = run(name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert repr(name) in result.stderr and hint in result.stderr
    assert not Path("runs").exists()


def test_a_directory_with_a_run_is_refused():
    assert run("stale-optimizer", "--logdir", "there").exit_code == 0
    result = run("decay-for-clipping", "--logdir", "there")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: 'there' holds a run already")
    assert len(list(Path("there").rglob("*tfevents*"))) == 1


def test_a_directory_that_cannot_be_made_is_told():
    Path("file").touch()
    result = run("stale-optimizer", "--logdir", "file/below")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: Cannot record to 'file/below'")


def test_an_interrupted_demo_reports_what_is_there(monkeypatch):
    whole = all_demos()["missing-zero-grad"]

    def interrupted(logdir, progress):
        def steps(count):
            for step in progress(count):
                if step == 50:
                    signal.raise_signal(signal.SIGINT)
                yield step

        return whole.train(logdir, steps)

    cut = Demo("cut", "It is interrupted.", None, interrupted)
    monkeypatch.setattr(gradscope.demos, "all_demos", lambda: {"cut": cut})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    try:
        result = run("cut")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    assert "Interrupted" in result.stdout
    assert "missing-zero-grad" in result.stdout
    assert "50 steps" in result.stdout
    assert "gradscope" in commands(result.stdout)


def test_a_terminal_shows_a_progress_bar_and_lines_that_fit(tmp_path):
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gradscope", "demo", "stale-optimizer", "--logdir", "d"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path) as process:
        os.close(theirs)
        shown = "".join(terminal._read(ours))
    assert process.returncode == 0
    assert "Training" in shown and "100%" in shown
    assert "optimizer-misses-parameters" in shown
    introduction = terminal.plain(shown).replace("\r\n", "\n").partition("\nThe program:")[0]
    assert max(map(len, introduction.splitlines())) <= 80
