"""Trainings whose model, blocks, step or optimizer go through ``torch.compile``.

The backend is the one that compiles nothing after the graph is taken: what is traced, guarded and traced again is the same, and
it takes no compiler of C++.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import CLASSES
from tests.stacks.tasks import COMMON
from tests.stacks.tasks import INPUTS
from tests.stacks.tasks import classes
from tests.stacks.tasks import fit
from tests.stacks.tasks import sgd

BACKEND = "aot_eager"
DIFFERS = "sampled steps run without the compiler, whose arithmetic differs in the last bits"
SECTION = "torch.compile"


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Classifier(nn.Module):
    def __init__(self, *, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def wrapped(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    compiled = torch.compile(model, backend=BACKEND)
    eye.attach(compiled)
    fit(eye, compiled, sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


def wrapped_later(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    eye.attach(model)
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    fit(eye, compiled, sgd(model.parameters(), fault), classes(steps), fault)
    return state_of(model)


def in_place(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    optimizer = sgd(model.parameters(), fault)
    eye.attach(model)
    model.compile(backend=BACKEND)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


def blocks(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    optimizer = sgd(model.parameters(), fault)
    model.blocks[0].compile(backend=BACKEND)
    model.blocks[1] = torch.compile(model.blocks[1], backend=BACKEND)
    eye.attach(model)
    fit(eye, model, optimizer, classes(steps), fault)
    return state_of(model)


def several(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Two models, each with its own loss, trained in turn; the fault is in the second."""
    torch.compiler.reset()
    models = {"left": Classifier(), "right": Classifier(width=24)}
    compiled = {name: torch.compile(model, backend=BACKEND) for name, model in models.items()}
    optimizers = {name: sgd(model.parameters(), fault if name == "right" else "") for name, model in models.items()}
    for name, model in models.items():
        eye.attach(model, name=name)
    for inputs, labels in classes(steps):
        for name, call in compiled.items():
            if fault != "zero_grad" or name == "left":
                optimizers[name].zero_grad()
            loss = nn.functional.cross_entropy(call(inputs), labels)
            loss.backward()
            optimizers[name].step()
            eye.stepped(loss, run=name)
    return state_of(*models.values())


def loss_function(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    optimizer = sgd(model.parameters(), fault)

    @torch.compile(backend=BACKEND, fullgraph=True)
    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs), labels)

    eye.attach(model)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = loss_of(inputs, labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def whole_step(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    optimizer = sgd(model.parameters(), fault)
    eye.attach(model)

    @torch.compile(backend=BACKEND)
    def step(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        optimizer.step()
        return loss

    for inputs, labels in classes(steps):
        eye.stepped(step(inputs, labels))
    return state_of(model)


def compiled_optimizer(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    torch.compiler.reset()
    model = Classifier()
    optimizer = sgd(model.parameters(), fault)
    eye.attach(model)
    compiled = torch.compile(model, backend=BACKEND)
    step = torch.compile(optimizer.step, backend=BACKEND)
    for inputs, labels in classes(steps):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(compiled(inputs), labels)
        loss.backward()
        step()
        eye.stepped(loss)
    return state_of(model)


def _stack(name: str, title: str, program: Callable[[Eye, str, int], dict[str, torch.Tensor]]) -> Stack:
    return Stack(name=name, title=title, section=SECTION, train=program, faults=COMMON, differs=DIFFERS)


STACKS = (
    _stack("compile-wrapped", "`torch.compile(model)`, attached to what it gives", wrapped),
    _stack("compile-wrapped-later", "`torch.compile(model, fullgraph=True)`, attached before it", wrapped_later),
    _stack("compile-in-place", "`model.compile()`, attached before it", in_place),
    _stack("compile-blocks", "compiled submodules", blocks),
    _stack("compile-several", "several compiled models", several),
    _stack("compile-loss", "a compiled function of model and loss", loss_function),
    _stack("compile-step", "a compiled training step", whole_step),
    _stack("compile-optimizer", "a compiled optimizer", compiled_optimizer),
)
