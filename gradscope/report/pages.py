"""A rule's page and the catalogue's index, in Markdown, from what the rule says about itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import Field
from dataclasses import fields
from typing import Any

from gradscope.rule import Rule

FAMILIES = (
    "gradient flow",
    "initialisation",
    "learning rate, optimizer",
    "normalisation",
    "activations",
    "loop wiring",
    "loss wiring",
    "numerics",
    "data",
    "transformer",
    "distributed",
)
WORDS = """## Words

- **cause**, **symptom**: what to change, and what comes of it. The report puts a cause on top, and lists what it explains.
- **for information**, an **aside**: the finding is in the report with severity `info`, and raises no alarm.
- **rms**: root mean square, the usual size of a tensor's elements.
- **update ratio**: the norm of a step over the norm of the weight that it changes; 0.1 to 1 % is usual. The *median matrix* is
  the one in the middle when all trained weight matrices are put in order by it.
- **loss of the best constant prediction**: what a model reaches that ignores its input. ln C for C classes that are equally
  frequent (2.30 for ten), the variance of the targets for the squared error.
- **training works**: it has not blown up, and its loss has come down by a tenth and lies below that of the best constant
  prediction, as far as that is known. It has *converged* below a twentieth of it.
- **blew up**: the loss was no longer finite, or grew and never came back.
- **overshoot**: 1 / s, where s is the part of a step up to which the loss of its own batch stays below where it began. Above 1
  the step was too long.
- **score**: how far a value lies from the median of the 30 before it, on a logarithmic scale, in units of their usual spread.
- **signal**: how much the samples of a batch differ; the standard deviation over the batch.
- **decade**: a factor of ten; 0.3 decades are a factor of two.
- **sampled step**: one at which all numbers are taken; of the others the record has loss, time and the like."""
HEADINGS = ("What it does", "Why it is bad", "How it is told apart", "What to do", "Known false alarms", "References")


def pages(rules: Iterable[Rule]) -> dict[str, str]:
    """Every page of docs/rules by its file name, the index included."""
    catalogue = tuple(rules)
    return {"README.md": index(catalogue), **{f"{rule.name}.md": page(rule) for rule in catalogue}}


def page(rule: Rule) -> str:
    """One rule's page: what it is called and reads, what it takes to fire, and its docstring."""
    first, _, body = inspect.cleandoc(type(rule).__doc__ or "").partition("\n")
    blocks = [f"# {rule.name}", first, _header(rule), *_thresholds(rule), body.strip()]
    return "\n\n".join(block for block in blocks if block) + "\n"


def summary(rule: Rule) -> str:
    """The first line of the rule's docstring."""
    return inspect.cleandoc(type(rule).__doc__ or "").partition("\n")[0]


def by_family(rules: Iterable[Rule]) -> dict[str, list[Rule]]:
    """The rules family by family, in the catalogue's order; causes before symptoms."""
    ordered = sorted(rules, key=lambda rule: (rule.kind, rule.name))
    names = dict.fromkeys((*FAMILIES, *(rule.family for rule in ordered)))
    grouped = {family: [rule for rule in ordered if rule.family == family] for family in names}
    return {family: members for family, members in grouped.items() if members}


def index(rules: Iterable[Rule]) -> str:
    """The table of contents, family by family."""
    blocks = ["# Rules", "What gradscope can name. `gradscope rules NAME` prints the same pages in the terminal."]
    for family, members in by_family(rules).items():
        rows = [f"| [{rule.name}]({rule.name}.md) | {rule.kind} | {summary(rule)} |" for rule in members]
        blocks += [f"## {family.capitalize()}", "\n".join(("| rule | kind | |", "| --- | --- | --- |", *rows))]
    return "\n\n".join((*blocks, WORDS)) + "\n"


def _header(rule: Rule) -> str:
    lines = [f"- Family: {rule.family}", f"- Kind: {rule.kind}", f"- Needs: {_coded(rule.needs)}"]
    if rule.least_steps > 1:
        lines.append(f"- Steps it needs: {rule.least_steps}")
    if rule.explains:
        lines.append(f"- Explains: {_coded(rule.explains)}")
    return "\n".join(lines)


def _coded(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing beyond the run itself"


def _thresholds(rule: Rule) -> list[str]:
    held = fields(rule)  # type: ignore[arg-type]  # a rule is a dataclass, which its abstract base cannot say
    if not held:
        return []
    source = inspect.getsource(type(rule))
    rows = [f"| `{field.name}` | {field.default!r} | {_comment(field, source)} |" for field in held]
    return ["\n".join(("| threshold | value | |", "| --- | ---: | --- |", *rows))]


def _comment(field: Field[Any], source: str) -> str:
    """What stands beside the field in the rule's source."""
    found = re.search(rf"^    {field.name}: [^#\n]*#\s*(.*)$", source, re.MULTILINE)
    return found[1].replace("|", r"\|") if found else ""
