"""The examples in CONTRIBUTING.md: a rule whose tests pass, and an instrument that reads what the real one does."""

from __future__ import annotations

import inspect
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gradscope.capture.graph import Graph
from gradscope.capture.instruments import graphsize
from gradscope.capture.instruments.instrument import Instrument
from gradscope.rule import Rule

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
MODULE = "gradscope.rules.constant_input"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example rule as the module that the page says it is."""
    module = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    exec(_blocks()[0], vars(module))
    return module


def test_the_example_is_a_rule_named_for_its_file(example: ModuleType) -> None:
    (rule,) = [kind() for _, kind in inspect.getmembers(example, inspect.isclass) if kind.__module__ == MODULE]
    assert isinstance(rule, Rule)
    assert rule.name == "constant-input"


def test_the_tests_of_the_example_pass(example: ModuleType) -> None:
    names: dict[str, object] = {}
    exec(_blocks()[1], names)
    tests = [test for name, test in names.items() if name.startswith("test_") and inspect.isfunction(test)]
    assert len(tests) == 3
    for test in tests:
        test()


def test_the_instrument_reads_what_the_real_one_does() -> None:
    names = dict(vars(graphsize))
    exec(_blocks()[2], names)
    example = names["GraphSize"]
    assert example is not graphsize.GraphSize
    assert [_readings(kind()) for kind in (example, graphsize.GraphSize)] == [pytest.approx([4.0, math.nan], nan_ok=True)] * 2


def _readings(instrument: Instrument) -> list[float]:
    """With a loss of four nodes (sum, square, product, accumulation), and in the next step with none."""
    weight = torch.ones(3, requires_grad=True)
    loss = (2 * weight).square().sum()
    instrument.start_step(0)
    instrument.before_backward(loss, Graph(loss))
    found = [instrument.read((), ()) for _ in range(2)]
    return [float(reading.columns(())["step.graph_nodes"][0]) for reading in found]


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
