"""What a rule is, and where the rules are found."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC
from abc import abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

from gradscope.records import Hit
from gradscope.timeline import Timeline


class Rule(ABC):
    """One defect that gradscope can name, or one symptom of it. Its docstring is its page in the documentation.

    A rule is a frozen dataclass whose fields are its thresholds. ``check`` reads numbers and yields hits; it keeps no state,
    needs no torch and runs no other rule. It sees the whole timeline at once, so that lasting and onset are array operations.
    """

    family: ClassVar[str]
    kind: ClassVar[str]  # "cause" or "symptom"
    needs: ClassVar[tuple[str, ...]]  # columns ("activation.rms"), pulse fields ("pulse.loss") and facts ("fact.wiring")
    least_steps: ClassVar[int] = 1  # steps that a run must have before the rule can speak
    explains: ClassVar[tuple[str, ...]] = ()  # names of the findings that this cause brings about

    @property
    def name(self) -> str:
        """The public name, in kebab-case: that of the module the rule stands in."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def check(self, timeline: Timeline) -> Iterator[Hit]:
        """Yield what the timeline shows of this defect, usually one hit that names all modules concerned."""

    def obstacle(self, timeline: Timeline) -> str | None:
        """Why this rule cannot look at this timeline, as a sentence for the user; None where it can."""
        if timeline.step_count < self.least_steps:
            return f"needs {self.least_steps} steps, the run has {timeline.step_count}"
        for need in self.needs:
            lack = timeline.lack(need)
            if lack is not None:
                return lack
        return None


@cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule in ``gradscope.rules``, by name."""
    package = importlib.import_module("gradscope.rules")
    modules = (importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__))
    rules = [
        member()
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Rule) and member.__module__ == module.__name__
    ]
    return tuple(sorted(rules, key=lambda rule: rule.name))
