"""The page about the record is complete, and its program runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gradscope.logdir import tags
from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from tests import recorded
from tests.timelines import STEPS
from tests.timelines import build

PAGE = (Path(__file__).parents[1] / "docs" / "record.md").read_text(encoding="utf-8")


def test_it_names_all_that_is_recorded():
    documented = re.findall(r"^\| `([^`]+)`", PAGE, re.MULTILINE)
    columns = {f"{kind}.{statistic}": text for kind, known in STATISTICS.items() for statistic, text in known.items()}
    assert {name for name in documented if "." in name and "/" not in name} == set(columns)
    assert [f"| `{name}` | {text} |" for name, text in columns.items() if f"| `{name}` | {text} |\n" not in PAGE] == []
    assert [name for name in documented if name in PULSE_FIELDS] == list(PULSE_FIELDS)
    own = (tags.STATS, tags.HISTOGRAMS, tags.SCHEMA, tags.PULSE, tags.META, tags.REPORT)
    assert [tag for tag in own if f"| `{tag}" not in PAGE] == []


def test_its_program_prints_what_was_recorded(tmp_path):
    rms = {"layers.0": 0.5, "layers.1": 1.5, "layers.2": 2.5, "layers.3": 3.5, "layers.4": 4.5}
    recorded.record(tmp_path, build(columns={"activation.rms": rms}))
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{step} {rms}" for step in STEPS]
