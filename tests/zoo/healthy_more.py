"""Healthy trainings with something about them that a rule could take for a fault."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.zoo import data
from tests.zoo.models import GPT
from tests.zoo.models import CharacterLSTM
from tests.zoo.models import ViT
from tests.zoo.models import convnet
from tests.zoo.models import drawn
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


def _unwatched(model: nn.Module) -> None:
    """For a training before the one that is meant."""


def tied_embeddings(watch: Watch) -> Outcome:
    model = GPT(data.vocabulary_size(), tied=True, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=200), F.cross_entropy, optimizer)


def vision_transformer(watch: Watch) -> Outcome:
    x, y = data.digits()
    model = ViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=40)
    batches = data.batches(data.standardised(x), y, steps=200)
    return fit(watch, model, batches, F.cross_entropy, optimizer, each=lambda step: schedule.step())


def sparse_embedding_adagrad(watch: Watch) -> Outcome:
    """Bags of words over 2,000 words, most of which no batch holds."""
    words = torch.randint(2000, (1500, 12))
    y = (words % 2).sum(1).gt(6).long()
    model = nn.Sequential(nn.EmbeddingBag(2000, 16, mode="mean", sparse=True), nn.Linear(16, 2))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    return fit(watch, model, data.batches(words, y, steps=300), F.cross_entropy, optimizer)


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
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(target) + divergence

    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(pixels, pixels, steps=300), loss, optimizer)


def contrastive(watch: Watch) -> Outcome:
    x, _ = data.clusters()

    def loss(embedded: Tensor, _: Tensor) -> Tensor:
        unit = F.normalize(embedded, dim=1)
        half = len(unit) // 2
        similarity = unit @ unit.T / 0.2 - 1e9 * torch.eye(2 * half)
        return F.cross_entropy(similarity, (torch.arange(2 * half) + half) % (2 * half))

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
    return fit(watch, model, noised(), F.mse_loss, torch.optim.Adam(model.parameters(), lr=2e-3))


def edge_of_stability(watch: Watch) -> Outcome:
    """Full-batch gradient descent at a rate whose loss comes down while it swings."""
    x, y = data.clusters(count=500)
    model = drawn(mlp(20, 64, 10, activation=nn.Tanh))
    return fit(watch, model, ((x, y) for _ in range(300)), F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.6))


def overfit_64_samples(watch: Watch) -> Outcome:
    x, y = data.clusters(count=64)
    model = he(mlp(20, 128, 128, 10))
    return fit(watch, model, ((x, y) for _ in range(400)), F.cross_entropy, torch.optim.Adam(model.parameters(), lr=3e-3))


def accumulation_of_four(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch(model)
    losses = []
    for i, (inputs, labels) in enumerate(data.batches(x, y, size=16, steps=1000)):
        loss = F.cross_entropy(model(inputs), labels) / 4
        loss.backward()
        losses.append(float(loss.detach()))
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return Outcome(tuple(losses))


def dropout_half(watch: Watch) -> Outcome:
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=250), F.cross_entropy, optimizer)


def batch_of_four(watch: Watch) -> Outcome:
    model = he(mlp(20, 64, 64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return fit(watch, model, data.batches(*data.clusters(), size=4, steps=500), F.cross_entropy, optimizer)


def one_sample_at_a_time(watch: Watch) -> Outcome:
    x = torch.randn(400, 10)
    y = x @ torch.randn(10, 1) + 0.1 * torch.randn(400, 1)
    model = nn.Linear(10, 1)
    return fit(watch, model, zip(x, y, strict=True), F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.01))


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
        course.append(float((fake.norm(dim=1).mean() - 2).abs()))
    return Outcome(tuple(course))


def ema_teacher(watch: Watch) -> Outcome:
    """A student that predicts the representation of its own moving average (BYOL), beside labels for a few."""
    x, y = data.clusters()
    student = nn.ModuleDict({"body": mlp(20, 64, 32), "predictor": mlp(32, 32, 32), "head": nn.Linear(32, 10)})
    teacher = copy.deepcopy(student["body"]).requires_grad_(False)
    watch(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    losses = []
    for inputs, labels in data.batches(x, y, steps=250):
        views = [inputs + 0.2 * torch.randn_like(inputs) for _ in range(2)]
        features = student["body"](views[0])
        with torch.no_grad():
            target = F.normalize(teacher(views[1]), dim=1)
        likeness = (F.normalize(student["predictor"](features), dim=1) * target).sum(1).mean()
        loss = 1 - likeness + F.cross_entropy(student["head"](features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student["body"].parameters(), strict=True):
                slow.lerp_(fast, 0.02)
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(20, 64), mlp(64, 64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return self.last(F.relu(checkpoint(self.middle, x, use_reentrant=False)))


def gradient_checkpointing(watch: Watch) -> Outcome:
    model = Checkpointed()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=250), F.cross_entropy, optimizer)


def lbfgs(watch: Watch) -> Outcome:
    x, y = data.taught(count=400)
    model = mlp(10, 32, 1, activation=nn.Tanh)
    watch(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=8, line_search_fn="strong_wolfe")
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(40):
        losses.append(float(optimizer.step(closure)))
    return Outcome(tuple(losses))


def two_optimizers_on_one_model(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.05), torch.optim.Adam(model[2:].parameters(), lr=1e-3)]
    watch(model)
    losses = []
    for inputs, labels in data.batches(x, y, steps=250):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


class Mixture(nn.Module):
    """Six experts, of which each sample visits the two that its gate prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.gate = nn.Linear(32, 6)
        self.experts = nn.ModuleList(mlp(32, 32, 32) for _ in range(6))
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        weights, chosen = self.gate(x).topk(2, dim=1)
        weights = weights.softmax(dim=1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, place = (chosen == i).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, weights[rows, place, None] * expert(x[rows]))
        return self.last(x + out)


