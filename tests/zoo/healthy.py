"""The eight healthy trainings that every version has to leave in peace."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.models import GPT
from tests.zoo.models import CharacterLSTM
from tests.zoo.models import LowRank
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def mlp_sgd(watch: Watch) -> Outcome:
    model = mlp(20, 64, 64, 10)
    return fit(
        watch,
        model,
        data.batches(*data.clusters(), steps=300),
        functional.cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1),
    )


def cnn_batchnorm_momentum(watch: Watch) -> Outcome:
    x, y = data.digits()
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    batches = data.batches(data.standardised(x), y, steps=250)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


def gpt_adamw_warmup(watch: Watch) -> Outcome:
    model = GPT(data.vocabulary_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=50)
    return fit(
        watch,
        model,
        data.characters(steps=300),
        functional.cross_entropy,
        optimizer,
        clip=1.0,
        each=lambda step: schedule.step(),
    )


def residual_zero_init(watch: Watch) -> Outcome:
    model = residual_net(20, depth=12, zero=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=300), functional.cross_entropy, optimizer)


def lstm_clipped(watch: Watch) -> Outcome:
    model = CharacterLSTM(data.vocabulary_size())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=300), functional.cross_entropy, optimizer, clip=1.0)


def gan(watch: Watch) -> Outcome:
    """A ring of eight Gaussians; the course is the distance between the samples' mean radius and the ring's."""
    generator, critic = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1, activation=lambda: nn.LeakyReLU(0.2))
    watch(generator, name="generator")
    watch(critic, name="discriminator")
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (generator, critic)]
    course = []
    for _ in range(500):
        angles = torch.randint(8, (64,)) * (torch.pi / 4)
        real = 2 * torch.stack([angles.cos(), angles.sin()], dim=1) + 0.1 * torch.randn(64, 2)
        fake = generator(torch.randn(64, 8))
        optimizers[1].zero_grad()
        verdicts = critic(torch.cat([real, fake.detach()]))
        truth = (torch.arange(128) < 64).float().unsqueeze(1)
        functional.binary_cross_entropy_with_logits(verdicts, truth).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        functional.binary_cross_entropy_with_logits(critic(fake), torch.ones(64, 1)).backward()
        optimizers[0].step()
        course.append(float((fake.detach().norm(dim=1).mean() - 2).abs()))
    return Outcome(tuple(course))


def low_rank_finetuning(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    fit(lambda model: None, model, data.batches(x, y, steps=150), functional.cross_entropy, optimizer)
    tuned = nn.Sequential(LowRank(model[0]), nn.ReLU(), LowRank(model[2]), nn.ReLU(), LowRank(model[4]))
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    other_labels = (y + 3) % data.CLASSES
    return fit(
        watch, tuned, data.batches(x, other_labels, steps=400), functional.cross_entropy, torch.optim.AdamW(trained, lr=5e-3)
    )


def autoencoder(watch: Watch) -> Outcome:
    x, _ = data.digits()
    pixels = (x / 255).flatten(1)
    model = nn.Sequential(*mlp(144, 64, 16), nn.ReLU(), *mlp(16, 64, 144), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(pixels, pixels, steps=400), functional.mse_loss, optimizer)


PROGRAMS = (
    Healthy(mlp_sgd, falls_to=0.3),
    Healthy(cnn_batchnorm_momentum, falls_to=0.1),
    Healthy(gpt_adamw_warmup),
    Healthy(residual_zero_init, falls_to=0.3),
    Healthy(lstm_clipped),
    Healthy(gan, falls_to=0.5),
    Healthy(low_rank_finetuning, falls_to=0.3),
    Healthy(autoencoder, falls_to=0.7),
)
