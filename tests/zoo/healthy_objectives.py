"""Healthy trainings whose losses are of their own kind: games, rewards, likenesses, noise, or nothing left to gain."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.models import drawn
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(144, 64, 16), mlp(8, 64, 144)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


def variational_autoencoder(watch: Watch) -> Outcome:
    x, _ = data.digits()
    pixels = (x / 255).flatten(1)

    def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        logits, mean, log_variance = output
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target) + divergence

    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(pixels, pixels, steps=300), loss, optimizer)


def contrastive(watch: Watch) -> Outcome:
    x, _ = data.clusters()

    def loss(embedded: Tensor, _: Tensor) -> Tensor:
        unit = functional.normalize(embedded, dim=1)
        half = len(unit) // 2
        similarity = unit @ unit.T / 0.2 - 1e9 * torch.eye(2 * half)
        return functional.cross_entropy(similarity, (torch.arange(2 * half) + half) % (2 * half))

    def views():
        for inputs, labels in data.batches(x, x, steps=250):
            yield torch.cat([inputs, inputs]) + 0.2 * torch.randn(2 * len(inputs), 20), labels

    model = mlp(20, 64, 64, 16)
    return fit(watch, model, views(), loss, torch.optim.Adam(model.parameters(), lr=2e-3))


def diffusion(watch: Watch) -> Outcome:
    """A denoiser of points on two rings; its loss is noisy and flattens early."""

    def noised():
        for _ in range(400):
            angle, radius = 2 * torch.pi * torch.rand(128, 1), 1.0 + torch.randint(2, (128, 1))
            points = torch.cat([angle.cos(), angle.sin()], dim=1) * radius
            time, noise = torch.rand(128, 1), torch.randn(128, 2)
            keep = torch.cos(time * torch.pi / 2)
            yield torch.cat([keep * points + (1 - keep**2).sqrt() * noise, time], dim=1), noise

    model = mlp(3, 96, 96, 2, activation=nn.SiLU)
    return fit(watch, model, noised(), functional.mse_loss, torch.optim.Adam(model.parameters(), lr=2e-3))


def edge_of_stability(watch: Watch) -> Outcome:
    """Full-batch gradient descent at a rate whose loss comes down while it swings."""
    x, y = data.clusters(count=500)
    model = drawn(mlp(20, 64, 10, activation=nn.Tanh))
    return fit(
        watch, model, ((x, y) for _ in range(300)), functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.6)
    )


def overfit_64_samples(watch: Watch) -> Outcome:
    x, y = data.clusters(count=64)
    model = he(mlp(20, 128, 128, 10))
    return fit(
        watch, model, ((x, y) for _ in range(400)), functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=3e-3)
    )


def reinforce_bandit(watch: Watch) -> Outcome:
    """Four arms, of which the context tells the best; the course is one minus the mean reward."""
    answers = torch.randn(8, 4)
    model = mlp(8, 32, 4)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    course = []
    for _ in range(400):
        context = torch.randn(64, 8)
        choice = torch.distributions.Categorical(logits=model(context))
        action = choice.sample()
        reward = (action == (context @ answers).argmax(1)).float()
        optimizer.zero_grad()
        (-(reward - reward.mean()) * choice.log_prob(action)).mean().backward()
        optimizer.step()
        course.append(1 - float(reward.mean()))
    return Outcome(tuple(course))


def wgan_clamped(watch: Watch) -> Outcome:
    """A critic whose weights are clamped after each of its steps; the course is the samples' distance from the ring."""
    generator, critic = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1)
    watch(generator, name="generator")
    watch(critic, name="critic")
    optimizers = [torch.optim.RMSprop(net.parameters(), lr=1e-3) for net in (generator, critic)]
    course = []
    for _ in range(150):
        for _ in range(3):
            angles = 2 * torch.pi * torch.rand(64)
            real = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
            optimizers[1].zero_grad()
            (critic(generator(torch.randn(64, 8)).detach()).mean() - critic(real).mean()).backward()
            optimizers[1].step()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.1, 0.1)
        optimizers[0].zero_grad()
        fake = generator(torch.randn(64, 8))
        (-critic(fake).mean()).backward()
        optimizers[0].step()
        course.append(float((fake.detach().norm(dim=1).mean() - 2).abs()))
    return Outcome(tuple(course))


def q_learning(watch: Watch) -> Outcome:
    """A walk on a line of nine places with a reward at its end, learned with a target net; the course is one minus the
    share of places at which the greedy move is right."""
    places = torch.eye(9)
    online = mlp(9, 32, 2)
    target = copy.deepcopy(online).requires_grad_(False)
    watch(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-3)
    course = []
    for step in range(400):
        at, move = torch.randint(8, (64,)), torch.randint(2, (64,))
        after = (at + 2 * move - 1).clamp(0, 8)
        reward = (after == 8).float()
        with torch.no_grad():
            goal = reward + 0.9 * (1 - reward) * target(places[after]).max(1).values
        loss = functional.smooth_l1_loss(online(places[at]).gather(1, move[:, None])[:, 0], goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            target.load_state_dict(online.state_dict())
        course.append(1 - float(online(places[:8]).argmax(1).float().mean()))
    return Outcome((1.0, 1.0, 1.0, *course))


def linear_regression_full_batch(watch: Watch) -> Outcome:
    """Ten weights, all data in each step: gradients fall smoothly to nearly nothing."""
    x = torch.randn(200, 10)
    y = x @ torch.randn(10, 1) + 0.05 * torch.randn(200, 1)
    model = nn.Linear(10, 1)
    return fit(watch, model, ((x, y) for _ in range(300)), functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))


def noisy_regression(watch: Watch) -> Outcome:
    """Half of the targets' variance is noise, and the loss ends where that is left; the course is the error of what is not."""
    x, y = data.taught()
    noisy = math.sqrt(0.5) * y + math.sqrt(0.5) * torch.randn_like(y)
    model = mlp(10, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    outcome = fit(watch, model, data.batches(x, noisy, steps=300), functional.mse_loss, optimizer)
    with torch.no_grad():
        return Outcome((1.0, 1.0, 1.0, *[float(functional.mse_loss(model(x) / math.sqrt(0.5), y))] * 10), moved=outcome.moved)


def regression_adam(watch: Watch) -> Outcome:
    model = mlp(10, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(*data.taught(), steps=300), functional.mse_loss, optimizer)


def batch_of_four(watch: Watch) -> Outcome:
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return fit(watch, model, data.batches(*data.clusters(), size=4, steps=500), functional.cross_entropy, optimizer)


def one_sample_at_a_time(watch: Watch) -> Outcome:
    x = torch.randn(400, 10)
    y = x @ torch.randn(10, 1) + 0.1 * torch.randn(400, 1)
    model = nn.Linear(10, 1)
    return fit(watch, model, zip(x, y, strict=True), functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.01))


PROGRAMS = (
    Healthy(variational_autoencoder, falls_to=0.7),
    Healthy(contrastive, falls_to=0.7),
    Healthy(diffusion, falls_to=0.9),
    Healthy(edge_of_stability, falls_to=0.3),
    Healthy(overfit_64_samples, falls_to=0.01),
    Healthy(reinforce_bandit, falls_to=0.6),
    Healthy(wgan_clamped, falls_to=0.7),
    Healthy(q_learning, falls_to=0.3),
    Healthy(linear_regression_full_batch, falls_to=0.1),
    Healthy(noisy_regression, falls_to=0.9),
    Healthy(regression_adam, falls_to=0.3),
    Healthy(batch_of_four, falls_to=0.5),
    Healthy(one_sample_at_a_time, falls_to=0.2),
)
