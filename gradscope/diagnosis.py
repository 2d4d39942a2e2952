"""From hits to a report: what came first, what explains what, and which cause, if any, stands on top."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

import numpy as np

from gradscope.records import Finding
from gradscope.records import Hit
from gradscope.records import ProfileRow
from gradscope.records import RunReport
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.rule import all_rules
from gradscope.timeline import Timeline

UNKNOWN_STRENGTH = 2.0  # what "none of the causes" weighs against them
LEAST_CONFIDENCE = 0.6  # below it no cause is named; the symptoms stand with candidates
ONSET_SLACK = 2  # steps by which a cause's numbers may trail what it explains: a step is judged at its end
CERTAIN = 0.99  # from which a symptom says itself what is wrong, and needs no candidates
MOST_CANDIDATES = 3


class UnknownRule(ValueError):
    """A rule was asked for by a name that none has."""


def chosen(select: Iterable[str] | None, ignore: Iterable[str] | None) -> tuple[Rule, ...]:
    """The rules to run: those selected, or all, without those ignored. Raises UnknownRule, naming near names."""
    rules = {rule.name: rule for rule in all_rules()}
    wanted, unwanted = list(select or rules), set(ignore or ())
    for name in [*wanted, *unwanted]:
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`gradscope rules` lists them."
            raise UnknownRule(f"There is no rule named {name!r}; {hint}")
    return tuple(rules[name] for name in dict.fromkeys(wanted) if name not in unwanted)


@dataclass(frozen=True)
class _Claim:
    rule: Rule
    hit: Hit

    def explains(self, other: _Claim) -> bool:
        in_time = self.hit.first_step <= other.hit.first_step + ONSET_SLACK
        return self is not other and other.rule.name in self.rule.explains and in_time


def diagnose(timeline: Timeline, rules: Sequence[Rule], *, run: str = ".", damage: tuple[str, ...] = ()) -> RunReport:
    """Judge a whole timeline. The same numbers give the same report, live or read from the disk."""
    claims, obstacles = _claims(timeline, rules)
    claims = _in_time(claims, timeline.onset)
    findings = _ranked(claims)
    findings, diagnosis = _with_primary(findings)
    profile_step, profile = _profile(timeline, {module for finding in findings for module in finding.modules})
    return RunReport(
        run=run,
        info=timeline.info,
        steps=timeline.step_count,
        sampled_steps=len(timeline.frames),
        overhead=_overhead(timeline),
        verdict=max((finding.severity for finding in findings), default=Severity.INFO),
        diagnosis=diagnosis,
        findings=findings,
        checked=tuple(rule.name for rule in rules if rule.name not in obstacles),
        skipped=obstacles,
        profile=profile,
        profile_step=profile_step,
        first_loss=timeline.first_loss,
        last_loss=timeline.last_loss,
        damage=damage,
    )


def _claims(timeline: Timeline, rules: Sequence[Rule]) -> tuple[list[_Claim], dict[str, str]]:
    """What the rules claim, and why those that could not look could not."""
    claims: list[_Claim] = []
    obstacles: dict[str, str] = {}
    for rule in rules:
        obstacle = rule.obstacle(timeline)
        try:
            claims.extend([_Claim(rule, hit) for hit in rule.check(timeline)] if obstacle is None else ())
        except Exception as error:  # one rule's mistake takes no other's finding with it
            obstacle = f"failed with {type(error).__name__}: {error}; this is a mistake in gradscope"
        if obstacle is not None:
            obstacles[rule.name] = obstacle
    return claims, obstacles


def _in_time(claims: list[_Claim], onset: int | None) -> list[_Claim]:
    """Without the causes whose evidence begins after the training blew up: what they see is its consequence."""
    if onset is None:
        return claims
    return [claim for claim in claims if claim.rule.kind == "symptom" or claim.hit.first_step <= onset + ONSET_SLACK]


def _ranked(claims: list[_Claim]) -> tuple[Finding, ...]:
    explained = {id(c): any(other.explains(c) for other in claims if _outranks(other, c)) for c in claims}
    causes = [c for c in claims if c.rule.kind == "cause" and not explained[id(c)]]
    confidences = _confidences([*causes], claims)

    def order(claim: _Claim) -> tuple[int, int, float, int]:
        group = 2 if explained[id(claim)] else (0 if claim.rule.kind == "cause" else 1)
        return (group, -claim.hit.severity, -confidences.get(id(claim), 0.0), claim.hit.first_step)

    return tuple(_finding(c, claims, confidences.get(id(c), _own_confidence(c))) for c in sorted(claims, key=order))


def _outranks(cause: _Claim, other: _Claim) -> bool:
    """Whether ``cause`` is bad enough to take ``other`` upon itself: an aside does not explain a disaster."""
    return cause.rule.kind == "cause" and (cause.hit.severity >= Severity.WARNING or other.hit.severity == Severity.INFO)


def _confidences(causes: list[_Claim], claims: list[_Claim]) -> dict[int, float]:
    """Softmax over the strengths of the causes that stand and of "unknown"; deterministic causes do not compete."""
    scores = {id(c): c.hit.strength + 0.5 * sum(c.explains(o) for o in claims if o.rule.kind == "symptom") for c in causes}
    certain = {key for key, claim in ((id(c), c) for c in causes) if claim.hit.strength >= 10}
    rest = [score for key, score in scores.items() if key not in certain]
    weight = math.exp(UNKNOWN_STRENGTH) + sum(math.exp(min(score, 30.0)) for score in rest)
    alone = math.exp(UNKNOWN_STRENGTH)
    return {
        key: math.exp(min(score, 30.0)) / (math.exp(min(score, 30.0)) + alone if key in certain else weight)
        for key, score in scores.items()
    }


def _own_confidence(claim: _Claim) -> float:
    return math.exp(claim.hit.strength) / (math.exp(claim.hit.strength) + math.exp(UNKNOWN_STRENGTH))


def _finding(claim: _Claim, claims: list[_Claim], confidence: float) -> Finding:
    hit = claim.hit
    explains = tuple(dict.fromkeys(o.rule.name for o in claims if claim.explains(o) and _outranks(claim, o)))
    return Finding(
        rule=claim.rule.name,
        kind=claim.rule.kind,
        severity=hit.severity,
        confidence=round(confidence, 3),
        modules=hit.modules,
        first_step=hit.first_step,
        last_step=hit.last_step,
        explains=explains,
        evidence=hit.evidence,
        message=hit.message,
        remedy=hit.remedy,
    )


def _with_primary(findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], str | None]:
    """Name the primary cause; where none is sure enough, the worst symptom, with the causes that could be behind it."""
    taken = {name for finding in findings if finding.kind == "cause" for name in finding.explains}
    serious = [finding for finding in findings if finding.severity >= Severity.WARNING]
    for finding in serious:
        if finding.kind == "cause" and finding.rule not in taken and finding.confidence >= LEAST_CONFIDENCE:
            return (finding, *(other for other in findings if other is not finding)), finding.rule
    symptom = next((f for f in serious if f.kind == "symptom" and f.rule not in taken), None)
    if symptom is None:
        return findings, None
    if symptom.confidence >= CERTAIN:
        return findings, symptom.rule
    described = replace(symptom, evidence={**symptom.evidence, "candidates": _candidates(symptom, findings)})
    return tuple(described if finding is symptom else finding for finding in findings), symptom.rule


def _candidates(symptom: Finding, findings: tuple[Finding, ...]) -> list[str]:
    """Causes that could be behind a symptom that none was shown for: those half shown first, then those in the catalogue."""
    half_shown = [f.rule for f in findings if f.kind == "cause"]
    possible = [rule.name for rule in all_rules() if rule.kind == "cause" and symptom.rule in rule.explains]
    return list(dict.fromkeys([*half_shown, *possible]))[:MOST_CANDIDATES]


def _overhead(timeline: Timeline) -> float:
    """Share of the bare step time that gradscope took over the run, by its own measure."""
    seconds, own = np.nansum(timeline.pulse("seconds")), np.nansum(timeline.pulse("own_seconds"))
    return float(own / (seconds - own)) if seconds > own else float("nan")


def _profile(timeline: Timeline, marked: set[str]) -> tuple[int | None, tuple[ProfileRow, ...]]:
    """The depth profile at the last sampled step before the onset, or the last of all."""
    if not len(timeline.frames):
        return None, ()
    onset = timeline.onset
    before = np.flatnonzero(timeline.steps < onset) if onset is not None else np.arange(len(timeline.steps))
    row = int(before[-1]) if len(before) else 0
    forward, back = timeline.column("activation.rms")[row], timeline.column("activation_gradient.rms")[row]
    updates = timeline.column("update.ratio")[row]
    rows = (
        ProfileRow(
            module=layer.module.path,
            type=layer.module.type,
            activation=float(forward[layer.site]),
            gradient=float(back[layer.site]),
            update=float(updates[layer.parameter]),
            marked=layer.module.path in marked,
        )
        for layer in timeline.layers
    )
    return int(timeline.steps[row]), tuple(rows)
