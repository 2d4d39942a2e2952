"""What came first, what explains what, and what is on top: with rules made here, which claim what they are told to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any
from typing import ClassVar
from typing import final

import numpy as np
import pytest

from gradscope.diagnosis import UnknownRule
from gradscope.diagnosis import chosen
from gradscope.diagnosis import diagnose
from gradscope.records import CLOSE_STEPS
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.rule import all_rules
from gradscope.run_report import RunReport
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import poisoned

INFO, WARNING, CRITICAL = Severity
TREND, ONSET, STRUCTURE, CONTRACT = 1.0, 3.0, 4.0, 10.0
HEALTHY = build()
BROKEN_AT_50 = build(pulses={"loss": lambda step: 1.4 if step < 50 else math.nan})


def hit(step: int = 0, *, strength: float = STRUCTURE, severity: Severity = CRITICAL, modules: tuple[str, ...] = ()) -> Hit:
    return Hit(modules, step, step + 5, {"step": step}, f"It began at step {step}.", Remedy("Mend it."), severity, strength)


@final
@dataclass(frozen=True)
class Claims(Rule):
    """Claims ``hits``, whatever the timeline."""

    family: ClassVar[str] = "loop wiring"
    needs: ClassVar[tuple[str, ...]] = ()

    named: str
    kind: str
    hits: tuple[Hit, ...]
    explains: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.named

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        yield from self.hits


def cause(name: str, explains: str = "", *hits: Hit, **claimed: Any) -> Rule:
    return Claims(name, "cause", hits or (hit(**claimed),), tuple(explains.split()))


def symptom(name: str, *hits: Hit, **claimed: Any) -> Rule:
    return Claims(name, "symptom", hits or (hit(**claimed),))


def judge(*rules: Rule, timeline: Timeline = HEALTHY) -> RunReport:
    return diagnose(timeline, rules)


def names(report: RunReport) -> list[str]:
    return [finding.rule for finding in report.findings]


def explained_by(report: RunReport, rule: str) -> tuple[str, ...]:
    return next(finding.explains for finding in report.findings if finding.rule == rule)


def confidence(report: RunReport, rule: str) -> float:
    return next(finding.confidence for finding in report.findings if finding.rule == rule)


def share(strength: float, *rivals: float) -> float:
    """Softmax of ``strength`` against ``rivals`` and "unknown", which weighs 2."""
    weights = np.exp([strength, 2.0, *rivals])
    return float(weights[0] / weights.sum())


# -- what explains what


@pytest.mark.parametrize(("begins", "explained"), [(0, True), (9, True), (12, True), (13, False), (40, False)])
def test_a_cause_explains_what_comes_with_it_or_later(begins, explained):
    report = judge(cause("c", "s", step=begins), symptom("s", step=10))
    assert explained_by(report, "c") == (("s",) if explained else ())


def test_a_cause_explains_only_what_it_names():
    report = judge(cause("c", "s", step=0), symptom("s", step=5), symptom("other", step=5))
    assert explained_by(report, "c") == ("s",)


def test_a_cause_that_a_deeper_one_explains_is_not_on_top_however_sure():
    shallow = cause("shallow", "s", step=4, strength=5.0)
    report = judge(shallow, cause("deep", "shallow s", step=0, severity=WARNING), symptom("s", step=6))
    assert report.diagnosis == "deep"
    assert names(report) == ["deep", "shallow", "s"]
    assert explained_by(report, "deep") == ("shallow", "s")
    assert judge(shallow, cause("guess", "shallow", strength=TREND)).diagnosis is None


def test_a_broken_contract_is_explained_by_another_one_only():
    broken = cause("contract", step=4, strength=CONTRACT)
    report = judge(broken, cause("guess", "contract", step=0, strength=9.0))
    assert report.diagnosis == "contract"
    assert explained_by(report, "guess") == ()
    report = judge(broken, cause("deep", "contract", step=0, severity=WARNING, strength=CONTRACT))
    assert report.diagnosis == "deep"
    assert explained_by(report, "deep") == ("contract",)
    certain = symptom("s", step=4, strength=CONTRACT)
    assert explained_by(judge(certain, cause("guess", "s", strength=TREND)), "guess") == ("s",)


def test_a_deeper_cause_that_came_later_is_not_deeper():
    report = judge(cause("shallow", step=4), cause("deep", "shallow", step=30, strength=TREND))
    assert report.diagnosis == "shallow"
    assert explained_by(report, "deep") == ()


def test_each_hit_of_a_rule_is_explained_for_itself():
    report = judge(cause("c", "s", step=20), symptom("s", hit(2), hit(30)))
    assert [(finding.rule, finding.first_step) for finding in report.findings] == [("c", 20), ("s", 2), ("s", 30)]
    early_and_late = cause("shallow", "", hit(2), hit(30))
    assert judge(cause("deep", "shallow", step=20, strength=TREND), early_and_late).diagnosis == "shallow"


def test_an_aside_explains_nothing_serious_and_is_never_on_top():
    aside = cause("c", "s t", severity=INFO, strength=CONTRACT)
    report = judge(aside, symptom("s", step=5), symptom("t", step=5, severity=INFO))
    assert explained_by(report, "c") == ("t",)
    assert report.diagnosis == "s"
    alone = judge(aside)
    assert (alone.diagnosis, alone.verdict, names(alone)) == (None, INFO, ["c"])


def test_no_chain_of_explanations_in_the_catalogue_is_a_ring():
    TopologicalSorter({rule.name: rule.explains for rule in all_rules()}).prepare()


# -- the onset


@pytest.mark.parametrize(("begins", "kept"), [(0, True), (52, True), (53, False)])
def test_a_cause_that_begins_after_the_blow_up_is_its_consequence(begins, kept):
    report = judge(cause("c", step=begins), symptom("s", step=90), timeline=BROKEN_AT_50)
    assert ("c" in names(report)) is kept
    assert "s" in names(report)
    assert report.checked == ("c", "s")


def test_without_a_blow_up_a_cause_may_begin_at_any_time():
    assert names(judge(cause("c", step=99))) == ["c"]


# -- the order


def test_first_the_primary_cause_then_causes_then_symptoms_then_what_is_explained():
    report = judge(
        symptom("explained", step=3),
        symptom("late", step=9, severity=WARNING, strength=5.0),
        symptom("early", step=2, severity=WARNING),
        symptom("worst", step=30),
        cause("aside", severity=INFO),
        cause("rival", severity=WARNING, strength=ONSET),
        cause("primary", "explained", severity=WARNING, strength=5.0),
    )
    assert names(report) == ["primary", "rival", "aside", "worst", "early", "late", "explained"]
    assert report.diagnosis == "primary"
    assert report.verdict is CRITICAL


def test_a_worse_cause_that_is_not_sure_gives_way_to_one_that_is():
    report = judge(cause("guess", strength=TREND), cause("sure", severity=WARNING, strength=CONTRACT))
    assert names(report) == ["sure", "guess"]
    assert report.diagnosis == "sure"


def test_of_two_broken_contracts_the_worse_is_on_top():
    report = judge(cause("a", severity=WARNING, strength=CONTRACT), cause("b", strength=CONTRACT))
    assert names(report) == ["b", "a"]


# -- where no cause is sure


def test_a_symptom_stands_with_candidates_where_no_cause_is_shown():
    possible = {rule.name for rule in all_rules() if "dead-units" in rule.explains}
    report = judge(symptom("dead-units", strength=TREND))
    assert report.diagnosis == "dead-units"
    candidates = report.findings[0].evidence["candidates"]
    assert len(candidates) == 3
    assert possible.issuperset(candidates)
    assert candidates[0] == "lr-too-high"  # the most usual of them


def test_half_shown_causes_are_the_first_candidates_the_surer_first():
    report = judge(
        cause("guess", "dead-units", strength=TREND),
        cause("late", "dead-units", step=30, strength=ONSET),
        cause("unrelated", strength=ONSET),
        symptom("dead-units", step=3, strength=TREND),
    )
    assert report.diagnosis == "dead-units"
    candidates = next(finding.evidence["candidates"] for finding in report.findings if finding.rule == "dead-units")
    assert candidates[:2] == ["late", "guess"]
    assert len(candidates) == 3
    assert "unrelated" not in candidates


def test_a_symptom_stands_also_where_a_cause_that_is_not_sure_explains_it():
    report = judge(cause("guess", "s", strength=TREND), symptom("s", step=3, strength=TREND))
    assert report.diagnosis == "s"
    assert names(report) == ["guess", "s"]
    assert next(finding.evidence["candidates"] for finding in report.findings if finding.rule == "s") == ["guess"]


def test_the_worst_symptom_stands_and_of_these_the_first():
    mild, early, late = symptom("mild", severity=WARNING), symptom("early", step=20), symptom("late", step=30)
    assert judge(mild, late, early).diagnosis == "early"
    assert judge(mild, late, early, cause("guess", "early late", strength=TREND)).diagnosis == "early"


def test_a_symptom_that_is_certain_needs_no_candidates():
    report = judge(symptom("weights-not-moving", strength=CONTRACT))
    assert report.diagnosis == "weights-not-moving"
    assert "candidates" not in report.findings[0].evidence


def test_a_cause_that_is_not_sure_is_no_diagnosis():
    report = judge(cause("guess", strength=TREND))
    assert (report.diagnosis, report.verdict, names(report)) == (None, CRITICAL, ["guess"])


def test_a_symptom_that_is_an_aside_is_no_diagnosis():
    report = judge(symptom("s", severity=INFO))
    assert (report.diagnosis, report.verdict) == (None, INFO)


# -- how sure


@pytest.mark.parametrize("strength", [TREND, ONSET, STRUCTURE, CONTRACT])
def test_a_lone_claim_is_weighed_against_the_unknown(strength):
    assert confidence(judge(cause("c", strength=strength)), "c") == pytest.approx(share(strength), abs=1e-3)
    assert confidence(judge(symptom("s", strength=strength)), "s") == pytest.approx(share(strength), abs=1e-3)


def test_a_cause_gains_by_each_symptom_that_it_explains():
    report = judge(cause("c", "s t u", strength=ONSET), symptom("s"), symptom("t"), cause("u"))
    assert confidence(report, "c") == pytest.approx(share(ONSET + 2 * 0.5), abs=1e-3)


def test_competing_causes_share():
    report = judge(cause("a", strength=ONSET), cause("b", strength=STRUCTURE))
    assert confidence(report, "a") == pytest.approx(share(ONSET, STRUCTURE), abs=1e-3)
    assert confidence(report, "b") == pytest.approx(share(STRUCTURE, ONSET), abs=1e-3)


def test_equal_causes_leave_none_on_top():
    report = judge(cause("a", "s"), cause("b", "s"), symptom("s", step=3))
    assert report.diagnosis == "s"


def test_broken_contracts_asides_and_explained_causes_do_not_compete():
    rivals = [
        cause("contract", strength=CONTRACT),
        cause("aside", severity=INFO),
        cause("explained", severity=WARNING, strength=5.0),
    ]
    report = judge(cause("c", "explained", strength=ONSET), *rivals)
    assert confidence(report, "c") == pytest.approx(share(ONSET), abs=1e-3)
    assert confidence(report, "contract") == pytest.approx(share(CONTRACT), abs=1e-3)
    assert confidence(report, "aside") == pytest.approx(share(STRUCTURE), abs=1e-3)


# -- rules that cannot look


@final
@dataclass(frozen=True)
class Raises(Rule):
    """Has a mistake in it."""

    family: ClassVar[str] = "loop wiring"
    kind: ClassVar[str] = "cause"

    needs: tuple[str, ...] = ()

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        yield hit()
        raise ZeroDivisionError("no layers")


@pytest.mark.parametrize(
    ("rule", "fault"),
    [(Raises(), "failed with ZeroDivisionError: no layers"), (Raises(("pulse.typo",)), "failed with ValueError: ")],
    ids=["in check", "in obstacle"],
)
def test_a_rule_that_raises_is_skipped_and_takes_no_other_with_it(rule, fault):
    report = judge(cause("a"), rule, cause("b"))
    assert set(names(report)) == set(report.checked) == {"a", "b"}
    assert list(report.skipped) == [rule.name]
    assert report.skipped[rule.name].startswith(fault)


def test_what_could_not_look_is_listed_with_the_reason():
    report = diagnose(empty(), chosen(["dead-units", "lr-too-low"], None))
    assert report.checked == ()
    assert set(report.skipped) == {"dead-units", "lr-too-low"}
    assert all(reason for reason in report.skipped.values())


# -- the choice of rules


def test_all_rules_run_unless_some_are_chosen():
    assert chosen(None, None) == chosen((), ()) == all_rules()
    assert [rule.name for rule in chosen(["lr-too-low", "dead-units", "lr-too-low"], None)] == ["lr-too-low", "dead-units"]
    assert [rule.name for rule in chosen(["lr-too-low", "dead-units"], ["dead-units"])] == ["lr-too-low"]
    assert {rule.name for rule in all_rules()} - {rule.name for rule in chosen(None, ["dead-units"])} == {"dead-units"}


@pytest.mark.parametrize("argument", [0, 1], ids=["select", "ignore"])
def test_a_name_that_no_rule_has_is_told_with_near_ones(argument):
    def pick(*wrong: str):
        return chosen(*(wrong if place == argument else None for place in range(2)))

    with pytest.raises(UnknownRule, match=r"^There is no rule named 'dead-unit'; did you mean dead-units.*\?$"):
        pick("dead-units", "dead-unit")
    with pytest.raises(UnknownRule, match=r"^There is no rule named 'qqq'; `gradscope rules` lists them\.$"):
        pick("qqq", "www")


# -- the report around the findings


def test_a_report_counts_steps_and_carries_what_it_was_given():
    report = diagnose(build(steps=range(4), total=30), [cause("c")], run="a/b", damage=("lost",))
    assert (report.run, report.steps, report.sampled_steps, report.damage) == ("a/b", 30, 4, ("lost",))
    assert report.first_loss == pytest.approx(1.4)
    assert report.last_loss < report.first_loss


@pytest.mark.parametrize(
    ("seconds", "own", "overhead"),
    [(0.0102, 0.0002, 0.02), (lambda step: 0.02 if step % 2 else 0.01, 0.005, 0.5), (0.01, 0.0, 0.0)],
)
def test_the_overhead_is_a_share_of_the_bare_time(seconds, own, overhead):
    assert judge(timeline=build(pulses={"seconds": seconds, "own_seconds": own})).overhead == pytest.approx(overhead)


def test_the_overhead_after_the_start_is_told_by_itself():
    dear_start = build(total=300, pulses={"seconds": 0.02, "own_seconds": lambda step: 0.01 if step < CLOSE_STEPS else 0.0})
    report = judge(timeline=dear_start)
    assert (report.overhead, report.overhead_later) == (pytest.approx(1.0 / 5.0), 0.0)
    assert math.isnan(judge(timeline=build(total=CLOSE_STEPS, steps=range(4))).overhead_later)


@pytest.mark.parametrize("timeline", [empty(), build(pulses={"seconds": math.nan, "own_seconds": math.nan})])
def test_an_overhead_that_was_not_measured_is_not_known(timeline):
    assert math.isnan(judge(timeline=timeline).overhead)


def profiled(timeline: Timeline) -> tuple[int | None, list[float]]:
    report = judge(timeline=timeline)
    return report.profile_step, [row.activation for row in report.profile]


def test_the_profile_is_of_the_last_sampled_step_before_the_onset():
    scale = {"activation.rms": lambda step: float(step + 1)}

    def breaking(first: int, **given: Any) -> Timeline:
        return build(columns=scale, pulses={"loss": lambda step: 1.4 if step < first else math.nan}, **given)

    assert profiled(breaking(50)) == (45, [46, 46, 46])
    assert profiled(breaking(52)) == (50, [51, 51, 51])
    assert profiled(breaking(0)) == (0, [1, 1, 1])
    assert profiled(breaking(50, steps=[60, 70])) == (60, [61, 61, 61])
    assert profiled(build(columns=scale)) == (95, [96, 96, 96])
    assert profiled(build(steps=[], total=10)) == (None, [])


def test_the_profile_shows_each_layers_numbers_and_marks_what_is_named():
    columns = {
        "activation.rms": {"layers.2": 5.0},
        "activation_gradient.rms": {"layers.2": 6.0},
        "update.ratio": {"layers.2.weight": 7.0},
    }
    report = judge(cause("c", modules=("layers.2", "layers.3")), timeline=build(columns=columns))
    assert [(row.module, row.type, row.marked) for row in report.profile] == [
        ("layers.0", "Linear", False),
        ("layers.2", "Linear", True),
        ("layers.4", "Linear", False),
    ]
    row = report.profile[1]
    assert (row.activation, row.gradient, row.update) == (5.0, 6.0, 7.0)


# -- purity


def mixed(step: int) -> float:
    return math.nan if step > 60 else 1.4 + 0.3 * math.sin(7 * step)


def runs() -> list[Timeline]:
    vanishing = {"layers.0.weight": 0.0}
    return [
        build(),
        build(columns={"weight_gradient.carried": 1.0, "update.ratio": vanishing}, pulses={"loss": mixed}),
        build(columns={"activation.rms": lambda step: 2.0**step, "activation.active_low": 0.0}, pulses={"loss": 2.3}),
        poisoned(math.inf),
        empty(),
    ]


def test_the_same_numbers_give_the_same_report():
    for first, second in zip(runs(), runs(), strict=True):
        report = diagnose(first, all_rules())
        assert repr(report) == repr(diagnose(second, all_rules())) == repr(diagnose(first, all_rules()))


def test_what_else_was_asked_of_a_timeline_changes_nothing():
    for fresh, used in zip(runs(), runs(), strict=True):
        for rule in reversed([rule for rule in all_rules() if rule.obstacle(used) is None]):
            list(rule.check(used))
        assert repr(diagnose(used, all_rules())) == repr(diagnose(fresh, all_rules()))


def test_the_order_of_the_rules_does_not_matter_to_what_is_found():
    rules = [cause("a", "b s"), cause("b", "t", step=1), symptom("s", step=2), symptom("t", step=3, strength=TREND)]
    forward, backward = judge(*rules), judge(*reversed(rules))
    assert {(f.rule, f.confidence) for f in forward.findings} == {(f.rule, f.confidence) for f in backward.findings}
    assert names(forward) == names(backward)
    assert forward.diagnosis == backward.diagnosis == "a"


def test_a_hit_is_left_as_it_is():
    claimed = hit(strength=TREND)
    before = replace(claimed, evidence=dict(claimed.evidence))
    judge(symptom("dead-units", claimed))
    assert claimed == before


def test_a_healthy_run_of_all_rules_has_nothing_on_top():
    report = diagnose(build(SMALL), all_rules())
    assert (report.diagnosis, report.verdict_label, report.findings) == (None, "healthy", ())
    assert set(report.checked).isdisjoint(report.skipped)
    assert {*report.checked, *report.skipped} == {rule.name for rule in all_rules()}
