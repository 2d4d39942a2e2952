"""The black box: where the first value that is not finite came from, at the step itself, and on the disk at once."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import gradscope
from tests.capture.watching import watching

ROOT = Path(__file__).parents[2]
BAD = 5
WIDTH = 4


class Net(nn.Module):
    """Two layers, and whatever is put between them, and after them."""

    def __init__(self, between=torch.relu, after=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self.second(self.between(self.first(x))))


def data(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(8, WIDTH, generator=generator), torch.randint(WIDTH, (8,), generator=generator)


def origin(model, *, change=lambda step, x, y: (x, y), loss=F.cross_entropy, every=1, before=None):
    """What the black box says of a run into which something is put at step 5."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, every=every) as seen:
        for step in range(BAD + 2):
            x, y = change(step, *data(step))
            if before is not None and step == BAD:
                before(model)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return seen.facts.origin


def test_a_weight_of_the_loss_is_no_input_of_the_model():
    def weighed(output, y):
        size = 1.0 if weighed.calls != BAD else math.nan
        weighed.calls += 1
        return (output.logsumexp(1) * torch.full((8,), size)).mean()

    weighed.calls = 0
    found = origin(Net(), loss=weighed)
    assert (found.step, found.place, found.node, found.before) == (BAD, "target", "MulBackward0", "second")


def at_fault(step, bad, good):
    return bad if step == BAD else good


def poisoned_input(step, x, y):
    return at_fault(step, x.clone().index_fill_(1, torch.tensor([2]), torch.nan), x), y


class AtStep:
    """One function at the bad step, the identity at all others; counts calls with gradients."""

    def __init__(self, bad, good=lambda x: x):
        self.calls, self.bad, self.good = -1, bad, good

    def __call__(self, x, *more):
        self.calls += torch.is_grad_enabled()
        return (self.bad if self.calls == BAD else self.good)(x, *more)


EVERY = pytest.mark.parametrize("every", [1, 100], ids=["sampled", "not sampled"])


@EVERY
def test_a_run_that_stays_finite_has_none(every):
    assert origin(Net(), every=every) is None


@EVERY
def test_an_input(every):
    found = origin(Net(), change=poisoned_input, every=every)
    assert (found.step, found.place, found.module) == (BAD, "input", "first")
    assert found.largest == pytest.approx(float(data(BAD)[0][:, [0, 1, 3]].abs().max()))


@EVERY
def test_an_input_of_minus_infinity(every):
    def change(step, x, y):
        return at_fault(step, x.clone().index_fill_(1, torch.tensor([2]), -torch.inf), x), y

    found = origin(Net(), change=change, every=every)
    assert (found.step, found.place, found.module) == (BAD, "input", "first")


def test_what_the_model_makes_of_a_finite_input():
    class Amounts(Net):
        def forward(self, x):
            return super().forward(torch.log1p(x))

    def change(step, x, y):
        return at_fault(step, x.abs().index_fill_(1, torch.tensor([2]), -3.0), x.abs()), y

    found = origin(Amounts(), change=change)
    assert (found.step, found.place, found.module, found.before, found.node) == (BAD, "between", "first", None, None)
    assert found.largest == pytest.approx(max(3.0, float(data(BAD)[0].abs().max())))


@EVERY
def test_weights(every):
    def spoil(model):
        with torch.no_grad():
            model.second.weight[0, 0] = torch.inf

    found = origin(Net(), before=spoil, every=every)
    assert (found.step, found.place, found.module, found.dtype) == (BAD, "parameter", "second", "float32")


@EVERY
@pytest.mark.parametrize(
    ("operation", "node"),
    [
        (lambda x: torch.log(torch.relu(x)), "LogBackward0"),
        (lambda x: x / torch.relu(x), "DivBackward0"),
        (lambda x: torch.sqrt(x - 10), "SqrtBackward0"),
        (lambda x: torch.exp(1000 * x.abs() + 1000), "ExpBackward0"),
        (lambda x: torch.relu(x) ** -1.0, "PowBackward0"),
        (lambda x: (x.abs() * 1e30 + 1e30) * (x.abs() * 1e30 + 1e30), "MulBackward0"),
        (lambda x: torch.softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool), -torch.inf), -1), "SoftmaxBackward0"),
        (lambda x: torch.rsqrt(x * 0), "RsqrtBackward0"),
    ],
    ids=["log", "div", "sqrt", "exp", "pow", "mul", "softmax", "rsqrt"],
)
def test_an_operation_between_layers(every, operation, node):
    found = origin(Net(AtStep(operation)), every=every)
    assert (found.step, found.place, found.node) == (BAD, "between", node)
    assert (found.before, found.module) == ("first", "second")


@EVERY
def test_a_normalisation(every):
    class Even(nn.LayerNorm):
        def forward(self, x):
            return super().forward(torch.ones_like(x) * x.mean())  # no variance

    model = Net()
    model.norm = Even(WIDTH, eps=0.0)
    model.between = AtStep(model.norm)
    found = origin(model, every=every)
    assert (found.step, found.place, found.module, found.before) == (BAD, "forward", "norm", "first")


