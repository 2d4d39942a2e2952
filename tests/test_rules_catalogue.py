"""What every rule must be, whichever it is."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from gradscope.report.pages import FAMILIES
from gradscope.report.pages import HEADINGS
from gradscope.report.pages import pages
from gradscope.rule import Rule
from gradscope.rule import all_rules

ROOT = Path(__file__).parents[1]
FACTS = ("wiring", "loss", "reduction", "optimizer", "steps")

# Every name that a release may use: family -> (causes, symptoms). A name, once released, keeps its meaning.
NAMES = {
    "gradient flow": (
        "recurrent-explosion recurrent-vanishing detached-parameters",
        "exploding-gradients vanishing-gradients gradient-spikes",
    ),
    "initialisation": ("init-too-large init-too-small symmetric-init", "initial-loss-off"),
    "learning rate, optimizer": (
        "lr-too-high lr-too-low adam-second-moment-lag adam-epsilon-dominates excessive-weight-decay",
        "loss-divergence loss-plateau oscillating-loss",
    ),
    "normalisation": (
        "missing-normalization unnormalized-input unscaled-target tiny-batch-norm",
        "residual-growth activation-growth",
    ),
    "activations": ("saturating-activation", "dead-units saturated-units collapsed-output"),
    "loop wiring": (
        """missing-zero-grad optimizer-misses-parameters weights-changed-outside-optimizer eval-mode-training train-mode-eval
        idle-parameters clipping-too-tight clipping-misplaced accumulation-not-averaged growing-graph""",
        "weights-not-moving",
    ),
    "loss wiring": (
        "loss-shape-broadcast double-softmax loss-input-mismatch output-range loss-reduction-sum loss-unbounded-below",
        "",
    ),
    "numerics": (
        "nonfinite-origin fp16-overflow fp16-underflow bf16-stalled-updates",
        "nonfinite-gradients nonfinite-loss",
    ),
    "data": ("outlier-batch constant-input nonfinite-input unshuffled-data labels-unrelated", ""),
    "transformer": ("attention-logit-growth output-logit-drift", "attention-entropy-collapse"),
    "distributed": ("rank-divergence rank-outlier", ""),
}
PLACES = {
    name: (family, kind)
    for family, kinds in NAMES.items()
    for kind, names in zip(("cause", "symptom"), kinds, strict=True)
    for name in names.split()
}

each_rule = pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.name)


def test_there_are_rules():
    assert all_rules()


def test_names_are_unique():
    names = [rule.name for rule in all_rules()]
    assert len(names) == len(set(names))


def test_families_are_those_of_the_catalogue():
    assert tuple(NAMES) == FAMILIES


@each_rule
def test_its_name_family_and_kind_are_as_released(rule: Rule):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
    assert PLACES.get(rule.name) == (rule.family, rule.kind)


@each_rule
def test_it_is_a_frozen_dataclass_of_thresholds(rule: Rule):
    assert type(rule).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(rule))
    assert all(isinstance(getattr(rule, field.name), bool | int | float | str | tuple) for field in dataclasses.fields(rule))


@each_rule
def test_it_is_final_and_alone_in_its_module(rule: Rule):
    assert type(rule).__final__  # type: ignore[attr-defined]
    module = inspect.getmodule(type(rule))
    assert [other.name for other in all_rules() if inspect.getmodule(type(other)) is module] == [rule.name]


@each_rule
def test_its_docstring_is_a_page(rule: Rule):
    text = inspect.cleandoc(type(rule).__doc__ or "")
    first, empty, *_ = text.splitlines()
    assert first.endswith(".")
    assert empty == ""
    assert tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)) == HEADINGS
    sections = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    assert all(section.strip() for section in sections)


@each_rule
def test_it_explains_what_has_a_name(rule: Rule):
    assert [name for name in rule.explains if name not in PLACES] == []
    assert rule.name not in rule.explains
    assert len(rule.explains) == len(set(rule.explains))
    assert rule.kind == "cause" or not rule.explains


@each_rule
def test_it_needs_what_can_be_there(rule: Rule):
    for need in rule.needs:
        kind, _, name = need.partition(".")
        known = {"pulse": PULSE_FIELDS, "fact": FACTS, **STATISTICS}.get(kind, ())
        assert name in known, need
    assert rule.least_steps >= 1


@each_rule
def test_it_has_tests_of_its_own(rule: Rule):
    assert (ROOT / "tests" / "rules" / f"test_{rule.name.replace('-', '_')}.py").is_file()


@each_rule
def test_its_page_is_fresh(rule: Rule):
    file = ROOT / "docs" / "rules" / f"{rule.name}.md"
    assert file.read_text(encoding="utf-8") == pages([rule])[file.name]
