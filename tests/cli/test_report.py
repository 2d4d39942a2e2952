from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tensorboard.compat.proto.event_pb2 import Event

from gradscope.cli import main
from gradscope.logdir.events import EventWriter
from tests import recorded
from tests.cli import terminal

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"} | {"PYTHONPATH": str(ROOT)}


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def process(*arguments, prefix="", **changes):
    """The command in a shell of its own."""
    command = f'{prefix}"$0" -m gradscope "$@"'
    environment = ENVIRONMENT | {"PYTHONIOENCODING": changes.pop("encoding", "utf-8")}
    started = ["bash", "-c", command + changes.pop("suffix", ""), sys.executable, *map(str, arguments)]
    return subprocess.run(started, capture_output=True, env=environment, cwd=ROOT, timeout=60, check=False)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("broken")
    recorded.record(logdir, recorded.broken())
    return logdir


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("healthy")
    recorded.record(logdir, recorded.healthy())
    return logdir


def refused(result, *words):
    """Whether the command ended with exit code 2 and one sentence, in which ``words`` stand."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert [word for word in words if word not in result.stderr] == []
    return True


def test_a_healthy_run_ends_with_0(healthy):
    result = report(healthy)
    assert result.exit_code == 0
    assert "HEALTHY" in result.stdout
    assert result.stderr == ""


def test_a_broken_run_is_named_and_ends_with_1(broken):
    result = report(broken)
    assert result.exit_code == 1
    assert "CRITICAL   missing-zero-grad" in result.stdout
    assert "\noptimizer.zero_grad()\n" in result.stdout


@pytest.mark.parametrize(("limit", "code"), [("warning", 1), ("critical", 1), ("never", 0)])
def test_what_makes_the_command_fail_can_be_chosen(broken, limit, code):
    assert report(broken, "--fail-on", limit).exit_code == code


def test_a_warning_fails_only_where_asked(tmp_path):
    recorded.record(tmp_path, recorded.timelines.build(columns={"weight_gradient.carried": 1.0}))
    severity = json.loads(report(tmp_path, "--format", "json").stdout)["runs"][0]["verdict"]
    assert severity == "warning"
    assert report(tmp_path).exit_code == 0
    assert report(tmp_path, "--fail-on", "warning").exit_code == 1


def test_json_stands_alone_on_standard_output(broken):
    document = json.loads(report(broken, "--format", "json").stdout)
    assert document["schema"] == "gradscope.report/1"
    assert document["runs"][0]["diagnosis"] == "missing-zero-grad"


def test_markdown_is_a_format(broken):
    assert report(broken, "--format", "markdown").stdout.startswith("## Critical: `missing-zero-grad`")


def test_names_of_rules_come_repeated_and_in_lists(broken):
    result = report(broken, "--ignore", "missing-zero-grad, unnormalized-input", "--ignore", "lr-too-high", "--format", "json")
    run = json.loads(result.stdout)["runs"][0]
    assert {"missing-zero-grad", "unnormalized-input", "lr-too-high"}.isdisjoint(
        {f["rule"] for f in run["findings"]} | run["skipped"].keys()
    )
    selected = json.loads(report(broken, "--select", "missing-zero-grad", "--format", "json").stdout)["runs"][0]
    assert [finding["rule"] for finding in selected["findings"]] == ["missing-zero-grad"]


def test_a_report_can_go_to_a_file(broken, tmp_path):
    result = report(broken, "--output", tmp_path / "report.txt")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (tmp_path / "report.txt").read_text(encoding="utf-8") == report(broken, "--output", "-").stdout


def test_a_missing_directory(tmp_path):
    assert refused(report(tmp_path / "nothing"), "nothing", "does not exist")


def test_an_empty_directory(tmp_path):
    assert refused(report(tmp_path), str(tmp_path))


def test_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert refused(report(tmp_path / "file"), "is a file")


def test_a_name_with_control_characters_cannot_steer_the_terminal(tmp_path):
    assert refused(report(tmp_path / "\x1b[31mred\nline"), "[31mred line")


def test_other_tools_events(tmp_path):
    writer = EventWriter(tmp_path)
    event = Event(step=1)
    event.summary.value.add(tag="reward", simple_value=1.0)
    writer.write(event.SerializeToString())
    writer.close()
    next(tmp_path.iterdir()).rename(tmp_path / "events.out.tfevents.1.host")
    assert refused(report(tmp_path), "only other tools", "reward")


def test_a_file_of_anything_else(tmp_path):
    recorded.record(tmp_path, recorded.healthy()).write_bytes(b"\x00\xff" * 5000)
    assert refused(report(tmp_path), str(tmp_path))


def test_a_file_that_ends_early_is_reported_on(tmp_path):
    file = recorded.record(tmp_path, recorded.broken())
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    result = report(tmp_path)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "missing-zero-grad" in result.stdout


def test_damage_is_told_beside_json_too(tmp_path):
    file = recorded.record(tmp_path, recorded.broken())
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    file.write_bytes(content)
    assert "Damage: " in report(tmp_path).stdout
    result = report(tmp_path, "--format", "json")
    json.loads(result.stdout)
    assert result.stderr.startswith("Warning: .: ")


@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_an_unknown_rule(broken, option):
    assert refused(report(broken, option, "missing-zerograd"), "missing-zerograd", "missing-zero-grad")


def test_an_unknown_run(broken):
    assert refused(report(broken, "--run", "other"), "'other'", "there are: .")


@pytest.mark.parametrize("output", ["no/such/folder/report.txt", ""])
def test_an_output_that_cannot_be_written(broken, tmp_path, output):
    assert refused(report(broken, "--output", tmp_path / output), "could not be written")


def test_half_a_file_is_removed(broken, tmp_path):
    file = tmp_path / "report.json"
    result = process("report", broken, "--format", "json", "--output", file, prefix="ulimit -f 1; trap '' XFSZ; ")
    assert result.returncode == 2
    assert result.stderr.startswith(b"Error: The report could not be written")
    assert not file.exists()


def test_a_full_device_is_told_and_stays(broken):
    result = report(broken, "--output", "/dev/full")
    assert refused(result, "No space left")
    assert Path("/dev/full").exists()
    assert process("report", broken, suffix=" > /dev/full").returncode == 2


def test_unknown_options_are_usage(broken):
    assert report(broken, "--format", "pdf").exit_code == 2
    assert report().exit_code == 2


def test_a_reader_that_goes_away_is_no_error(broken):
    result = process("report", broken, suffix=' | exec 0<&-; exit "${PIPESTATUS[0]}"')
    assert result.stderr == b""
    assert result.returncode == 1


def test_ascii_output_has_ascii_bars(broken):
    result = process("report", broken, encoding="ascii")
    assert (result.returncode, result.stderr) == (1, b"")
    assert result.stdout.isascii()
    assert b"##" in result.stdout
    assert process("report", broken, "--format", "markdown", encoding="ascii").stdout.isascii()


def test_a_terminal_gets_the_report_in_colour(broken):
    shown = terminal.shown("report", str(broken), columns=100)
    assert "\x1b[" in shown
    piped = report(broken).stdout.splitlines()
    assert [line.rstrip() for line in terminal.plain(shown).splitlines()] == piped


def test_torch_is_not_imported(healthy):
    code = f"""
import sys
from gradscope.cli import main
main(["report", {str(healthy)!r}], standalone_mode=False)
print([name for name in sys.modules if name.partition(".")[0] == "torch"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=True
    )
    assert "HEALTHY" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
