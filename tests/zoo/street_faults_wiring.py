"""Optimizers, branches and modes that are wired as users wire them by mistake."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse
from tests.zoo.street_faults_rates import Forecaster
from tests.zoo.street_faults_rates import lenet
from tests.zoo.street_faults_starts import stack
from tests.zoo.street_healthy_data import WORDS
from tests.zoo.street_healthy_data import drawn
from tests.zoo.street_healthy_data import houses
from tests.zoo.street_healthy_data import pulses
from tests.zoo.street_healthy_data import reviews
from tests.zoo.street_healthy_data import spirals
from tests.zoo.street_healthy_data import stripes
from tests.zoo.street_healthy_data import weather


def head_replaced_too_late(watch: Watch, faulty: bool) -> Outcome:
    """Transfer: the optimizer is made, and then the head is replaced by one for three more classes."""
    x, y = stripes(kinds=7)
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model[-1] = nn.Linear(48, 7)
    model[-1].weight.data.mul_(0.2)
    if not faulty:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return fit(watch, model, drawn(x, y, steps=300), functional.cross_entropy, optimizer)


class Listed(nn.Module):
    """Hidden layers in a list, of Python's own kind or torch's."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.first = nn.Linear(2, 32)
        layers = [nn.Linear(32, 32) for _ in range(4)]
        self.hidden = layers if plain else nn.ModuleList(layers)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.out(x)


def layers_in_a_plain_list(watch: Watch, faulty: bool) -> Outcome:
    """The hidden layers stand in a Python list, so model.parameters() does not know of them."""
    x, y = spirals()
    model = Listed(plain=faulty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return fit(watch, model, drawn(x, y, steps=700), functional.cross_entropy, optimizer)


def optimizer_of_a_copy(watch: Watch, faulty: bool) -> Outcome:
    """The optimizer belongs to the model from before copy.deepcopy, and the copy is trained."""
    x, y = weather()
    original = Forecaster(nn.GRU)
    model = copy.deepcopy(original)
    optimizer = torch.optim.Adam((original if faulty else model).parameters(), lr=5e-3)
    watch(model)
    course = []
    for series, following in drawn(x, y, steps=200):
        loss = functional.mse_loss(model(series), following)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Routed(nn.Module):
    """A router says which of sixteen vectors tells of a sample, by its best or by a mean weighted by its softmax."""

    def __init__(self, *, hard: bool) -> None:
        super().__init__()
        self.router = stack(2, 32, 16)
        self.vectors = nn.Embedding(16, 16)
        self.out = nn.Linear(16, 3)
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        chosen = self.vectors(scores.argmax(1)) if self.hard else scores.softmax(1) @ self.vectors.weight
        return self.out(chosen)


def argmax_in_the_middle(watch: Watch, faulty: bool) -> Outcome:
    """argmax has no gradient, so the router stays as it was made."""
    x, y = spirals()
    model = Routed(hard=faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return fit(watch, model, drawn(x, y, steps=500), functional.cross_entropy, optimizer)


class Encoded(nn.Module):
    """Words to a code by a recurrent layer, a code to a class; the code may be taken as mere data."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.encoder = nn.GRU(16, 32, batch_first=True)
        self.classifier = stack(32, 32, 2)
        self.cut = cut

    def forward(self, tokens: Tensor) -> Tensor:
        code = self.encoder(self.words(tokens))[0].mean(1)
        return self.classifier(code.data if self.cut else code)


def code_as_data(watch: Watch, faulty: bool) -> Outcome:
    """``.data`` on what the encoder made, left over from a look at its values."""
    x, y = reviews()
    model = Encoded(cut=faulty)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    course = []
    for tokens, labels in drawn(x, y, steps=250):
        loss = functional.cross_entropy(model(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


class Branches(nn.Module):
    """A branch for half of the columns and a branch for the rest; the first may be put in place of both."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.building = stack(4, 32, 32)
        self.place = stack(4, 32, 32)
        self.price = stack(64, 32, 1)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        building = self.building(x[:, :4])
        place = building if self.twice else self.place(x[:, 4:])
        return self.price(torch.cat([building, place], dim=1).relu())


def one_branch_for_both(watch: Watch, faulty: bool) -> Outcome:
    """forward() joins the first branch with itself, and the second is never called."""
    x, y = houses()
    model = Branches(twice=faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    watch(model)
    course = []
    for inputs, target in drawn(x, y, steps=400):
        loss = functional.smooth_l1_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def clamped_like_a_critic(watch: Watch, faulty: bool) -> Outcome:
    """Weights are clamped to a hundredth after each step, a line from a loop for Wasserstein critics."""
    x, y = pulses()
    model = nn.Sequential(nn.Flatten(), *stack(64, 64, 32, 3, activation=nn.LeakyReLU))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    watch(model)
    course = []
    for waves, labels in drawn(x, y, steps=300):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(waves), labels)
        loss.backward()
        optimizer.step()
        if faulty:
            for parameter in model.parameters():
                parameter.data.clamp_(-0.01, 0.01)
        course.append(loss.item())
    return Outcome(tuple(course))


def normed_waves(*, depth: int = 6) -> nn.Sequential:
    """For pulses: convolutions with batch norms, the mean over time."""
    model = nn.Sequential(nn.Conv1d(1, 24, 5, padding=2, bias=False), nn.BatchNorm1d(24), nn.ReLU())
    for _ in range(depth):
        model.extend([nn.Conv1d(24, 24, 3, padding=1, bias=False), nn.BatchNorm1d(24), nn.ReLU()])
    return model.extend([nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 3)])


def checked_before_training(watch: Watch, faulty: bool) -> Outcome:
    """A check of one batch before the training calls eval(), and nothing calls train()."""
    x, y = pulses()
    model = normed_waves()
    model.eval()
    with torch.no_grad():
        model(x[:4])
    if not faulty:
        model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return fit(watch, model, drawn(x, y, steps=200), functional.cross_entropy, optimizer)


def validated_on_small_batches(watch: Watch, faulty: bool) -> Outcome:
    """A validation without eval(): batch norms take the statistics of three waves of one class, and learn them."""
    x, y = pulses()
    model = normed_waves(depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    watch(model)
    course, told = [], []
    for step, (waves, labels) in enumerate(drawn(x[:480], y[:480], steps=240)):
        loss = functional.cross_entropy(model(waves), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
        if step % 20 == 19:
            model.train(faulty)
            with torch.no_grad():
                pieces = [(x[i:600:12], y[i:600:12]) for i in (480, 481, 482)]
                told.append(sum(functional.cross_entropy(model(a), b).item() for a, b in pieces) / 3)
            model.train()
    return Outcome(tuple(course), facts={"told": sum(told[-4:]) / 4})


PROGRAMS = (
    Fault(head_replaced_too_late, ("optimizer-misses-parameters",), worse(1.5)),
    Fault(layers_in_a_plain_list, ("optimizer-misses-parameters",), worse(2)),
    Fault(optimizer_of_a_copy, ("optimizer-misses-parameters",), worse(2)),
    Fault(argmax_in_the_middle, ("detached-parameters",), worse(2)),
    Fault(code_as_data, ("detached-parameters",), worse(2)),
    Fault(one_branch_for_both, ("idle-parameters",), worse(2), aside=True),
    Fault(clamped_like_a_critic, ("weights-changed-outside-optimizer",), worse(2)),
    Fault(checked_before_training, ("eval-mode-training",), worse(2)),
    Fault(validated_on_small_batches, ("train-mode-eval",), fact("told", least=0.5, most=0.45), aside=True),
)