@EVERY
def test_a_layer_whose_sums_overflow(every):
    model = Net(AtStep(lambda x: x * 0 + 3e38))
    nn.init.ones_(model.second.weight)
    found = origin(model, every=every)
    assert (found.step, found.place, found.module, found.before) == (BAD, "forward", "second", "first")
    assert found.largest == pytest.approx(3e38)


@EVERY
def test_a_loss_written_by_hand(every):
    loss = AtStep(lambda x, y: -torch.log(torch.relu(x)).mean(), F.cross_entropy)
    found = origin(Net(), loss=loss, every=every)
    assert (found.step, found.place, found.before, found.node) == (BAD, "loss", "second", "LogBackward0")


@EVERY
def test_a_batch_without_targets(every):
    found = origin(Net(), change=lambda step, x, y: (x, at_fault(step, y * 0 - 100, y)), every=every)
    assert (found.place, found.node, found.before) == ("loss", "NllLossBackward0", "second")


@EVERY
def test_a_target(every):
    def change(step, x, y):
        return x, at_fault(step, torch.full((8, WIDTH), torch.nan), torch.zeros(8, WIDTH))

    found = origin(Net(), change=change, loss=F.mse_loss, every=every)
    assert (found.place, found.node, found.before) == ("loss", "MseLossBackward0", "second")


@EVERY
def test_masks_are_no_origin(every):
    class Masked(nn.Module):
        def forward(self, x):
            scores = (x @ x.T).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
            return scores.softmax(-1) @ x

    masked = Masked()
    loss = AtStep(lambda x, y: torch.log(torch.relu(x)).mean(), F.cross_entropy)
    found = origin(Net(masked), loss=loss, every=every)
    assert (found.place, found.node) == ("loss", "LogBackward0")


def test_a_module_without_parameters_is_named_where_the_step_was_sampled():
    softmax = nn.Softmax(-1)
    masked = AtStep(lambda x: softmax(x.masked_fill(torch.ones_like(x, dtype=torch.bool), -torch.inf)), softmax)
    model = Net()
    model.soft = softmax
    model.between = masked
    found = origin(model)
    assert (found.place, found.module, found.node) == ("forward", "soft", "SoftmaxBackward0")


@EVERY
def test_the_way_back(every):
    root = AtStep(lambda x: torch.sqrt(x * 0))
    found = origin(Net(lambda x: torch.relu(x) + root(x)), every=every)
    assert (found.step, found.place, found.module, found.before) == (BAD, "backward", "first", "second")


def test_an_input_that_gates_hide_on_the_way_forward():
    """tanh makes 1 of infinity, and its derivative there, times infinity, is NaN."""

    def change(step, x, y):
        return at_fault(step, x.clone().index_fill_(1, torch.tensor([2]), torch.inf), x), y

    class Gated(Net):
        def forward(self, x):
            return self.second(torch.tanh(x * self.first.weight[0]))

    found = origin(Gated(), change=change)
    assert (found.step, found.place) == (BAD, "input")

    class Mended(Gated):
        def forward(self, x):
            root = torch.sqrt(self.first.weight[0] * 0) if bool(x.isnan().any()) and Mended.calls == BAD else 0.0
            Mended.calls += 1
            return self.second(torch.tanh(x.nan_to_num() * self.first.weight[0] + root))

    Mended.calls = 0
    found = origin(Mended(), change=lambda step, x, y: (x.clone().fill_diagonal_(torch.nan), y))
    assert (found.step, found.place) == (BAD, "backward")  # such inputs did no harm in the steps before


def test_the_first_origin_is_kept():
    found = origin(Net(), change=lambda step, x, y: (x if step < 3 else x * torch.nan, y))
    assert found.step == 3


def test_an_origin_long_after_the_start_is_seen_at_its_step():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watching(model, every=10_000) as seen:
        for step in range(150):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x * torch.nan if step == 140 else x), y).backward()
            optimizer.step()
    assert (seen.facts.origin.step, seen.facts.origin.place) == (140, "input")


def test_a_scaled_loss_may_overflow():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watching(model) as seen:
        for step in range(4):
            x, y = data(step)
            optimizer.zero_grad()
            scaler.scale(100 * F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert seen.facts.origin is None


SCRIPT = """
import os, sys
import torch
import gradscope
from tests.capture.test_blackbox import Net, data, AtStep

model = Net(AtStep(lambda x: torch.log(torch.relu(x))))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
gradscope.attach(model, sys.argv[1])
for step in range(9):
    x, y = data(step)
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    {dies}
    optimizer.step()
    if not torch.isfinite(loss):
        os._exit(3)
"""


@pytest.mark.parametrize("dies", ["", "if not torch.isfinite(loss): os._exit(3)"], ids=["after the step", "before the step"])
def test_a_process_that_dies_of_it_has_told(tmp_path, dies):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = textwrap.dedent(SCRIPT).format(dies=dies or "pass")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    (run,) = gradscope.read(tmp_path).runs
    found = run.info.origin
    assert (found.step, found.place, found.node) == (BAD, "between", "LogBackward0")
    assert run.steps == BAD + (1 if not dies else 0)
    (finding,) = [finding for finding in run.findings if finding.rule == "nonfinite-origin"]
    assert "LogBackward0" in finding.message
