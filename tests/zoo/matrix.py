"""Truth against diagnosis over all programs of the zoo, as a page of documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from statistics import median

from tests.zoo.baselines import BASELINES
from tests.zoo.jobs import Result
from tests.zoo.jobs import invents
from tests.zoo.running import CALIBRATION
from tests.zoo.zoo import FAULTS
from tests.zoo.zoo import HAND_OF
from tests.zoo.zoo import HANDS
from tests.zoo.zoo import HEALTHY

# Truths that show in a loss that stays where it is, in a net through which little flows, or over many batches; all others are
# of step size, scale or wiring, and show in the first steps.
SLOW = frozenset(
    (
        "adam-epsilon-dominates", "bf16-stalled-updates", "clipping-too-tight", "dead-units", "excessive-weight-decay",
        "fp16-overflow", "fp16-underflow", "growing-graph", "labels-unrelated", "lr-too-low", "output-range",
        "recurrent-vanishing", "saturating-activation", "tiny-batch-norm", "train-mode-eval", "unshuffled-data",
    )
)  # fmt: skip

INTRODUCTION = """\
# What gradscope says of trainings whose truth is known

The zoo is {healthy} healthy trainings, {faults} with one fault each, and as many twins of these that lack nothing but the
fault. They are small and real (MLPs, convolutional and residual nets, transformers, recurrent nets, GANs, …), their data is
computed or is the standard library's source text, and each says itself, without gradscope, whether it learned or failed.

This page is of seeds {seeds}, which no threshold was chosen with; for that are seeds {calibration}. `scripts/zoo --write`
writes it, `scripts/zoo --check` compares a new run with what it said then (tests/zoo/golden.txt), and the tests run a part. A
training is judged at its end and at up to 36 looks on the way. A twin that did not learn with some seed, by its own measure,
is no healthy run and is not counted among them: {failed} of {twins} were not.
"""


def page(results: Sequence[Result]) -> str:
    """The page that docs/zoo.md holds."""
    seeds = sorted({result.job.seed for result in results})
    opening = INTRODUCTION.format(
        healthy=len(HEALTHY),
        faults=len(FAULTS),
        seeds=", ".join(map(str, seeds)),
        calibration=", ".join(map(str, CALIBRATION)),
        failed=sum(not result.trained for result in results),
        twins=sum(result.job.kind == "twin" for result in results),
    )
    cadences = _by_cadence(results)
    parts = [opening, *_summary(cadences), "", *_hands(cadences), "", *_false_alarms(results), "", *_confusion(results), ""]
    parts += [*_programs(cadences), "", *_replays(results), "", *_baselines(results), ""]
    return "\n".join(parts)


def _by_cadence(results: Iterable[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(cadence(result.job.every), []).append(result)
    return groups


def cadence(every: int | None) -> str:
    if every is None:
        return "the default budget"
    return "every step sampled" if every == 1 else f"one step in {every} sampled"


def _faulty(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.job.kind == "fault"]


def _sound(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.job.kind != "fault" and result.trained]


def _summary(cadences: dict[str, list[Result]]) -> list[str]:
    rows = [
        ("right name on top", lambda results: _share(_faulty(results), lambda result: result.named)),
        ("right name in any place", lambda results: _share(_faulty(results), lambda result: result.found)),
        ("another name on top", lambda results: _share(_faulty(results), lambda result: result.misleads)),
        ("alarms where nothing is wrong", lambda results: _share(_sound(results), lambda result: bool(result.alarms))),
        ("steps until named: step size, scale, wiring", lambda results: _steps(results, slow=False)),
        ("steps until named: flow, plateaus, order", lambda results: _steps(results, slow=True)),
    ]
    lines = ["## In short", "", "| | " + " | ".join(cadences) + " |", "| --- |" + " --- |" * len(cadences)]
    return [*lines, *(f"| {name} | " + " | ".join(tell(group) for group in cadences.values()) + " |" for name, tell in rows)]


def _hands(cadences: dict[str, list[Result]]) -> list[str]:
    """What the figures are worth: those who wrote rules and programs by the same hand flatter themselves."""
    lines = ["## By who wrote the programs", ""]
    lines += ["Those that were written blind, without knowing the rules, judged them once; then the rules learned from them,"]
    lines += ["and this page is of what is named since. What new programs will find is what they found at first.", ""]
    lines += ["| programs | cadence | right on top | in any place | another on top | alarms where nothing is wrong |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for hand in HANDS:
        for name, results in cadences.items():
            own = [result for result in results if HAND_OF[result.job.program] == hand.title]
            faulty, sound = _faulty(own), _sound(own)
            told = [_share(faulty, lambda r: r.named), _share(faulty, lambda r: r.found), _share(faulty, lambda r: r.misleads)]
            told.append(_share(sound, lambda r: bool(r.alarms)))
            lines.append(f"| {hand.title} | {name} | " + " | ".join(told) + " |")
    return lines


def _share(results: Sequence[Result], holds: Callable[[Result], bool]) -> str:
    count = sum(map(holds, results))
    return f"{count} of {len(results)} ({count / max(len(results), 1):.1%})"


def _steps(results: Sequence[Result], *, slow: bool) -> str:
    """The median over the runs that were named, from the fault's beginning, as far as the looks tell."""
    group = [result for result in _faulty(results) if (FAULTS[result.job.program].truth in SLOW) == slow]
    steps = [result.named_after for result in group if result.named_after is not None]
    return f"{median(steps):g}" if steps else "–"


