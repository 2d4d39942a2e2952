from __future__ import annotations

import math
from typing import Any

import pytest

from gradscope.records import Hit
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.records import Wiring
from gradscope.rules.double_softmax import DoubleSoftmax
from gradscope.timeline import Timeline
from tests.timelines import SMALL
from tests.timelines import build
from tests.timelines import empty
from tests.timelines import module
from tests.timelines import poisoned

FLAT = {"loss": 1.7}


def hits(timeline: Timeline) -> list[Hit]:
    return list(DoubleSoftmax().check(timeline))


def loss(kind: str, producer: str | None, *, classes: int | None = None, times: int = 1, **changes: Any) -> Timeline:
    info = LossInfo(kind, "Backward0", "mean", producer=producer, classes=classes)
    return build(wiring=Wiring((info,) * times, graphs=times), **changes)


@pytest.mark.parametrize(("classes", "floor"), [(2, 0.313), (10, 1.461), (1000, 5.909)])
def test_tells_the_floor_under_which_the_loss_cannot_fall(classes: int, floor: float) -> None:
    (hit,) = hits(loss("cross_entropy", "softmax", classes=classes, pulses=FLAT))
    assert hit.evidence["floor"] == pytest.approx(floor, abs=1e-3)
    assert f"{floor:.3g}" in hit.message
    assert hit.severity is Severity.CRITICAL


def test_names_the_module_and_takes_it_out() -> None:
    (hit,) = hits(loss("cross_entropy", "softmax", net=SMALL + module("layers.5", "Softmax", "activation")))
    assert hit.modules == ("layers.5",)
    assert hit.remedy.code == 'model.set_submodule("layers.5", torch.nn.Identity())'


def test_names_no_module_where_a_function_does_it() -> None:
    attention = module("attention.softmax", "Softmax", "activation")
    (hit,) = hits(loss("cross_entropy", "softmax", net=attention + SMALL))
    assert hit.modules == () and hit.remedy.code is None


def test_finds_a_sigmoid_before_a_loss_with_logits() -> None:
    (hit,) = hits(loss("bce_with_logits", "sigmoid", net=SMALL + module("layers.5", "Sigmoid", "activation")))
    assert "0.31 for positives and 0.69 for negatives" in hit.message
    assert hit.modules == ("layers.5",)


def test_is_a_warning_where_training_works() -> None:
    (hit,) = hits(loss("cross_entropy", "softmax", classes=10))
    assert hit.severity is Severity.WARNING


def test_a_log_softmax_is_for_information() -> None:
    (hit,) = hits(loss("cross_entropy", "log_softmax", classes=10, pulses=FLAT))
    assert hit.severity is Severity.INFO


def test_says_it_once_though_every_graph_shows_it() -> None:
    assert len(hits(loss("cross_entropy", "softmax", times=3))) == 1


@pytest.mark.parametrize(
    ("kind", "producer"),
    [
        ("cross_entropy", "linear"),
        ("cross_entropy", None),
        ("bce", "sigmoid"),
        ("nll", "log_softmax"),
        ("bce_with_logits", None),
    ],
)
def test_is_silent_where_the_two_belong_together(kind: str, producer: str | None) -> None:
    assert not hits(loss(kind, producer))


def test_survives_what_is_not_finite_or_not_there() -> None:
    assert not hits(empty())
    assert not hits(build())
    assert len(hits(loss("cross_entropy", "softmax", steps=()))) == 1
    for value in (math.nan, math.inf):
        hits(poisoned(value))
