"""Healthy trainings that act, make things up, or fit a world's own numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Healthy
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.town_data import drawings
from tests.zoo.town_data import loader
from tests.zoo.town_data import moons
from tests.zoo.town_data import rentals


class Carts:
    """Poles on carts, many at once; one that falls is set upright again."""

    def __init__(self, count: int) -> None:
        self.state = 0.1 * torch.rand(count, 4) - 0.05

    def move(self, right: Tensor) -> Tensor:
        """Push each cart for a fiftieth of a second, and say which poles fell."""
        place, speed, angle, turn = self.state.unbind(1)
        force = 20 * right.float() - 10
        pull = (force + 0.05 * turn**2 * angle.sin()) / 1.1
        twist = (9.8 * angle.sin() - angle.cos() * pull) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
        push = pull - 0.05 * twist * angle.cos() / 1.1
        self.state = torch.stack([place + 0.02 * speed, speed + 0.02 * push, angle + 0.02 * turn, turn + 0.02 * twist], dim=1)
        fell = (self.state[:, 0].abs() > 2.4) | (self.state[:, 2].abs() > 0.21)
        self.state = torch.where(fell.unsqueeze(1), 0.1 * torch.rand_like(self.state) - 0.05, self.state)
        return fell


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(state * torch.tensor([1.0, 1.0, 10.0, 1.0]))
        return self.actor(x), self.critic(x).squeeze(-1)


def poles_upright(watch: Watch) -> Outcome:
    """Advantage actor-critic over 32 carts, 16 moves an update; the course is the share of moves after which a pole falls."""
    model, carts = ActorCritic(), Carts(32)
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    course = []
    for _ in range(200):
        states, moves, falls = [], [], []
        for _ in range(16):
            states.append(carts.state)
            with torch.no_grad():
                moves.append(torch.multinomial(model(carts.state)[0].softmax(1), 1).squeeze(1))
            falls.append(carts.move(moves[-1]))
        with torch.no_grad():
            returns: list[Tensor] = []
            goes_on = model(carts.state)[1]
            for fell in reversed(falls):
                goes_on = 0.05 - 1.0 * fell + 0.97 * goes_on * ~fell
                returns.insert(0, goes_on)
        scores, values = model(torch.stack(states))
        advantage = torch.stack(returns) - values
        chances = torch.distributions.Categorical(logits=scores)
        gain = (chances.log_prob(torch.stack(moves)) * advantage.detach()).mean() + 0.01 * chances.entropy().mean()
        loss = 0.5 * advantage.square().mean() - gain
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        course.append(torch.stack(falls).float().mean().item())
    return Outcome(tuple(course))


class Walker(nn.Module):
    """How a point is pushed: a Gaussian whose width does not depend on where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2))
        self.log_std = nn.Parameter(torch.full((2,), -0.5))

    def forward(self, state: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.mean(state), self.log_std.exp())


def pushed_home(watch: Watch) -> Outcome:
    """PPO: a point is pushed to the middle; each batch of walks is used for eight steps. The course is the mean distance."""
    policy = Walker()
    watch(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3, eps=1e-5)
    course = []
    for _ in range(40):
        place, speed = torch.randn(2, 64, 2)
        states, pushes, costs = [], [], []
        with torch.no_grad():
            for _ in range(12):
                states.append(torch.cat([place, speed], dim=1))
                pushes.append(policy(states[-1]).sample())
                speed = 0.8 * speed + 0.4 * pushes[-1].clamp(-2, 2)
                place = place + 0.4 * speed
                costs.append(place.norm(dim=1))
            seen, done = torch.cat(states), torch.cat(pushes)
            before = policy(seen).log_prob(done).sum(1)
            ahead = torch.stack(costs).flip(0).cumsum(0).flip(0)
            gain = -(ahead - ahead.mean(1, keepdim=True)) / ahead.std(1, keepdim=True)
        for rows in torch.randperm(len(seen)).split(192) * 2:
            ratio = (policy(seen[rows]).log_prob(done[rows]).sum(1) - before[rows]).exp()
            weighed = torch.minimum(ratio * gain.flatten()[rows], ratio.clamp(0.8, 1.2) * gain.flatten()[rows])
            optimizer.zero_grad()
            (-weighed.mean()).backward()
            optimizer.step()
        course.append(torch.stack(costs).mean().item())
    return Outcome(tuple(course))


