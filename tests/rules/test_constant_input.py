"""When an input counts as constant: over the batch, or from step to step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.constant_input import ConstantInput
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import Net
from tests.timelines import Values
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import module
from tests.timelines import parameter
from tests.timelines import poisoned

STUCK = {"loss": 1.4}
SAME: dict[str, Values] = {"input.signal": 0.0, "input.rms": 0.0, "input.absmax": 0.0, "activation.signal": 0.0}
AGAIN: dict[str, Values] = {"input.repeated": lambda step: float(step > 0)}


def hits(timeline: Timeline) -> list[Hit]:
    return list(ConstantInput().check(timeline))


def run(columns: dict[str, Any], **given: Any) -> Timeline:
    return build(columns=columns, **{"pulses": STUCK, **given})


def test_names_inputs_of_zeros() -> None:
    (hit,) = hits(run(SAME))
    assert hit.modules == ("x",)
    assert hit.first_step == 0 and hit.severity is Severity.CRITICAL
    assert "does not vary over the batch" in hit.message


def test_the_remedy_fails_on_such_a_batch_only() -> None:
    (hit,) = hits(run(SAME))
    torch_like = type(
        "T", (), {"__getitem__": lambda self, at: self, "__ne__": lambda self, o: self, "any": lambda self: False}
    )
    with pytest.raises(AssertionError, match="equal"):
        exec(str(hit.remedy.code), {"x": torch_like()})


def test_five_sampled_steps_are_needed() -> None:
    assert not hits(run(SAME, steps=range(4)))
    assert hits(run(SAME, steps=range(5)))[0].severity is Severity.WARNING


def test_equal_numbers_far_from_zero_count_too() -> None:
    assert hits(run({**SAME, "input.rms": 3.0, "input.absmax": 3.0, "input.signal": 1e-7}))
    assert not hits(run({**SAME, "input.rms": 3.0, "input.absmax": 3.0, "input.signal": 1e-4}))


def test_one_input_that_differs_among_constant_ones_is_enough() -> None:
    columns: dict[str, Any] = {"input.signal": {"mask": 0.0}, "activation.signal": 0.0}
    assert not hits(run(columns, inputs=("x", "mask")))


def test_what_a_layer_can_tell_apart_is_not_constant() -> None:
    embedding = module("embedding", "Embedding", "embedding")
    assert not hits(run({**SAME, "activation.signal": {"layers.0": 0.5}}))
    assert not hits(run({**SAME, "activation.signal": {"embedding": 0.5}}, net=embedding + SMALL))


def test_what_dropout_makes_differ_is_constant_all_the_same() -> None:
    dropout = module("drop", "Dropout", "dropout")
    noisy = {**SAME, "activation.signal": {"layers.0": 0.0, "layers.1": 0.0, "layers.2": 0.0, "layers.3": 0.0, "layers.4": 0.0}}
    assert hits(run(noisy, net=SMALL + dropout))


def test_batches_of_one_sample_are_not_judged() -> None:
    assert not hits(run({"input.signal": math.nan, "activation.signal": math.nan}))


def test_one_batch_at_every_step_is_an_aside() -> None:
    (hit,) = hits(run(AGAIN))
    assert hit.severity is Severity.INFO
    assert "full-batch" in hit.message
    assert hits(build(columns=AGAIN))[0].severity is Severity.INFO


def test_inputs_that_stay_while_targets_change_are_not() -> None:
    changing = {**AGAIN, "loss.label_entropy": lambda step: 1.2 + 0.01 * (step % 7)}
    (hit,) = hits(run(changing))
    assert hit.severity is Severity.CRITICAL
    assert "while the targets changed" in hit.message
    assert hits(build(columns=changing))[0].severity is Severity.INFO


def test_few_repeated_batches_and_tokens_are_left_alone() -> None:
    assert not hits(run({"input.repeated": lambda step: float(step in (3, 4))}))
    assert not hits(run(AGAIN, steps=range(5)))
    assert not hits(run(AGAIN, net=module("embedding", "Embedding", "embedding") + SMALL))
    assert not hits(run(AGAIN, shared_process=True))


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan)):
        assert not hits(timeline)
    hits(poisoned(math.inf))


def test_only_steps_that_were_compared_are_counted() -> None:
    (hit,) = hits(run({"input.repeated": lambda step: 1.0 if step % 5 == 0 else math.nan}))
    known = hit.evidence["steps"]
    assert f"in {known} of the {known} sampled steps that were compared" in hit.message


def tokens(columns: dict[str, Any], **given: Any) -> Timeline:
    net = module("words", "Embedding", "embedding") + module("places", "Embedding", "embedding") + SMALL
    return run(columns, net=net, inputs=(), **given)


def test_tokens_that_are_the_same_for_every_sample() -> None:
    (hit,) = hits(tokens({"activation.signal": 0.0}))
    assert hit.modules == ("words", "places") and hit.severity is Severity.CRITICAL
    assert "same tokens" in hit.message


def test_what_attention_drops_out_does_not_tell_tokens_apart() -> None:
    words, attention = module("words", "Embedding", "embedding"), module("attention", "MultiheadAttention", "attention")
    columns = {"activation.signal": {"words": 0.0}}
    (hit,) = hits(run(columns, net=words + attention + SMALL, inputs=()))
    assert "same tokens" in hit.message
    bare = Net((), (parameter("table", (50, 8)),))  # rows of which the tokens may pick
    assert not hits(run(columns, net=bare + words + attention + SMALL, inputs=()))


def test_tokens_that_differ_or_are_not_known_are_left_alone() -> None:
    assert not hits(tokens({"activation.signal": {"places": 0.0, "layers.0": 0.0}}))
    assert not hits(tokens({"activation.signal": {"places": 0.0, "words": 0.0}}))  # another way in
    assert not hits(tokens({"activation.signal": math.nan}))
    assert not hits(tokens({"activation.signal": 0.0}, steps=range(4)))
