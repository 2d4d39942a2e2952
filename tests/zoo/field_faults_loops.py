"""Loops of several models, schedules, averages and penalties, and the slips in them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import tags
from tests.zoo.field_data import tones
from tests.zoo.field_models import tone_net
from tests.zoo.models import mlp
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import worse
from tests.zoo.tasks import classify

bce = functional.binary_cross_entropy_with_logits


def critic_never_cleared(watch: Watch, faulty: bool) -> Outcome:
    """An actor and a critic with an optimizer each; the actor's zero_grad() stands there twice. The course is the critic's."""
    model = nn.ModuleDict({"actor": mlp(8, 32, 4, activation=nn.Tanh), "critic": mlp(8, 32, 1, activation=nn.Tanh)})
    best, worth = torch.randn(8, 4), torch.randn(8, 1)
    optimizers = {name: torch.optim.SGD(model[name].parameters(), lr=0.05) for name in ("actor", "critic")}
    watch(model)
    course = []
    for _ in range(300):
        x = torch.randn(64, 8)
        choice = torch.distributions.Categorical(logits=model["actor"](x))
        arms = choice.sample()
        rewards = (arms == (x @ best).argmax(1)).float() + torch.tanh(x @ worth).squeeze(1) + 1
        value = model["critic"](x).squeeze(1)
        optimizers["actor"].zero_grad()
        optimizers["actor" if faulty else "critic"].zero_grad()
        error = functional.smooth_l1_loss(value, rewards)
        (error - (choice.log_prob(arms) * (rewards - value).detach()).mean()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
        course.append(float(error.detach()))
    return Outcome(tuple(course))


def average_copied_back(watch: Watch, faulty: bool) -> Outcome:
    """A moving average of the weights; it is loaded into the model for a look at it and never taken out again."""
    waves, labels = tones()
    model = tone_net()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def after(step: int) -> None:
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        if faulty:
            model.load_state_dict({**model.state_dict(), **dict(average.named_parameters())})

    return fit(watch, model, data.batches(waves, labels, size=32, steps=120), functional.cross_entropy, optimizer, each=after)


def weights_rounded(watch: Watch, faulty: bool) -> Outcome:
    """Training for small integers by rounding the weights themselves after each step."""
    x, y = tags()
    model = mlp(24, 64, 12, activation=nn.ELU)

    def after(step: int) -> None:
        for parameter in model.parameters() if faulty else ():
            parameter.data = (parameter.data * 16).round() / 16

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, data.batches(x, y, steps=250), bce, optimizer, each=after)


def clipped_by_value(watch: Watch, faulty: bool) -> Outcome:
    """clip_grad_value_ at a hundred-thousandth, under plain descent."""
    x, y = tags()
    model = mlp(24, 64, 12, activation=nn.ELU)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loop = Loop(watch, model, bce, optimizer)
    for inputs, target in data.batches(x, y, steps=250):
        optimizer.zero_grad()
        loop.forward(inputs, target).backward()
        if not loop.treated("gradients"):
            nn.utils.clip_grad_value_(model.parameters(), 1e-5 if faulty else 1.0)
        optimizer.step()
    return loop.outcome()


def clipped_before_the_gradient(watch: Watch, faulty: bool) -> Outcome:
    """Targets with heavy tails; clip_grad_norm_ stands right after zero_grad(set_to_none=False)."""
    x, y = data.taught()
    tails = torch.distributions.StudentT(1.5).sample((len(y), 1))
    model = mlp(10, 64, 1, activation=nn.GELU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    watch(model)
    course = []
    for inputs, target in data.batches(x, torch.cat([y, y + tails], dim=1), steps=500):
        optimizer.zero_grad(set_to_none=False)
        if faulty:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        output = model(inputs)
        functional.mse_loss(output, target[:, 1:]).backward()
        if not faulty:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        course.append(float((output.detach() - target[:, :1]).square().mean()))
    return Outcome(tuple(course))


def sixteen_pieces_summed(watch: Watch, faulty: bool) -> Outcome:
    """Sixteen pieces of four waves to a step, and nobody divides by sixteen."""
    waves, labels = tones()
    model = tone_net(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loop = Loop(watch, model, functional.cross_entropy, optimizer)
    for i, (x, y) in enumerate(data.batches(waves, labels, size=4, steps=1200)):
        (loop.forward(x, y) / (1 if faulty else 16)).backward()
        if i % 16 == 15:
            optimizer.step()
            optimizer.zero_grad()
    return loop.outcome()


def one_cycle_peak(watch: Watch, faulty: bool) -> Outcome:
    """OneCycleLR up to a rate of 30, where 0.3 was meant."""
    waves, labels = tones()
    model = tone_net(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 30.0 if faulty else 0.1, total_steps=200)
    batches = data.batches(waves, labels, size=32, steps=200)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def decayed_each_batch(watch: Watch, faulty: bool) -> Outcome:
    """A rate that loses a third in each step, where each epoch was meant: after 30 of them nothing moves."""
    x, y = tags()
    model = mlp(24, 64, 64, 12, activation=nn.GELU)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.67)

    def after(step: int) -> None:
        if faulty or step % 18 == 17:
            schedule.step()

    return fit(watch, model, data.batches(x, y, steps=300), bce, optimizer, each=after)


def adadelta_rate(watch: Watch, faulty: bool) -> Outcome:
    """Adadelta wants a rate of 1 and is given Adam's, and a hundredth of that."""
    return classify(watch, mlp(20, 64, 64, 10, activation=nn.SELU), torch.optim.Adadelta, lr=1e-5 if faulty else 1.0)


