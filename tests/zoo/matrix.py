"""Truth against diagnosis over all programs of the zoo, as a page of documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.zoo.program import Fault
from tests.zoo.running import watched
from tests.zoo.zoo import FAULTS
from tests.zoo.zoo import HEALTHY

INTRODUCTION = """\
# What gradscope says of trainings whose truth is known

The zoo is {healthy} healthy trainings, {faults} with one fault each, and as many twins of these that lack nothing but the
fault. They are small and real (MLPs, convolutional and residual nets, transformers, recurrent nets, GANs, …), their data is
computed or is the standard library's source text, and each says itself, without gradscope, whether it learned or failed.

This page shows {seeds} {cadence}. `scripts/zoo --write` writes it, and the tests run every program with one
seed. A training is judged at its end and at up to 15 looks on the way.
"""


@dataclass(frozen=True)
class Job:
    program: str
    seed: int
    every: int | None
    faulty: bool | None  # None for a healthy program, False for a fault's twin


@dataclass(frozen=True)
class Result:
    job: Job
    diagnosis: str | None
    alarms: tuple[str, ...]  # rules at warning or above, at the end or on the way
    named_by: int | None  # steps after which the right diagnosis stood


def jobs(seeds: Sequence[int], *, every: int | None) -> list[Job]:
    kinds = [(name, None) for name in HEALTHY] + [(name, faulty) for name in FAULTS for faulty in (False, True)]
    return [Job(name, seed, every, faulty) for name, faulty in kinds for seed in seeds]


def run(job: Job) -> Result:
    if job.faulty is None:
        seen = watched(HEALTHY[job.program].train, job.seed, every=job.every)
        rules: tuple[str, ...] = ()
    else:
        fault, faulty = FAULTS[job.program], job.faulty
        seen = watched(lambda watch: fault.train(watch, faulty), job.seed, every=job.every)
        rules = fault.rules
    alarms = tuple(dict.fromkeys(finding.rule for _, finding in seen.alarms))
    return Result(job, next(iter(seen.diagnoses), None), alarms, seen.named_by(rules))


def page(results: Sequence[Result], *, seeds: Sequence[int], every: int | None) -> str:
    """The page that docs/zoo.md holds."""
    faulty = [result for result in results if result.job.faulty]
    sound = [result for result in results if not result.job.faulty]
    opening = INTRODUCTION.format(
        healthy=len(HEALTHY),
        faults=len(FAULTS),
        seeds=f"seeds {', '.join(map(str, seeds))}",
        cadence=_cadence(every),
    )
    return "\n".join([opening, *_false_alarms(sound), "", *_faults(faulty), "", *_confusion(faulty), ""])


def _cadence(every: int | None) -> str:
    if every is None:
        return "with the default budget"
    return "with every step sampled" if every == 1 else f"with one step in {every} sampled"


def wrong(results: Iterable[Result]) -> list[Result]:
    """Alarms where nothing is wrong, and faults that were not named, or not by their name."""
    return [result for result in results if (not _right(result) if result.job.faulty else result.alarms)]


def _right(result: Result) -> bool:
    return result.diagnosis in FAULTS[result.job.program].rules


def _false_alarms(results: list[Result]) -> list[str]:
    alarmed = [result for result in results if result.alarms]
    by_rule = Counter(rule for result in alarmed for rule in result.alarms)
    lines = [
        "## Alarms where nothing is wrong",
        "",
        f"{len(alarmed)} of {len(results)} runs of healthy programs and twins raised anything at warning or above, at the end",
        "or at any of the looks on the way.",
    ]
    if alarmed:
        lines += ["", "| rule | runs | programs |", "| --- | --- | --- |"]
        for rule, count in by_rule.most_common():
            programs = dict.fromkeys(result.job.program for result in alarmed if rule in result.alarms)
            lines.append(f"| {rule} | {count} | {', '.join(programs)} |")
    return lines


def _faults(results: list[Result]) -> list[str]:
    right = sum(_right(result) for result in results)
    lines = [
        "## Faults",
        "",
        f"The right name stood on top at the end of {right} of {len(results)} runs. Steps are the median of those after which",
        "it did for the first time, as far as the looks tell.",
        "",
        "| program | right diagnosis | named | otherwise | steps |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, fault in FAULTS.items():
        mine = [result for result in results if result.job.program == name]
        lines.append(_fault_row(name, fault, mine))
    return lines


def _fault_row(name: str, fault: Fault, results: list[Result]) -> str:
    others = Counter(result.diagnosis or "nothing" for result in results if not _right(result))
    otherwise = ", ".join(f"{rule} {count}" for rule, count in others.most_common()) or "–"
    steps = [result.named_by for result in results if result.named_by is not None]
    when = f"{median(steps):g}" if steps else "–"
    return f"| {name} | {' or '.join(fault.rules)} | {sum(map(_right, results))} of {len(results)} | {otherwise} | {when} |"


def _confusion(results: list[Result]) -> list[str]:
    """Truth by diagnosis, one line for each pair that occurred."""
    pairs = Counter((FAULTS[result.job.program].rules[0], result.diagnosis or "nothing") for result in results)
    lines = ["## Truth by diagnosis", "", "| truth | diagnosis | runs |", "| --- | --- | --- |"]
    return [*lines, *(f"| {truth} | {diagnosis} | {count} |" for (truth, diagnosis), count in sorted(pairs.items()))]
