"""Two networks that train against each other, both watched, in one log directory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of

NOISE = 8


def _generator() -> nn.Sequential:
    return nn.Sequential(nn.Linear(NOISE, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


def _critic() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def _real(generator: torch.Generator, *, batch: int = 64) -> Tensor:
    """Points about four places."""
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    return places[torch.randint(4, (batch,), generator=generator)] + 0.1 * torch.randn(batch, 2, generator=generator)


def _against(scores: Tensor, truth: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, truth))


def gan(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """The discriminator hears of real and made points in two backward calls, then the generator of one."""
    generator, discriminator = _generator(), _critic()
    eye.attach(generator, name="generator")
    eye.attach(discriminator, name="discriminator")
    makes = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    trained = discriminator[2:] if fault == "parameters" else discriminator
    tells = torch.optim.Adam(trained.parameters(), lr=2e-3, betas=(0.5, 0.999))
    random = torch.Generator().manual_seed(5)
    for step in range(steps):
        if fault == "mode" and step == 5:
            generator.eval()  # to look at what it makes, and never back
        discriminator.zero_grad()
        real = _against(discriminator(_real(random)), 1.0)
        real.backward()
        made = generator(torch.randn(64, NOISE, generator=random))
        fake = _against(discriminator(made.detach()), 0.0)
        fake.backward()
        tells.step()
        eye.stepped((real + fake) / 2, run="discriminator")
        makes.zero_grad()
        loss = _against(discriminator(made), 1.0)
        loss.backward()
        makes.step()
        eye.stepped(loss, run="generator")
    return state_of(generator, discriminator)


def _penalty(critic: nn.Module, real: Tensor, made: Tensor, random: torch.Generator) -> Tensor:
    """How far the critic's slope between real and made points is from 1; its gradient goes back through a gradient."""
    share = torch.rand(len(real), 1, generator=random)
    between = (share * real + (1 - share) * made).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


def wasserstein(eye: Eye, fault: str, steps: int, *, turns: int = 5) -> dict[str, Tensor]:
    """The critic steps five times for each step of the generator, held back by the penalty on its gradient."""
    generator, critic = _generator(), _critic()
    eye.attach(generator, name="generator")
    eye.attach(critic, name="critic")
    trained = critic[2:] if fault == "parameters" else critic
    makes = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
    tells = torch.optim.Adam(trained.parameters(), lr=1e-3, betas=(0.0, 0.9))
    random = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for _ in range(turns):
            real = _real(random)
            with torch.no_grad():
                made = generator(torch.randn(64, NOISE, generator=random))
            if fault != "zero_grad":
                critic.zero_grad()
            loss = critic(made).mean() - critic(real).mean() + 10 * _penalty(critic, real, made, random)
            loss.backward()
            tells.step()
            eye.stepped(loss, run="critic")
        critic.requires_grad_(False)
        makes.zero_grad()
        loss = -critic(generator(torch.randn(64, NOISE, generator=random))).mean()
        loss.backward()
        makes.step()
        critic.requires_grad_(True)
        eye.stepped(loss, run="generator")
    return state_of(generator, critic)


def each_its_own(eye: Eye, fault: str, steps: int) -> dict[str, Tensor]:
    """Both networks in one model with two optimizers, and ``backward(inputs=…)`` so that each loss reaches its own alone."""
    both = nn.ModuleDict({"generator": _generator(), "critic": _critic()})
    eye.attach(both)
    generator, critic = both["generator"], both["critic"]
    made_by, told_by = list(generator.parameters()), list(critic.parameters())
    makes = torch.optim.Adam(made_by, lr=2e-3, betas=(0.5, 0.999))
    tells = torch.optim.Adam(told_by[2:] if fault == "parameters" else told_by, lr=2e-3, betas=(0.5, 0.999))
    random = torch.Generator().manual_seed(5)
    for step in range(steps):
        if fault == "mode" and step == 5:
            generator.eval()
        both.zero_grad()
        made = generator(torch.randn(64, NOISE, generator=random))
        telling = _against(critic(_real(random)), 1.0) + _against(critic(made.detach()), 0.0)
        telling.backward(inputs=told_by)
        making = _against(critic(made), 1.0)
        making.backward(inputs=made_by)
        tells.step()
        makes.step()
        eye.stepped((telling + making) / 2)
    return state_of(both)


SECTION = "Loop shapes"

STACKS = (
    Stack(
        name="gan",
        title="a GAN, both networks attached in one log directory",
        section=SECTION,
        train=gan,
        faults={"mode": "eval-mode-training", "parameters": "optimizer-misses-parameters"},
    ),
    Stack(
        name="wgan-gp",
        title="WGAN-GP: five steps of the critic for one, a gradient of a gradient",
        section=SECTION,
        train=wasserstein,
        faults={"zero_grad": "missing-zero-grad", "parameters": "optimizer-misses-parameters"},
        steps=15,
    ),
    Stack(
        name="backward-inputs",
        title="`backward(inputs=…)`, both networks of a GAN in one model",
        section=SECTION,
        train=each_its_own,
        faults={"mode": "eval-mode-training", "parameters": "optimizer-misses-parameters"},
    ),
)
