"""From hits to a report: what came first, what explains what, and which cause, if any, stands on top."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from typing import final

import numpy as np

from gradscope.records import CLOSE_STEPS
from gradscope.records import Finding
from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.rule import all_rules
from gradscope.run_report import ProfileRow
from gradscope.run_report import RunReport
from gradscope.timeline import Timeline

UNKNOWN_STRENGTH = 2.0  # what "none of the causes" weighs against them
CONTRACT_STRENGTH = 10.0  # from which a hit proves a broken contract
SUPPORT = 0.5  # what each symptom that a cause explains adds to its strength
LEAST_CONFIDENCE = 0.6  # below it no cause is named; the symptoms stand with candidates
ONSET_SLACK = 2  # steps by which a cause's numbers may trail what it explains: a step is judged at its end
CERTAIN = 0.99  # from which a symptom says itself what is wrong, and needs no candidates
MOST_CANDIDATES = 3

# Families of causes by how often they were behind 52 real faulty programs (DeepFD, ICSE 2022): the learning rate in 17, the
# loss in 16, the optimizer in 11, missing preprocessing in 9, the initialisation in 1.
_USUAL = ("learning rate, optimizer", "loss wiring", "loop wiring", "normalisation", "gradient flow", "initialisation")


class UnknownRule(ValueError):
    """A rule was asked for by a name that none has."""


def chosen(select: Iterable[str] | None, ignore: Iterable[str] | None) -> tuple[Rule, ...]:
    """The rules to run: those selected, or all, without those ignored. Raises UnknownRule, naming near names."""
    rules = {rule.name: rule for rule in all_rules()}
    wanted, unwanted = list(select or rules), list(ignore or ())
    for name in [*wanted, *unwanted]:
        if name not in rules:
            near = difflib.get_close_matches(name, rules, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`gradscope rules` lists them."
            raise UnknownRule(f"There is no rule named {name!r}; {hint}")
    return tuple(rules[name] for name in dict.fromkeys(wanted) if name not in unwanted)


def unknown_rules(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that no rule has: a record may come from another gradscope."""
    known = {rule.name for rule in all_rules()}
    return tuple(name for name in dict.fromkeys(names) if name not in known)


@final
@dataclass(frozen=True, eq=False)
class _Claim:
    """What a rule claims. Each claim is one of its own, also beside another that says the same."""

    rule: Rule
    hit: Hit

    @property
    def is_cause(self) -> bool:
        return self.rule.kind == "cause"

    @property
    def is_serious(self) -> bool:
        return self.hit.severity >= Severity.WARNING

    @property
    def is_broken_contract(self) -> bool:
        return self.is_cause and self.hit.strength >= CONTRACT_STRENGTH

    def explains(self, other: _Claim) -> bool:
        """Whether ``other`` comes of this: not where it was there before.

        An aside does not explain a disaster, and nothing short of a broken contract explains another one away.
        """
        named = other.rule.name in self.rule.explains
        in_time = self.hit.first_step <= other.hit.first_step + ONSET_SLACK
        as_grave = self.is_serious or not other.is_serious
        return named and in_time and as_grave and (self.is_broken_contract or not other.is_broken_contract)


