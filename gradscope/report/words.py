"""Numbers, names and sentences as every format words them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gradscope.records import CLOSE_STEPS
from gradscope.records import Finding
from gradscope.records import Severity
from gradscope.run_report import RunReport

OVER_BUDGET = 1.25  # times the budget, up to which a cost needs no further word
_TOO_SHORT = re.compile(r"needs (\d+) steps, the run has (\d+)")


def number(value: float) -> str:
    """As short as tells enough: ``0.812``, ``12345``, ``1.2e-07``, ``inf``; a dash for what was not captured."""
    if math.isnan(value):
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    if 1000 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1000 else f"{value:.1e}"


def counted(count: int, thing: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def when(finding: Finding) -> str:
    """``at step 0`` or ``steps 2 to 41``."""
    first, last = finding.first_step, finding.last_step
    return f"at step {first}" if last <= first else f"steps {first} to {last}"


def sure(finding: Finding) -> str:
    """How sure the finding is; never wholly."""
    return f"{min(99, math.floor(100 * finding.confidence + 0.5))} % sure"


def primary(run: RunReport) -> Finding | None:
    """The finding that the report is about: the diagnosis, else the first that is no mere aside."""
    named = (finding for finding in run.findings if finding.rule == run.diagnosis)
    serious = (finding for finding in run.findings if finding.severity > Severity.INFO)
    return next(named, None) or next(serious, None)


def others(run: RunReport) -> tuple[Finding, ...]:
    """All findings but the primary one."""
    first = primary(run)
    return tuple(finding for finding in run.findings if finding is not first)


def explained(run: RunReport, finding: Finding) -> bool:
    """Whether another finding of the run explains this one."""
    return any(finding.rule in other.explains for other in run.findings if other is not finding)


def headline(run: RunReport) -> str:
    """The verdict in one word or two, in capitals."""
    return run.verdict_label.upper() if run.checked or run.findings else "NOT CHECKED"


def facts(run: RunReport, *, arrow: str) -> tuple[str, ...]:
    """Which run this is: its model, its length, where its loss went."""
    model = () if run.info.model in ("", "unknown") else (run.info.model,)
    last = number(run.last_loss) if math.isfinite(run.last_loss) else "not finite"
    loss = () if math.isnan(run.first_loss) else (f"loss {number(run.first_loss)} {arrow} {last}",)
    return (*model, counted(run.steps, "step"), *loss)


def candidates(finding: Finding) -> str | None:
    """What may be behind a symptom that stands for itself, as a sentence; None where there is nothing to say."""
    if finding.kind != "symptom":
        return None
    names = [str(name) for name in finding.evidence.get("candidates", ())]
    return f"This is a symptom: no cause could be shown. Likely ones, best first: {', '.join(names)}." if names else None


def looked_at(run: RunReport) -> str:
    """What was checked, as a sentence."""
    steps = f"{run.sampled_steps:,} of {counted(run.steps, 'step')} sampled"
    layers = f", {counted(len(run.profile), 'layer')}" if run.profile else ""
    return f"Checked {counted(len(run.checked), 'rule')}: {steps}{layers}."


def cost(run: RunReport) -> str:
    """What watching cost, as a sentence."""
    if not math.isfinite(run.overhead):
        return "What watching cost could not be measured."
    sentence = f"Watching cost {_percent(run.overhead)} of the training's time"
    if run.info.every is not None or run.overhead <= OVER_BUDGET * run.info.budget:
        return f"{sentence}."
    since = f"cost {_percent(run.overhead_later)} since" if math.isfinite(run.overhead_later) else "then keeps to its budget"
    return f"{sentence}: it looks closely at the first {CLOSE_STEPS} steps, whatever that takes, and {since}."


def _percent(share: float) -> str:
    percent = 100 * share
    return ("under 0.1" if percent < 0.1 else (f"{percent:.1f}" if percent < 10 else f"{percent:.0f}")) + " %"


def probed(run: RunReport) -> str | None:
    """When steps were replayed, or why those that looked suspicious could not be, as a sentence; None where none did."""
    told = run.info.probe
    return f"The step-quality probe {told}." if told.startswith(("ran ", "could not run ")) else None


def not_checked(run: RunReport) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Reasons why rules could not look, each with its rules; those that only lack steps come together."""
    reasons: dict[str, list[str]] = {}
    for rule, reason in run.skipped.items():
        reasons.setdefault("" if _TOO_SHORT.fullmatch(reason) else reason, []).append(rule)
    short = reasons.pop("", None)
    grouped = sorted(reasons.items(), key=lambda group: -len(group[1]))
    if short:
        grouped.insert(0, (_too_short([run.skipped[rule] for rule in short]), short))
    return tuple((reason, tuple(rules)) for reason, rules in grouped)


def _too_short(reasons: Sequence[str]) -> str:
    found = [match for reason in reasons if (match := _TOO_SHORT.fullmatch(reason))]
    needed = sorted(int(match[1]) for match in found)
    span = f"{needed[0]}" if needed[0] == needed[-1] else f"{needed[0]} to {needed[-1]}"
    return f"needs {span} steps, the run has {found[0][2]}"


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """``a``, ``a, b`` or ``a, b, c and 4 more``."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
