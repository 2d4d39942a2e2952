"""No step of a training reads from its device. The meta device stands in for an accelerator: there every read raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradscope.capture import transfer
from tests.capture.watching import watching

STEPS = 16
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
LOSSES = {
    "labels": lambda out: nn.functional.cross_entropy(out, torch.zeros(len(out), dtype=torch.long, device="meta")),
    "squares": lambda out: nn.functional.mse_loss(out, torch.empty_like(out)),
    "by hand": lambda out: (out - torch.empty_like(out)).square().mean(),
}


class Event:
    """Of a copy that has arrived."""

    def query(self):
        return True

    def synchronize(self):
        pass


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        state = torch.zeros(len(x), 8, device=x.device)
        for at in range(x.shape[1]):
            state = self.cell(x[:, at], state)
        return self.head(state)


def dense():
    layers = (nn.Linear(16, 64), nn.Tanh(), nn.BatchNorm1d(64), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 5))
    return nn.Sequential(*layers), (16,)


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8 * 36, 5)), (3, 8, 8)


def recurrent():
    return Recurrent(), (12, 8)


@pytest.fixture
def accelerator(monkeypatch):
    """The meta device, taken for one that holds values; what is brought to the host from it is 0.5 throughout."""
    monkeypatch.setattr(torch.Tensor, "is_meta", property(lambda _: False))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _="cpu": False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.float16)
    monkeypatch.setattr(transfer, "_to_host", lambda flat: flat if flat.device.type == "cpu" else torch.full(flat.shape, 0.5))
    monkeypatch.setattr(transfer, "_mark", lambda _: Event())


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("make", [dense, convolutional, recurrent], ids=lambda make: make.__name__)
def test_no_step_reads_from_the_device(make, optimizer, loss, every):
    model, shape = make()
    model = model.to("meta")
    stepper = optimizer(model.parameters(), lr=0.1)
    with watching(model, every=every) as seen:
        for step in range(STEPS):
            stepper.zero_grad(set_to_none=step % 4 > 0)
            next(model.parameters()).requires_grad_(step % 5 > 0)  # a gradient that is not always there
            loss(model(torch.empty(4 + step % 3, *shape, device="meta"))).backward()
            stepper.step()
    assert len(seen.frames) >= STEPS // every
    assert len(seen.pulses) == STEPS


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("clear", [None, "before", "after"])
def test_no_step_by_hand_reads_from_the_device(clear):
    """Gradients are cleared before the step is told of, after it, or never."""
    model, shape = dense()
    model = model.to("meta")
    with watching(model) as seen:
        for _ in range(STEPS):
            model(torch.empty(4, *shape, device="meta")).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
            if clear == "before":
                model.zero_grad()
            seen.watch.manual_step()
            if clear == "after":
                model.zero_grad(set_to_none=False)
    assert len(seen.frames) == len(seen.pulses) == STEPS
    assert seen.sites("weight")