def diagnose(timeline: Timeline, rules: Sequence[Rule], *, run: str = ".", damage: tuple[str, ...] = ()) -> RunReport:
    """Judge a whole timeline. The same numbers give the same report, live or read from the disk."""
    claims, obstacles = _claims(timeline, rules)
    findings, diagnosis = _judged(_in_time(claims, timeline.onset), obstacles)
    profile_step, profile = _profile(timeline, {module for finding in findings for module in finding.modules})
    return RunReport(
        run=run,
        info=timeline.info,
        steps=timeline.step_count,
        sampled_steps=timeline.sampled_steps,
        overhead=_overhead(timeline, 0),
        overhead_later=_overhead(timeline, CLOSE_STEPS),
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
        try:
            obstacle = rule.obstacle(timeline)
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
    return [claim for claim in claims if not claim.is_cause or claim.hit.first_step <= onset + ONSET_SLACK]


def _judged(claims: list[_Claim], obstacles: Mapping[str, str]) -> tuple[tuple[Finding, ...], str | None]:
    """The claims as findings, most important first, and the rule that the diagnosis names."""
    explained = {claim for claim in claims if any(other.explains(claim) for other in claims)}
    confidences = _confidences(claims, explained)

    def place(claim: _Claim) -> tuple[int, int, float, int]:
        group = 2 if claim in explained else (0 if claim.is_cause else 1)
        sureness = confidences[claim] if group == 0 else 0.0  # of the others, what came first goes first
        return group, -claim.hit.severity, -sureness, claim.hit.first_step

    ranked = sorted(claims, key=place)
    primary = _primary(ranked, explained, confidences)
    if primary is not None and primary.is_cause:
        ranked.sort(key=lambda claim: claim is not primary)
    findings = [_finding(claim, claims, confidences[claim]) for claim in ranked]
    if primary is not None and not primary.is_cause and confidences[primary] < CERTAIN:
        at = ranked.index(primary)
        evidence = {**findings[at].evidence, "candidates": _candidates(primary.rule.name, ranked, obstacles)}
        findings[at] = replace(findings[at], evidence=evidence)
    return tuple(findings), primary.rule.name if primary is not None else None


def _confidences(claims: list[_Claim], explained: set[_Claim]) -> dict[_Claim, float]:
    """How sure each claim is: a softmax over its strength and "unknown".

    The causes that nothing explains gain by the symptoms that they explain, and compete with one another. Broken contracts
    and asides do not compete: a contract is broken whatever else is wrong, and an aside is no other explanation.
    """
    standing = [claim for claim in claims if claim.is_cause and claim not in explained]
    support = {claim: sum(claim.explains(other) and not other.is_cause for other in claims) for claim in standing}
    weights = {claim: math.exp(claim.hit.strength + SUPPORT * support.get(claim, 0)) for claim in claims}
    rivals = [claim for claim in standing if claim.is_serious and not claim.is_broken_contract]
    unknown = math.exp(UNKNOWN_STRENGTH)
    contested = unknown + sum(weights[claim] for claim in rivals)
    return {claim: weight / (contested if claim in rivals else unknown + weight) for claim, weight in weights.items()}


def _primary(ranked: list[_Claim], explained: set[_Claim], confidences: dict[_Claim, float]) -> _Claim | None:
    """The cause on top; where none is sure enough, the worst symptom; None where nothing is serious."""
    serious = [claim for claim in ranked if claim.is_serious]
    causes = (c for c in serious if c.is_cause and c not in explained and confidences[c] >= LEAST_CONFIDENCE)
    symptoms = (claim for claim in serious if not claim.is_cause)
    return next(causes, None) or max(symptoms, key=lambda claim: claim.hit.severity, default=None)


def _finding(claim: _Claim, claims: list[_Claim], confidence: float) -> Finding:
    hit = claim.hit
    return Finding(
        rule=claim.rule.name,
        kind=claim.rule.kind,
        severity=hit.severity,
        confidence=round(confidence, 3),
        modules=hit.modules,
        first_step=hit.first_step,
        last_step=hit.last_step,
        explains=tuple(dict.fromkeys(other.rule.name for other in claims if claim.explains(other))),
        evidence=hit.evidence,
        message=hit.message,
        remedy=hit.remedy,
    )


def _candidates(symptom: str, ranked: list[_Claim], obstacles: Mapping[str, str]) -> list[str]:
    """Causes that could be behind a symptom: those half shown, those that nobody could look for, then the usual ones, and of
    a family those that bring about most."""
    half_shown = [claim.rule.name for claim in ranked if symptom in claim.rule.explains]
    possible = [rule for rule in all_rules() if symptom in rule.explains]
    families = {rule: (*_USUAL, rule.family).index(rule.family) for rule in possible}
    possible.sort(key=lambda rule: (rule.name not in obstacles, families[rule], -len(rule.explains)))
    return list(dict.fromkeys([*half_shown, *(rule.name for rule in possible)]))[:MOST_CANDIDATES]


def _overhead(timeline: Timeline, start: int) -> float:
    """Share of the bare step time that gradscope took from a step on, by its own measure; NaN where there is none."""
    steps = timeline.pulse("step")
    spans = np.where(steps - steps[:1] >= start, timeline.spans, 0)
    seconds, own = np.nansum(spans * timeline.pulse("seconds")), np.nansum(spans * timeline.pulse("own_seconds"))
    return float(own / (seconds - own)) if seconds > own else float("nan")


def _profile(timeline: Timeline, marked: set[str]) -> tuple[int | None, tuple[ProfileRow, ...]]:
    """The depth profile at the last sampled step before the onset, else the first; the last of all where there is no onset."""
    if not len(timeline.frames):
        return None, ()
    row = -1 if timeline.onset is None else max(int(np.searchsorted(timeline.steps, timeline.onset)) - 1, 0)
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
