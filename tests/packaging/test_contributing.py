"""The example in CONTRIBUTING.md is a rule, and its tests pass."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

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


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