class Masked(nn.Conv2d):
    """A convolution that sees only pixels above and to the left (van den Oord et al., 2016)."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, itself: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.zeros(size, size)
        mask[: size // 2] = 1
        mask[size // 2, : size // 2 + itself] = 1
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def pixel_by_pixel(watch: Watch) -> Outcome:
    """Each pixel of a drawing is foretold from those before it."""
    pictures = drawings()
    layers: list[nn.Module] = [Masked(1, 24, 5, itself=False), nn.ReLU()]
    for _ in range(3):
        layers += [Masked(24, 24, 3, itself=True), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(24, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(watch, model, loader(pictures, pictures), nn.BCEWithLogitsLoss(), optimizer, steps=200)


class Velocity(nn.Module):
    """Which way a point moves at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        clock = torch.cat([t, (6.28 * t).sin(), (6.28 * t).cos(), (3.14 * t).cos()], dim=1)
        return self.net(torch.cat([x, clock], dim=1))


def noise_into_moons(watch: Watch) -> Outcome:
    """Flow matching; most of the loss is what cannot be foretold. The course is the share of made points off the moons."""
    model = Velocity()
    watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    course = []
    for step in range(500):
        noise, points, t = torch.randn(256, 2), moons(256), torch.rand(256, 1)
        loss = (model((1 - t) * noise + t * points, t) - (points - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            with torch.no_grad():
                made = torch.randn(400, 2)
                for moment in range(16):
                    made = made + model(made, torch.full((400, 1), moment / 16)) / 16
            course.append((torch.cdist(made, moons(400)).min(1).values > 0.25).float().mean().item())
    return Outcome(tuple(course))


class Prey(nn.Module):
    """Hares and foxes (Lotka, Volterra): four rates, kept as logarithms."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.zeros(4))

    def change(self, state: Tensor) -> Tensor:
        born, eaten, fed, dead = self.rates.exp()
        hares, foxes = state.unbind(-1)
        return torch.stack([hares * (born - eaten * foxes), foxes * (fed * hares - dead)], dim=-1)

    def forward(self, state: Tensor) -> Tensor:
        """Where things stand a tenth of a year later, by the midpoint rule."""
        return state + 0.1 * self.change(state + 0.05 * self.change(state))


def hares_and_foxes(watch: Watch) -> Outcome:
    """Four numbers, so that an equation follows what was counted over two years; all years in each step."""
    truth, model = Prey(), Prey()
    with torch.no_grad():
        truth.rates.copy_(torch.tensor([1.3, 0.8, 0.7, 1.2]).log())
        counts = [0.5 + torch.rand(24, 2)]
        for _ in range(20):
            counts.append(truth(counts[-1]))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        state, loss = counts[0], torch.zeros(())
        for seen in counts[1:]:
            state = model(state)
            loss = loss + functional.mse_loss(state, seen) / 20
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Outcome(tuple(losses))


def seven_rows_at_a_time(watch: Watch) -> Outcome:
    """Seven rows a batch, a constant rate, no norm, and a tenth of all answers off: rough, and it works."""
    x, y = rentals(count=700)
    y = y + (torch.rand(len(y), 1) < 0.1) * torch.randn(len(y), 1)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    return fit(watch, model, loader(x, y, size=7), nn.L1Loss(), optimizer, steps=900)


PROGRAMS = (
    Healthy(poles_upright, falls_to=0.5),
    Healthy(pushed_home, falls_to=0.6),
    Healthy(pixel_by_pixel, falls_to=0.6),
    Healthy(noise_into_moons, falls_to=0.7),
    Healthy(hares_and_foxes, falls_to=0.2),
    Healthy(seven_rows_at_a_time, falls_to=0.6),
)
