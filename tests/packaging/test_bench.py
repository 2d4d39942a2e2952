"""The benchmark leaves the watching in and out of the loop by hand: that it still can is seen by running a little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_takes_times_of_the_watched_and_the_bare_training() -> None:
    command = [sys.executable, "scripts/bench", "--case", "lstm-8", "--way", "budget", "--turns", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| LSTM, 8 rows |"))
    assert "gradscope, default budget" in row
    assert "nan" not in row