def mixture_of_experts(watch: Watch) -> Outcome:
    model = Mixture()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(*data.clusters(), steps=200), F.cross_entropy, optimizer)


def frozen_batchnorm_finetuning(watch: Watch) -> Outcome:
    x, y = data.digits()
    pixels = data.standardised(x)
    model = convnet()
    fit(_unwatched, model, data.batches(pixels, y, steps=60), F.cross_entropy, torch.optim.Adam(model.parameters(), lr=2e-3))
    model[-1] = nn.Linear(24 * 9, 10)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = data.batches(pixels, (y * 3 + 1) % 10, steps=150)
    return fit(watch, model, batches, F.cross_entropy, torch.optim.SGD(trained, lr=0.01, momentum=0.9))


def frozen_backbone(watch: Watch) -> Outcome:
    x, y = data.clusters()
    body, head = he(mlp(20, 128, 128)).requires_grad_(False), nn.Linear(128, 10)
    model = nn.Sequential(body, nn.ReLU(), head)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(x, y, steps=250), F.cross_entropy, optimizer)


def gru_adam(watch: Watch) -> Outcome:
    model = CharacterLSTM(data.vocabulary_size(), cell=nn.GRU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.characters(steps=200), F.cross_entropy, optimizer)


def regression_adam(watch: Watch) -> Outcome:
    model = mlp(10, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, data.batches(*data.taught(), steps=300), F.mse_loss, optimizer)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.last = nn.Linear(20, 64), nn.Linear(20, 64), nn.Linear(64, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.value(x) * self.sigmoid(4 * self.gate(x)))


def gated_units_bce(watch: Watch) -> Outcome:
    x, y = data.clusters()
    model = Gated()
    target = (y < 5).float().unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(watch, model, data.batches(x, target, steps=250), F.binary_cross_entropy_with_logits, optimizer)


