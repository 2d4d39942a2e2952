"""Healthy trainings by recipes that look like faults: large rates and warm-ups, signs for steps, constant clipping, scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterable

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo import tasks
from tests.zoo.models import GPT
from tests.zoo.models import ViT
from tests.zoo.models import convnet
from tests.zoo.models import he
from tests.zoo.models import mlp
from tests.zoo.models import residual_net
from tests.zoo.program import Healthy
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit


class SqueezeExcite(nn.Module):
    """A convolution whose channels are weighted by a gate of their means."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.squeeze, self.excite, self.gate = nn.Linear(outputs, 4), nn.Linear(4, outputs), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        weights = self.gate(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        return functional.max_pool2d(x * weights[:, :, None, None], 2)


def squeeze_and_excite(watch: Watch) -> Outcome:
    model = nn.Sequential(SqueezeExcite(1, 12), SqueezeExcite(12, 24), nn.Flatten(), nn.Linear(24 * 9, data.CLASSES))
    return tasks.see(watch, model, tasks.momentum, lr=0.05, steps=120)


class Dropped(nn.Module):
    """A residual stack in training of which each block is left out one time in four."""

    def __init__(self) -> None:
        super().__init__()
        self.net = residual_net(20, depth=8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            if x.shape[1] != 32 or layer is self.net[-1] or isinstance(layer, nn.LayerNorm) or torch.rand(()) > 0.25:
                x = layer(x)
        return x


def stochastic_depth(watch: Watch) -> Outcome:
    return tasks.classify(watch, Dropped(), tasks.adam, lr=1e-3, steps=250)


def label_smoothing_and_class_weights(watch: Watch) -> Outcome:
    weights = torch.linspace(0.2, 3.0, data.CLASSES)
    loss = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.1)
    return tasks.see(watch, convnet(), tasks.momentum, lr=0.03, loss=loss, steps=150)


def large_rate_after_warmup(watch: Watch) -> Outcome:
    """A transformer at a rate ten times the usual, which it takes after 80 steps of warm-up; then a cosine to zero."""
    model = GPT(data.vocabulary_size(), depth=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / 80 if step < 80 else 0.5 + 0.5 * math.cos(math.pi * (step - 80) / 100)
    )
    return fit(
        watch,
        model,
        data.characters(steps=180),
        functional.cross_entropy,
        optimizer,
        clip=1.0,
        each=lambda step: schedule.step(),
    )


