"""docs/benchmarks.md, from the figures of scripts/bench."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_catalogue import WAYS
from bench_figures import Result
from bench_governor import SCENARIOS
from bench_governor import Governed
from bench_limits import HOST
from bench_limits import Check
from bench_limits import Footprints
from bench_limits import Governors
from bench_limits import Results
from bench_memory import MEGABYTE
from bench_trainings import CASES
from bench_trainings import Case

TIMES = "| training | bare step | watched by | median | 90 % | on the wall | mean | its account | first steps | its account |"
MEMORY = "| training | bare | watched | more |"
GOVERNED = "| training | run | steps | bare step | watched | its account |"
DEVICE_MEMORY = "| training | bare | watched | more | waits a step, bare | watched |"


def page(
    method: str,
    results: Results,
    footprints: Footprints,
    governed: Governors,
    checks: Iterable[Check],
    turns: int | None,
) -> str:
    devices = dict.fromkeys(device for device, *_ in (*results, *footprints))
    cases = dict.fromkeys(case for _, case, _ in (*results, *footprints))
    trainings = "\n".join(f"- {_described(CASES[case], turns or CASES[case].turns)}" for case in cases)
    parts = ["# What watching costs", f"`scripts/bench --write` wrote this page. {method.strip()}", _machine(devices)]
    for device in devices:
        parts += ["## " + ("On the processor" if device == HOST else "On the accelerator")]
        parts += [_table(TIMES, times(results, device)), _memory(footprints, device)]
    parts += _budget(governed)
    parts += ["## Limits", "\n".join(_checked(check) for check in checks), "## The trainings", trainings]
    return "\n\n".join(part for part in parts if part) + "\n"


def times(results: Results, device: str) -> Iterator[str]:
    for (where, case, way), found in results.items():
        if where == device:
            yield row(case, way, found)


def row(case: str, way: str, found: Result) -> str:
    title = WAYS[way].title
    if found.failure:
        return f"| {CASES[case].title} | | {title} | stops the training: {found.failure} | | | | | | |"
    first = (found.first, found.told_first) if way == "budget" else (math.nan, math.nan)
    ratios = map(_ratio, (found.wall, found.mean, found.told, *first))
    cells = (CASES[case].title, f"{1000 * found.seconds:.1f} ms", title, f"**{found.median:.3f}**", _interval(found), *ratios)
    return f"| {' | '.join(cells)} |"


def footprint_row(footprints: Footprints, device: str, case: str) -> str:
    bare, watched = footprints[device, case, "bare"], footprints[device, case, "watched"]
    before, after = (bare.host, watched.host) if device == HOST else (bare.device, watched.device)
    more = f"{(after - before) / MEGABYTE:.1f} MB, {100 * (after / before - 1):.1f} %"
    cells = [CASES[case].title, f"{before / MEGABYTE:.1f} MB", f"{after / MEGABYTE:.1f} MB", more]
    if device != HOST:
        cells += [f"{bare.waits:.1f}", f"{watched.waits:.1f}"]
    return f"| {' | '.join(cells)} |"


def governed_row(case: str, scenario: str, found: Governed) -> str:
    told = (f"{found.steps:,}", f"{1000 * found.seconds:.1f} ms", f"**{found.mean:.3f}**", f"{found.told:.3f}")
    return f"| {' | '.join((CASES[case].title, scenario, *told))} |"


def _budget(governed: Governors) -> list[str]:
    """The table of whole runs, and what its runs are; nothing without any."""
    if not governed:
        return []
    rows = (governed_row(case, scenario, found) for (case, scenario), found in governed.items())
    return ["## The budget", "\n".join(f"- {name}: {said}." for name, said in SCENARIOS.items()), _table(GOVERNED, rows)]


def _memory(footprints: Footprints, device: str) -> str:
    cases = [case for where, case, kind in footprints if where == device and kind == "watched"]
    head = MEMORY if device == HOST else DEVICE_MEMORY
    return _table(head, (footprint_row(footprints, device, case) for case in cases))


def _table(head: str, rows: Iterable[str]) -> str:
    found = list(rows)
    return "\n".join((head, "| --- " * (head.count("|") - 1) + "|", *found)) if found else ""


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _interval(found: Result) -> str:
    return f"{found.low:.3f} – {found.high:.3f}"


def _checked(check: Check) -> str:
    return f"- {'kept' if check.kept else '**not kept**'}: {check.sentence}."


def _described(case: Case, turns: int) -> str:
    model = case.make().model
    modules, size = sum(1 for _ in model.modules()), sum(parameter.numel() for parameter in model.parameters())
    parameters = f"{size / 1e6:.2f} million parameters"
    steps = f"{case.first} first steps, then {turns} turns of {case.turn}"
    sets = "" if case.sets == 1 else f", by {case.sets} processes one after the other"
    return f"{case.title}: {modules:,} modules, {parameters}, batches of {case.batch}; {steps}{sets}."


def _machine(devices: Iterable[str]) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    accelerators = "".join(f", {torch.cuda.get_device_name(device)}" for device in devices if device != HOST)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"Measured on: {processor}, one core{accelerators}; {versions}."