def trained_as_deployed(watch: Watch, faulty: bool) -> Outcome:
    """A net read from where it was in use, in evaluation mode, and trained on recordings four times as loud."""
    waves, labels = tones()
    model = tone_net(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    fit(lambda model: None, model, data.batches(waves, labels, size=32, steps=30), functional.cross_entropy, optimizer)
    model.train(not faulty)
    before = model[1].running_mean.clone()
    batches = data.batches(4 * waves, (labels + 1) % 4, size=32, steps=100)
    fresh = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    outcome = fit(watch, model, batches, functional.cross_entropy, fresh)
    return replace(outcome, facts={"stale": float(torch.equal(before, model[1].running_mean))})


def validated_with_dropout(watch: Watch, faulty: bool) -> Outcome:
    """No eval() before validation: half of all units are dropped there, and its loss is not the model's."""
    x, y = tags()
    model = nn.Sequential(nn.Linear(24, 96), nn.ELU(), nn.Dropout(0.5), nn.Linear(96, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    told = []

    def after(step: int) -> None:
        if step % 25 == 24:
            model.train(faulty)
            with torch.no_grad():
                told.append(float(bce(model(x[1000:]), y[1000:])))
            model.train()

    outcome = fit(watch, model, data.batches(x[:1000], y[:1000], steps=250), bce, optimizer, each=after)
    model.eval()
    with torch.no_grad():
        true = float(bce(model(x[1000:]), y[1000:]))
    return replace(outcome, facts={"told": told[-1] / true})


def quiet_then_loud(watch: Watch, faulty: bool) -> Outcome:
    """The loss counts a thousandth for 400 steps, then in full; Adam's second moment is over 100,000 steps, or twenty."""
    x, y = data.taught()
    model = mlp(10, 64, 64, 1, activation=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.99999 if faulty else 0.95))
    watch(model)
    course = []
    for step, (inputs, target) in enumerate(data.batches(x, y, steps=600)):
        error = functional.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        (error * (1.0 if step >= 400 else 1e-3)).backward()
        optimizer.step()
        course.append(float(error.detach()))
    return Outcome(tuple(course), facts={"rise": max(course[400:420]) / max(course[380:400])})


def always_the_first_batch(watch: Watch, faulty: bool) -> Outcome:
    """next(iter(loader)) within the loop, and a loader that doesn't shuffle."""
    x, y = tags()

    def batches() -> Batches:
        for _ in range(250):
            chosen = torch.arange(48) if faulty else torch.randint(1000, (48,))
            yield x[chosen], y[chosen]

    model = mlp(24, 64, 12, activation=nn.ELU)
    outcome = fit(watch, model, batches(), bce, torch.optim.Adam(model.parameters(), lr=5e-3))
    with torch.no_grad():
        return replace(outcome, facts={"others": float(bce(model(x[1000:]), y[1000:]))})


def norm_over_two_recordings(watch: Watch, faulty: bool) -> Outcome:
    """A head with a batch norm over features that are means over time, and batches of two."""
    waves, labels = tones()
    body = nn.Sequential(nn.Conv1d(1, 24, 9, stride=3), nn.GELU(), nn.Conv1d(24, 24, 9, stride=3), nn.GELU())
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))
    model = nn.Sequential(*body, *head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return fit(
        watch, model, data.batches(waves, labels, size=2 if faulty else 32, steps=300), functional.cross_entropy, optimizer
    )


PROGRAMS = (
    Fault(critic_never_cleared, ("missing-zero-grad",), worse(1.5)),
    Fault(average_copied_back, ("weights-changed-outside-optimizer",), worse(2)),
    Fault(weights_rounded, ("weights-changed-outside-optimizer",), worse(1.5)),
    Fault(clipped_by_value, ("clipping-too-tight",), worse(2)),
    Fault(clipped_before_the_gradient, ("clipping-misplaced",), worse(2)),
    Fault(sixteen_pieces_summed, ("accumulation-not-averaged",), worse(2)),
    Fault(one_cycle_peak, ("lr-too-high",), worse(2)),
    Fault(decayed_each_batch, ("lr-too-low", "weights-not-moving"), worse(1.5)),
    Fault(adadelta_rate, ("lr-too-low",), worse(2)),
    Fault(trained_as_deployed, ("eval-mode-training",), fact("stale", least=1.0, most=0.5), aside=True),
    Fault(validated_with_dropout, ("train-mode-eval",), fact("told", least=1.15, most=1.05), aside=True),
    Fault(quiet_then_loud, ("adam-second-moment-lag",), fact("rise", least=5, most=2), begins=400, aside=True),
    Fault(always_the_first_batch, ("constant-input",), fact("others", least=0.3, most=0.2), aside=True),
    Fault(norm_over_two_recordings, ("tiny-batch-norm",), worse(1.5)),
)