def cosine_to_zero(watch: Watch) -> Outcome:
    model = he(mlp(20, 128, 128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    batches = data.batches(*data.clusters(), steps=300)
    return fit(watch, model, batches, functional.cross_entropy, optimizer, each=lambda step: schedule.step())


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an average of gradients (Chen et al. 2023)."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(average.lerp(parameter.grad, 0.1).sign(), alpha=-group["lr"])
                average.lerp_(parameter.grad, 0.01)


def lion(watch: Watch) -> Outcome:
    return tasks.see(watch, ViT(), Lion, lr=3e-4, steps=200)


def clipped_at_every_step(watch: Watch) -> Outcome:
    """Adam does not mind that its gradients are always clipped to a tenth of their norm."""
    return tasks.classify(watch, he(mlp(20, 64, 64, 10)), tasks.adam, lr=2e-3, clip=0.05, steps=250)


class Coupling(nn.Module):
    """Half of the numbers shifted and scaled by what the other half says (Dinh et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(1, 48, 48, 2, activation=nn.Tanh)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x.chunk(2, dim=1)
        scale, shift = self.net(kept).chunk(2, dim=1)
        scale = 2 * torch.tanh(scale)
        return torch.cat([moved * scale.exp() + shift, kept], dim=1), volume + scale[:, 0]


class Flow(nn.Module):
    """The negative log likelihood of points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Coupling() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        volume = torch.zeros(len(x))
        for step in self.steps:
            x, volume = step(x, volume)
        return 0.5 * x.square().sum(1) + math.log(2 * math.pi) - volume


def normalising_flow(watch: Watch) -> Outcome:
    """A thin parabola, so dense that the loss becomes negative; the course is the likelihood's distance to 2."""
    points = torch.randn(2000, 1)
    x = 0.3 * torch.cat([points, 0.5 * points**2 + 0.02 * torch.randn(2000, 1)], dim=1)
    model = Flow()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    outcome = fit(watch, model, data.batches(x, x, steps=250), lambda output, _: output.mean(), optimizer)
    return Outcome(tuple(loss + 2 for loss in outcome.course), outcome.moved, facts={"loss": outcome.end})


def distillation(watch: Watch) -> Outcome:
    """A student that learns from a teacher's softened answers by kl_div, and a little from the labels."""
    x, y = data.clusters()
    teacher = he(mlp(20, 128, 10))
    made = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    fit(lambda model: None, teacher, data.batches(x, y, steps=200), functional.cross_entropy, made)
    teacher.requires_grad_(False)
    student = mlp(20, 32, 10)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    loop = Loop(watch, student, _Distilled(teacher), optimizer)
    for inputs, labels in data.batches(x, y, steps=300):
        loop.turn(inputs, torch.cat([inputs, labels.unsqueeze(1).float()], dim=1))
    return loop.outcome()


class _Distilled:
    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        inputs, labels = target[:, :20], target[:, 20].long()
        with torch.no_grad():
            soft = (self._teacher(inputs) / 4).softmax(1)
        divergence = functional.kl_div((output / 4).log_softmax(1), soft, reduction="batchmean")
        return 16 * 0.7 * divergence + 0.3 * functional.cross_entropy(output, labels)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.classes, self.number = mlp(20, 64, 64), nn.Linear(64, data.CLASSES), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.relu(self.trunk(x))
        return self.classes(x), self.number(x)


def two_tasks(watch: Watch) -> Outcome:
    """A label and a number of each sample, their losses added with weights, in two backward calls."""
    x, y = data.clusters()
    model = TwoHeads()
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for step, (inputs, labels) in enumerate(data.batches(x, y, steps=250)):
        optimizer.zero_grad()
        logits, guess = model(inputs)
        first = functional.cross_entropy(logits, labels)
        second = functional.mse_loss(guess, torch.tanh(inputs[:, :1] + inputs[:, 1:2]))
        if step % 2:
            (first + 5 * second).backward()
        else:
            first.backward(retain_graph=True)
            (5 * second).backward()
        optimizer.step()
        losses.append(float((first + 5 * second).detach()))
    return Outcome(tuple(losses))


class HalfNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = he(mlp(20, 64, 64, 10))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return self.net(x)


def half_precision_scaled(watch: Watch) -> Outcome:
    """float16 with a GradScaler that starts far too high, skips its first steps, unscales and clips."""
    model = HalfNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=60)
    loop = Loop(watch, model, lambda output, labels: functional.cross_entropy(output.float(), labels), optimizer)
    for x, y in data.batches(*data.clusters(), steps=250):
        optimizer.zero_grad()
        scaler.scale(loop.forward(x, y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return loop.outcome()


class LongMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(2, 32, num_layers=2, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def long_sequences(watch: Watch) -> Outcome:
    """An LSTM over 100 steps whose answer depends on the last few; its gradient to the first ones is all but nothing."""
    x = torch.randn(600, 100, 2)
    y = x[:, -5:].sum((1, 2)).unsqueeze(1) / 10**0.5
    model = LongMemory()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return fit(watch, model, data.batches(x, y, size=32, steps=100), functional.mse_loss, optimizer, clip=1.0)


def hand_over_of_state(watch: Watch) -> Outcome:
    """A recurrent net over a stream, whose state is handed on without its graph."""
    cell, head = nn.GRUCell(4, 24), nn.Linear(24, 1)
    model = nn.ModuleDict({"cell": cell, "head": head})
    watch(model)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-3)
    state, losses = torch.zeros(32, 24), []
    for _ in range(200):
        x, state = torch.randn(32, 6, 4), state.detach()
        for part in x.unbind(1):
            state = cell(part, state)
        loss = functional.mse_loss(head(state), x[:, -2:, :2].sum((1, 2)).unsqueeze(1) / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Outcome(tuple(losses))


def same_batch_sgd(watch: Watch) -> Outcome:
    """All data there is, 40 images, in each step."""
    x, y = data.digits(count=40)
    x = data.standardised(x)
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, ((x, y) for _ in range(150)), functional.cross_entropy, optimizer)


def raw_pixels_adam(watch: Watch) -> Outcome:
    """Pixels from 0 to 1, neither centred nor scaled."""
    x, y = data.digits()
    model = convnet(norm=False)
    batches = data.batches(x / 255, y, steps=200)
    return fit(watch, model, batches, functional.cross_entropy, torch.optim.Adam(model.parameters(), lr=3e-3))


def validated_now_and_then(watch: Watch) -> Outcome:
    """A validation every 20 steps, with eval() before it and train() after it, dropout and batch norms in between."""
    x, y = data.digits()
    x = data.standardised(x)
    model = nn.Sequential(*convnet()[:-1], nn.Dropout(0.3), nn.Linear(24 * 9, data.CLASSES))

    def validate(step: int) -> None:
        if step % 20 == 19:
            model.eval()
            with torch.no_grad():
                model(x[:256])
            model.train()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return fit(watch, model, data.batches(x, y, steps=120), functional.cross_entropy, optimizer, each=validate)


PROGRAMS = (
    Healthy(squeeze_and_excite, falls_to=0.3),
    Healthy(stochastic_depth, falls_to=0.3),
    Healthy(label_smoothing_and_class_weights, falls_to=0.4),
    Healthy(large_rate_after_warmup),
    Healthy(cosine_to_zero, falls_to=0.1),
    Healthy(lion, falls_to=0.5),
    Healthy(clipped_at_every_step, falls_to=0.3),
    Healthy(normalising_flow, falls_to=0.5),
    Healthy(distillation, falls_to=0.3),
    Healthy(two_tasks, falls_to=0.3),
    Healthy(half_precision_scaled, falls_to=0.3),
    Healthy(long_sequences, falls_to=0.6),
    Healthy(hand_over_of_state, falls_to=0.3),
    Healthy(same_batch_sgd, falls_to=0.1),
    Healthy(raw_pixels_adam, falls_to=0.3),
    Healthy(validated_now_and_then, falls_to=0.3),
)
