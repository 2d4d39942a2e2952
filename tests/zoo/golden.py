"""What the zoo said when it was last looked at: one line for each program, so that a change shows in a diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

from tests.zoo.jobs import KINDS
from tests.zoo.jobs import Result
from tests.zoo.zoo import FAULTS

PATH = Path(__file__).with_name("golden.txt")
CADENCE = 1  # with each step sampled a run is the same each time; under a budget the clock decides what is sampled


def summary(results: Iterable[Result]) -> str:
    """The runs with every step sampled, seeds taken together."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        if result.job.every == CADENCE:
            groups.setdefault((KINDS.index(result.job.kind), result.job.program), []).append(result)
    return "".join(f"{_line(KINDS[kind], program, group)}\n" for (kind, program), group in sorted(groups.items()))


def difference(results: Sequence[Result]) -> str:
    """The golden summary against that of ``results``, as a diff; empty where they agree. Programs not run don't count."""
    run = {(result.job.kind, result.job.program) for result in results}
    golden = [line for line in PATH.read_text(encoding="utf-8").splitlines() if _named(line) in run]
    fresh = summary(results).splitlines()
    return "\n".join(unified_diff(golden, fresh, "golden", "now", lineterm="", n=0))


def _named(line: str) -> tuple[str, str]:
    kind, program = line.split()[:2]
    return kind, program.rstrip(":")


def _line(kind: str, program: str, results: Sequence[Result]) -> str:
    if kind == "fault":
        truth = FAULTS[program].truth
        said = _counted(result.diagnosis or "nothing" for result in results)
        others = {rule for result in results if truth not in (result.diagnosis, *result.findings) for rule in result.alarms}
        lost = f"; without {truth}: {', '.join(sorted(others)) or 'nothing'}" if others else ""
        return f"{kind} {program} is {truth}: {said}{lost}"
    return f"{kind} {program}: {_counted(rule for result in results for rule in result.alarms) or 'quiet'}"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
