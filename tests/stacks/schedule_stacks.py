"""Learning rates that change: torch's schedulers, stepped as their documentation says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional
from torch.optim import lr_scheduler

from tests.stacks.stack import Eye
from tests.stacks.stack import Stack
from tests.stacks.stack import state_of
from tests.stacks.tasks import classes
from tests.stacks.tasks import perceptron

SECTION = "Learning-rate schedules"
Schedule = Callable[[torch.optim.Optimizer, int, float], lr_scheduler.LRScheduler]


def one_cycle(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)


def warm_restarts(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=12, T_mult=2, eta_min=1e-3 * peak)


def warm_up(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    """Linear up over ten steps, then with the root of the step down; the first rate is zero."""
    return lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, (10 / max(step, 10)) ** 0.5))


def in_sequence(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    rising = lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=8)
    falling = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - 8)
    return lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[8])


def in_stairs(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    return lr_scheduler.MultiStepLR(optimizer, milestones=[steps // 2, 3 * steps // 4], gamma=0.1)


def there_and_back(optimizer: torch.optim.Optimizer, steps: int, peak: float) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CyclicLR(optimizer, base_lr=0.1 * peak, max_lr=peak, step_size_up=10)


def scheduled(schedule: Schedule) -> Callable[[Eye, str, int], dict[str, torch.Tensor]]:
    """The usual loop, the scheduler stepped after each step."""

    def train(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
        peak = 30.0 if fault == "rate" else 0.1
        model = perceptron()
        eye.attach(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
        scheduler = schedule(optimizer, steps, peak)
        for inputs, labels in classes(steps):
            if fault != "zero_grad":
                optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
            eye.stepped(loss)
        return state_of(model)

    return train


def on_plateau(eye: Eye, fault: str, steps: int) -> dict[str, torch.Tensor]:
    """Asks a validation loss every five steps."""
    model = perceptron()
    eye.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0 if fault == "rate" else 3e-3)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    held_out = list(classes(4, seed=2))
    for number, (inputs, labels) in enumerate(classes(steps), 1):
        if fault != "zero_grad":
            optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        eye.stepped(loss)
        if number % 5 == 0:
            model.eval()
            with torch.no_grad():
                scheduler.step(sum(functional.cross_entropy(model(x), y) for x, y in held_out) / len(held_out))
            model.train()
    return state_of(model)


def _stack(name: str, title: str, train: Callable[[Eye, str, int], dict[str, torch.Tensor]]) -> Stack:
    faults = {"rate": "lr-too-high", "zero_grad": "missing-zero-grad"}
    return Stack(name=name, title=title, section=SECTION, train=train, faults=faults, steps=60)


STACKS = (
    _stack("one-cycle", "`OneCycleLR`", scheduled(one_cycle)),
    _stack("warm-restarts", "`CosineAnnealingWarmRestarts`", scheduled(warm_restarts)),
    _stack("lambda-rate", "`LambdaLR`, warm-up from zero", scheduled(warm_up)),
    _stack("sequential-rate", "`SequentialLR` of `LinearLR` and `CosineAnnealingLR`", scheduled(in_sequence)),
    _stack("stairs", "`MultiStepLR`", scheduled(in_stairs)),
    _stack("cyclic-rate", "`CyclicLR`", scheduled(there_and_back)),
    _stack("plateau", "`ReduceLROnPlateau`", on_plateau),
)