def _false_alarms(results: Sequence[Result]) -> list[str]:
    alarmed = [result for result in _sound(results) if result.alarms]
    by_rule = Counter(rule for result in alarmed for rule in result.alarms)
    lines = ["## Alarms where nothing is wrong", ""]
    lines.append("Rules at warning or above in a run of a healthy program or of a twin, at its end or on the way.")
    if not alarmed:
        return [*lines, "", "None."]
    lines += ["", "| rule | runs | programs |", "| --- | --- | --- |"]
    for rule, count in by_rule.most_common():
        programs = dict.fromkeys(result.job.program for result in alarmed if rule in result.alarms)
        lines.append(f"| {rule} | {count} | {', '.join(programs)} |")
    return lines


def _confusion(results: Sequence[Result]) -> list[str]:
    """One row for each truth; the columns that hold nothing are left out."""
    lines = [
        "## Truth by diagnosis",
        "",
        "Runs of both cadences. A symptom that may stand for a cause that cannot be shown counts as right where the program's",
        "row below says so.",
        "",
        "| truth | runs | on top: right | found | what stood on top |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_truth: dict[str, list[Result]] = {}
    for result in _faulty(results):
        by_truth.setdefault(FAULTS[result.job.program].truth, []).append(result)
    for truth, group in sorted(by_truth.items()):
        named, found = sum(result.named for result in group), sum(result.found for result in group)
        lines.append(f"| {truth} | {len(group)} | {named} | {found} | {_tops(group)} |")
    return lines


def _tops(results: Iterable[Result]) -> str:
    tops = Counter(result.diagnosis or "nothing" for result in results)
    return ", ".join(f"{rule} {count}" for rule, count in tops.most_common())


def _programs(cadences: dict[str, list[Result]]) -> list[str]:
    heads = "".join(f" {name}: named | steps | otherwise |" for name in cadences)
    lines = ["## Faults", "", f"| program | right diagnosis |{heads}", "| --- | --- |" + " --- | --- | --- |" * len(cadences)]
    for name, fault in FAULTS.items():
        groups = [[result for result in _faulty(group) if result.job.program == name] for group in cadences.values()]
        if any(groups):
            right = " or ".join(fault.rules) + (" (for information)" if fault.aside else "")
            lines.append(f"| {name} | {right} |" + "".join(_cells(group) for group in groups))
    return lines


def _cells(results: Sequence[Result]) -> str:
    steps = [result.named_after for result in results if result.named_after is not None]
    when = f"{median(steps):g}" if steps else "–"
    otherwise = _tops(result for result in results if not result.named) or "–"
    return f" {sum(result.named for result in results)} of {len(results)} | {when} | {otherwise} |"


def _replays(results: Sequence[Result]) -> list[str]:
    """What a part of the evidence leads to, in the runs that blew up."""
    group = [result for result in _faulty(results) if result.replays]
    before = sum(result.replays[0] in FAULTS[result.job.program].rules for result in group)
    invented = [result for result in group if invents(FAULTS[result.job.program], result.replays[1])]
    lines = ["## With a part of the evidence", ""]
    lines.append(
        f"{len(group)} runs blew up. From the steps up to there alone, the right name stands on top in {before}; from those\n"
        f"after it alone, a cause that is not there stands on top in {len(invented)}."
    )
    return lines + (["", f"Those are: {_invented(invented)}."] if invented else [])


def _invented(results: Iterable[Result]) -> str:
    return ", ".join(sorted({f"{result.job.program} ({result.replays[1]})" for result in results}))


def _baselines(results: Sequence[Result]) -> list[str]:
    """Every step sampled, where there is such a run: thresholds of others were made for that."""
    counted = [result for result in results if result.job.every == 1] or list(results)
    faulty, sound = _faulty(counted), _sound(counted)
    lines = [
        "## Beside published detectors",
        "",
        "Their published thresholds over the same records (tests/zoo/baselines.py), not the tools themselves. They tell that",
        "something is wrong, and not what; the right name on top is more than they try.",
        "",
        "| | alarms where nothing is wrong | faults detected | right name on top |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {_share(sound, _alarmed(name))} | {_share(faulty, _alarmed(name))} | – |" for name in BASELINES]
    ours = (_share(sound, lambda result: bool(result.alarms)), _share(faulty, lambda result: bool(result.alarms)))
    return [*lines, f"| gradscope | {ours[0]} | {ours[1]} | {_share(faulty, lambda result: result.named)} |"]


def _alarmed(baseline: str) -> Callable[[Result], bool]:
    return lambda result: bool((result.baselines or {}).get(baseline))
