"""Models whose outputs, parameters or calls are of an unusual make."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import fields
from typing import Any
from typing import NamedTuple

import torch
from torch import nn

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import LOSS
from tests.stacks.tasks import advance
from tests.stacks.tasks import classes
from tests.stacks.tasks import sgd

SECTION = "Outputs of any make"


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """A mapping whose items are attributes too, as language models return it."""

    def __post_init__(self) -> None:
        for part in fields(self):  # type: ignore[arg-type]
            self[part.name] = getattr(self, part.name)


@dataclass
class Labelled(ModelOutput):
    loss: torch.Tensor
    logits: torch.Tensor


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: dict[str, list[torch.Tensor]]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(INPUTS, 32), nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def hidden(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(inputs).relu()
        return first, self.second(first).relu()


class Dictionary(Body):
    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        _, hidden = self.hidden(batch["inputs"])
        logits = self.head(hidden)
        return {"loss": LOSS(logits, batch["labels"]), "logits": logits}


class Dataclass(Body):
    def forward(self, batch: dict[str, torch.Tensor]) -> Answer:
        _, hidden = self.hidden(batch["inputs"])
        return Answer(self.head(hidden), hidden)


class Mapping(Body):
    def forward(self, *, inputs: torch.Tensor, labels: torch.Tensor) -> Labelled:
        _, hidden = self.hidden(inputs)
        logits = self.head(hidden)
        return Labelled(LOSS(logits, labels), logits)


class Nested(Body):
    def forward(self, inputs: torch.Tensor) -> Pair:
        first, second = self.hidden(inputs)
        return Pair(self.head(second), {"hidden": [first, second]})


class Generating(Body):
    """Gives one answer after another, each worked out when it is asked for."""

    def forward(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        first, second = self.hidden(inputs)
        yield self.head(second)
        yield self.head(first)


def dictionary(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Dictionary()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        advance(eye, optimizer, model({"inputs": inputs, "labels": labels})["loss"], fault)
    return state_of(model)


def data_class(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Dataclass()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        logits = model({"inputs": inputs}).logits
        advance(eye, optimizer, LOSS(logits.softmax(1) if fault == "softmax" else logits, labels), fault)
    return state_of(model)


def mapping(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Mapping()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        advance(eye, optimizer, model(inputs=inputs, labels=labels).loss, fault)
    return state_of(model)


def nested(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Nested()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        answer = model(inputs)
        loss = LOSS(answer.logits, labels) + 1e-3 * sum(hidden.square().mean() for hidden in answer.hidden["hidden"])
        advance(eye, optimizer, loss, fault)
    return state_of(model)


def generating(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    model = Generating()
    eye.attach(model)
    optimizer = sgd(model.parameters(), fault)
    for inputs, labels in classes(steps):
        loss = torch.stack([LOSS(logits, labels) for logits in model(inputs)]).mean()
        advance(eye, optimizer, loss, fault)
    return state_of(model)


STACKS = (
    Stack("dictionary", "a forward that takes and returns dictionaries", SECTION, dictionary, COMMON),
    Stack("dataclass", "a forward that returns a dataclass", SECTION, data_class, {**COMMON, "softmax": "double-softmax"}),
    Stack("model-output", "a forward that returns a mapping with attributes", SECTION, mapping, COMMON),
    Stack("nested", "a forward that returns tuples of dictionaries of lists", SECTION, nested, COMMON),
    Stack("generator", "a forward that is a generator", SECTION, generating, COMMON),
)
