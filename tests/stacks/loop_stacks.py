"""What else goes on in a loop: evaluation, inference, steps that are left out, loops within loops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron


def _normalised() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def evaluated(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """After every five steps an evaluation over three batches; the training goes on in training mode."""
    model = _normalised()
    eye.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0 if fault == "rate" else 0.1)
    held_out = list(classes(3, seed=11))
    for step, (inputs, labels) in enumerate(classes(steps)):
        if fault != "mode" or step < 5:
            model.train()
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
        if step % 5 == 4:
            if fault != "validation":
                model.eval()
            with torch.no_grad():
                sum(float(functional.cross_entropy(model(others), wanted)) for others, wanted in held_out)
    return state_of(model)


def inferring(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """Forward passes that nothing learns from: between steps, between forward and backward, and in inference mode."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3.0 if fault == "rate" else 3e-3)
    for inputs, labels in classes(steps):
        with torch.inference_mode():
            model(10 * inputs)
        if fault != "zero_grad":
            optimizer.zero_grad()
        out = model(inputs)
        with torch.no_grad():
            target = model(inputs + 0.01).softmax(1)
        loss = functional.cross_entropy(out, labels) + 0.1 * (out.softmax(1) - target).square().mean()
        with torch.inference_mode():
            model(inputs[:4])
        loss.backward()
        with torch.no_grad():
            model(inputs[:2])
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def skipping(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """Every fifth batch is bad; its loss is thrown away after the backward pass, and no step is made."""
    model = perceptron()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = torch.optim.SGD(trained.parameters(), lr=30.0 if fault == "rate" else 0.1)
    taken = 0
    for number, (inputs, labels) in enumerate(classes(2 * steps)):
        bad = number % 5 == 3
        loss = functional.cross_entropy(model(1e6 * inputs if bad else inputs), labels)
        loss.backward()
        if bad:
            model.zero_grad(set_to_none=number % 2 == 0)
            continue
        optimizer.step()
        model.zero_grad(set_to_none=number % 2 == 0)
        eye.stepped(loss)
        taken += 1
        if taken == steps:
            break
    return state_of(model)


def meta_learning(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """MAML: two functional steps on a task, and the outer optimizer follows the gradient through them."""
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=3.0 if fault == "rate" else 3e-3)
    random = torch.Generator().manual_seed(4)
    for _ in range(steps):
        losses = []
        for _ in range(4):
            phase = 3 * torch.rand(1, generator=random)
            seen, asked = (4 * torch.rand(2, 16, 1, generator=random) - 2).unbind()
            weights = dict(model.named_parameters())
            for _ in range(2):
                inner = functional.mse_loss(functional_call(model, weights, (seen,)), torch.sin(seen + phase))
                slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
                weights = {name: w - 0.05 * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
            losses.append(functional.mse_loss(functional_call(model, weights, (asked,)), torch.sin(asked + phase)))
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def contrastive(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """Two views of each sample, each through the same model, told from all others."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(6)
    for inputs, _ in classes(steps):
        views = [inputs + 0.3 * torch.randn(inputs.shape, generator=random) for _ in range(2)]
        first, second = (functional.normalize(model(view), dim=1) for view in views)
        scores = first @ second.T / 0.2
        own = torch.arange(len(inputs))
        loss = (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
    return state_of(model)


def policy_gradient(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """REINFORCE: acts one step at a time without gradients, then learns from what came of it."""
    model = perceptron()
    eye.attach(model)
    trained = model[2:] if fault == "parameters" else model
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    mean = 0.25
    for inputs, labels in classes(steps):
        with torch.no_grad():
            actions = torch.cat([torch.multinomial(model(one).softmax(1), 1) for one in inputs.split(8)]).flatten()
        rewards = (actions == labels).float()
        if fault != "zero_grad":
            optimizer.zero_grad()
        chances = functional.log_softmax(model(inputs), dim=1)
        loss = -((rewards - mean) * chances[torch.arange(len(actions)), actions]).mean()
        loss.backward()
        optimizer.step()
        mean += 0.1 * (float(rewards.mean()) - mean)
        eye.stepped(loss)
    return state_of(model)


SECTION = "Loop shapes"
_UNCLEARED = {"zero_grad": "missing-zero-grad", "parameters": "optimizer-misses-parameters"}

STACKS = (
    Stack(
        name="evaluation",
        title="training and evaluation in turns",
        section=SECTION,
        train=evaluated,
        faults={"rate": "lr-too-high", "mode": "eval-mode-training", "validation": "train-mode-eval"},
        steps=60,
    ),
    Stack(
        name="inference-between",
        title="`no_grad` and `inference_mode` passes between and amid steps",
        section=SECTION,
        train=inferring,
        faults={"rate": "lr-too-high", "zero_grad": "missing-zero-grad"},
    ),
    Stack(
        name="skipped-batches",
        title="steps left out by the program, their gradients thrown away",
        section=SECTION,
        train=skipping,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="maml",
        title="meta-learning with a functional inner loop",
        section=SECTION,
        train=meta_learning,
        faults={"rate": "lr-too-high", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="contrastive",
        title="contrastive learning, two passes of one model",
        section=SECTION,
        train=contrastive,
        faults=_UNCLEARED,
    ),
    Stack(
        name="policy-gradient",
        title="a policy gradient",
        section=SECTION,
        train=policy_gradient,
        faults=_UNCLEARED,
    ),
)
