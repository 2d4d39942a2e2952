"""When a loss is given something else than it is made for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.rules.loss_input_mismatch import LossInputMismatch
from gradscope.timeline import Timeline
from tests.timelines import build
from tests.timelines import classification
from tests.timelines import empty
from tests.timelines import one_loss
from tests.timelines import poisoned
from tests.timelines import regressed

FALLS = {"loss": lambda step: -0.1 * step}


def hits(timeline: Timeline) -> list[Hit]:
    return list(LossInputMismatch().check(timeline))


def run(kind: str, mean: float = 0.0, *, pulses: dict[str, Any] = FALLS, columns: Any = None, **info: Any) -> Timeline:
    facts = {"classes": 10, "input_shape": (32, 10), "target_shape": (32,), **info}
    return build(columns={"loss.input_mean": mean, **(columns or {})}, pulses=pulses, wiring=one_loss(kind, **facts))


def test_names_raw_outputs_in_a_likelihood() -> None:
    (hit,) = hits(run("nll", 0.05))
    assert hit.severity is Severity.CRITICAL and hit.strength == 10
    assert "-2.3" in hit.message and "0.05" in hit.message
    assert "cross_entropy" in str(hit.remedy.code)


@pytest.mark.parametrize("producer", ["softmax", "sigmoid", "relu", "tanh"])
def test_names_what_makes_no_log_probabilities(producer: str) -> None:
    (hit,) = hits(run("nll", -2.4, pulses={}, producer=producer))
    assert f"output of a {producer}" in hit.message


def test_the_remedies_are_code_that_runs() -> None:
    torch = pytest.importorskip("torch")
    names = {"torch": torch, "model": torch.nn.Linear(3, 10), "x": torch.randn(4, 3), "y": torch.arange(4)}
    exec(str(hits(run("nll", 0.05))[0].remedy.code), names)
    exec(str(hits(run("cross_entropy", classes=1))[0].remedy.code), {**names, "model": torch.nn.Linear(3, 1)})
    exec(str(hits(run("kl_div", producer="softmax"))[0].remedy.code), {**names, "y": torch.rand(4, 10)})
    assert math.isfinite(names["loss"].item())


def test_log_probabilities_normalised_by_hand_are_right() -> None:
    assert not hits(run("nll", -2.4, pulses={}))
    assert not hits(run("nll", -1.2))
    assert hits(run("nll", -1.1))


def test_a_loss_that_stays_above_zero_or_is_no_mean_is_left_alone() -> None:
    assert not hits(run("nll", 0.05, pulses={}))
    assert not hits(run("nll", 0.05, reduction="none"))
    assert not hits(run("nll", -2.4, pulses={"loss": lambda step: -2.0}, columns={"loss.weight": -1.0}))


def test_names_divergences_of_what_is_no_logarithm() -> None:
    assert hits(run("kl_div", producer="softmax", classes=None))
    assert not hits(run("kl_div", -2.4, producer="log_softmax", classes=None))


def test_names_a_connectionist_loss_of_what_is_no_logarithm() -> None:
    facts: dict[str, Any] = {"classes": None, "input_shape": (12, 32, 5), "target_shape": None, "reduction": "none"}
    (hit,) = hits(run("ctc", 0.2, producer="softmax", **facts))
    assert hit.remedy.code == "output = model(x).clamp_min(1e-30).log()"
    (raw,) = hits(run("ctc", 0.2, **facts))  # raw outputs, and a loss below zero
    assert raw.remedy.code == "output = model(x).log_softmax(dim=-1)"
    assert not hits(run("ctc", 0.2, pulses={}, **facts))
    assert not hits(run("ctc", -1.6, pulses={}, producer="log_softmax", **facts))


def masks(low: float, high: float, *, kind: str = "bce_with_logits", **given: Any) -> list[Hit]:
    columns = {**regressed(low=low, high=high), **given.pop("columns", {})}
    return hits(build(columns=columns, wiring=one_loss(kind), **given))


def test_names_targets_that_are_no_shares() -> None:
    (hit,) = masks(0.0, 255.0)
    assert hit.severity is Severity.CRITICAL and hit.strength == 10
    assert "from 0 to 255" in hit.message
    assert hit.remedy.code == "y = y / 255  # between 0 and 1"
    assert masks(-1.0, 1.0, kind="bce")[0].remedy.code == "y = (y - -1) / 2  # between 0 and 1"
    assert not masks(0.0, 255.0, kind="mse")


@pytest.mark.parametrize(
    ("low", "high", "severity"),
    [(0.0, 1.0, None), (-0.009, 1.009, None), (0.0, 1.02, Severity.WARNING), (0.0, 1.6, Severity.CRITICAL)],
)
def test_boundaries_of_shares(low: float, high: float, severity: Severity | None) -> None:
    found = masks(low, high)
    assert [hit.severity for hit in found] == ([severity] if severity is not None else [])
    assert all(hit.severity is Severity.CRITICAL for hit in masks(low, high, pulses=FALLS))


def test_one_batch_in_many_breaks_no_contract() -> None:
    high = {"loss.target_high": lambda step: 255.0 if step % 3 == 0 else 1.0}
    assert not masks(0.0, 1.0, columns=high)
    gaps = {"loss.target_high": lambda step: 255.0 if step % 3 == 0 else math.nan}
    assert masks(0.0, 1.0, columns=gaps)  # captured on these steps only


def test_targets_count_where_it_is_plain_whose_they_are() -> None:
    (square,), (entropy,) = one_loss("mse").losses, one_loss("bce_with_logits").losses
    both = classification(losses=(square, entropy))
    columns = {**regressed(), "loss.target_low": 0.0, "loss.target_high": {"(loss)": 255.0, "(loss)#1": 1.0}}
    sites = ("(loss)", "(loss)#1")
    assert not hits(build(columns=columns, wiring=both, losses=sites))
    columns["loss.target_high"] = {"(loss)": 1.0, "(loss)#1": 255.0}
    assert hits(build(columns=columns, wiring=both, losses=sites))
    assert not hits(build(columns={**columns, "loss.target_high": 255.0}, wiring=both))


def test_names_a_softmax_over_one_class() -> None:
    (hit,) = hits(run("cross_entropy", classes=1, input_shape=(32, 1), pulses={"loss": 0.0}))
    assert "binary_cross_entropy_with_logits" in str(hit.remedy.code)
    assert not hits(run("cross_entropy", classes=1, input_shape=(1,)))
    assert not hits(run("cross_entropy", classes=2))


def test_says_it_once_though_several_graphs_show_it() -> None:
    (loss,) = one_loss("nll", producer="softmax", classes=10).losses
    assert len(hits(build(wiring=classification(losses=(loss, loss))))) == 1


def test_healthy_and_broken_numbers_raise_nothing() -> None:
    for timeline in (build(), empty(), build(steps=()), poisoned(math.nan), poisoned(math.inf)):
        assert not hits(timeline)