def bfloat16_autocast(watch: Watch) -> Outcome:
    model = mlp(20, 64, 64, 10)

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output.float(), labels)

    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, Autocast(), data.batches(*data.clusters(), steps=200), loss, optimizer)


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
        loss = F.smooth_l1_loss(online(places[at]).gather(1, move[:, None])[:, 0], goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24:
            target.load_state_dict(online.state_dict())
        course.append(1 - float(online(places[:8]).argmax(1).float().mean()))
    return Outcome((1.0, 1.0, 1.0, *course))


def raw_pixels_into_batchnorm(watch: Watch) -> Outcome:
    x, y = data.digits()
    model = nn.Sequential(nn.BatchNorm2d(1), *convnet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=120), F.cross_entropy, optimizer)


def sharpness_aware(watch: Watch) -> Outcome:
    """SAM: two backward passes a step, the weights moved between them and moved back."""
    x, y = data.clusters()
    model = mlp(20, 64, 64, 10)
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for inputs, labels in data.batches(x, y, steps=250):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            offsets = [0.05 * p.grad / norm for p in model.parameters()]
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.add_(offset)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        with torch.no_grad():
            for parameter, offset in zip(model.parameters(), offsets, strict=True):
                parameter.sub_(offset)
        optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


def linear_regression_full_batch(watch: Watch) -> Outcome:
    """Ten weights, all data in each step: gradients fall smoothly to nearly nothing."""
    x = torch.randn(200, 10)
    y = x @ torch.randn(10, 1) + 0.05 * torch.randn(200, 1)
    model = nn.Linear(10, 1)
    return fit(watch, model, ((x, y) for _ in range(300)), F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1))


def noisy_regression(watch: Watch) -> Outcome:
    """Nine tenths of the targets' variance are noise: the loss can fall by little, and has."""
    x, y = data.taught()
    noisy = math.sqrt(0.1) * y + math.sqrt(0.9) * torch.randn_like(y)
    model = mlp(10, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    outcome = fit(watch, model, data.batches(x, noisy, steps=300), F.mse_loss, optimizer)
    with torch.no_grad():
        return Outcome((1.0, 1.0, 1.0, *[float(F.mse_loss(model(x) / math.sqrt(0.1), y))] * 10), moved=outcome.moved)


MORE = (
    Healthy(tied_embeddings, falls_to=0.8),
    Healthy(vision_transformer, falls_to=0.6),
    Healthy(sparse_embedding_adagrad, falls_to=0.9),
    Healthy(variational_autoencoder, falls_to=0.7),
    Healthy(contrastive, falls_to=0.7),
    Healthy(diffusion, falls_to=0.9),
    Healthy(edge_of_stability, falls_to=0.3),
    Healthy(overfit_64_samples, falls_to=0.01),
    Healthy(accumulation_of_four, falls_to=0.3),
    Healthy(dropout_half, falls_to=0.3),
    Healthy(batch_of_four, falls_to=0.5),
    Healthy(one_sample_at_a_time, falls_to=0.2),
    Healthy(reinforce_bandit, falls_to=0.6),
    Healthy(wgan_clamped, falls_to=0.7),
    Healthy(ema_teacher, falls_to=0.5),
    Healthy(gradient_checkpointing, falls_to=0.3),
    Healthy(lbfgs, falls_to=0.3),
    Healthy(two_optimizers_on_one_model, falls_to=0.3),
    Healthy(mixture_of_experts, falls_to=0.3),
    Healthy(frozen_batchnorm_finetuning, falls_to=0.3),
    Healthy(frozen_backbone, falls_to=0.3),
    Healthy(gru_adam, falls_to=0.7),
    Healthy(regression_adam, falls_to=0.3),
    Healthy(gated_units_bce, falls_to=0.3),
    Healthy(bfloat16_autocast, falls_to=0.3),
    Healthy(q_learning, falls_to=0.3),
    Healthy(raw_pixels_into_batchnorm, falls_to=0.3),
    Healthy(sharpness_aware, falls_to=0.3),
    Healthy(linear_regression_full_batch, falls_to=0.1),
    Healthy(noisy_regression, falls_to=0.9),
)
