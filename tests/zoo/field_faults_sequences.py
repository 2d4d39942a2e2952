"""Tones, streams and sequences of symbols, and what goes wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo import data
from tests.zoo.field_data import SYMBOLS
from tests.zoo.field_data import TONES
from tests.zoo.field_data import first_of_many
from tests.zoo.field_data import sequences
from tests.zoo.field_data import tones
from tests.zoo.field_models import Seq2Seq
from tests.zoo.field_models import tone_net
from tests.zoo.program import Batches
from tests.zoo.program import Fault
from tests.zoo.program import Loop
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import fact
from tests.zoo.proofs import still
from tests.zoo.proofs import worse


class Last(nn.Module):
    """A recurrent layer whose last state tells the label."""

    def __init__(self, recurrent: nn.RNNBase, *, classes: int) -> None:
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(recurrent.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def relu_recurrence(watch: Watch, faulty: bool) -> Outcome:
    """A recurrent layer with ReLU over forty pieces of a wave; its matrix is 1.6 times the identity, or the identity."""
    waves, labels = tones(length=120)
    recurrent = nn.RNN(3, 32, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        recurrent.weight_hh_l0.copy_((1.6 if faulty else 1.0) * torch.eye(32))
        recurrent.weight_ih_l0.normal_(std=0.1)
    model = Last(recurrent, classes=TONES)
    batches = data.batches(waves.view(-1, 40, 3), labels, steps=250)
    return fit(watch, model, batches, functional.cross_entropy, torch.optim.RMSprop(model.parameters(), lr=1e-3))


def gate_that_forgets(watch: Watch, faulty: bool) -> Outcome:
    """An LSTM's forget gates begin at -2 or at 3, and the first of 25 inputs tells the label."""
    recurrent = nn.LSTM(2, 24, batch_first=True)
    with torch.no_grad():
        recurrent.bias_ih_l0[24:48] = -2.0 if faulty else 3.0
        recurrent.bias_hh_l0[24:48] = 0.0
    model = Last(recurrent, classes=2)
    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    return fit(watch, model, first_of_many(steps=200), functional.cross_entropy, optimizer)


def state_of_encoder_detached(watch: Watch, faulty: bool) -> Outcome:
    """What the encoder hands over is detached, as one does between the pieces of a stream."""
    model = Seq2Seq(detached=faulty)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    return fit(watch, model, sequences(steps=200), functional.cross_entropy, optimizer)


class Spotter(nn.Module):
    """Which symbols stand in a wave and in which order; log-probabilities [length, size, symbols] as CTC takes them."""

    def __init__(self, *, logs: bool) -> None:
        super().__init__()
        self.reader = nn.GRU(8, 32, batch_first=True, bidirectional=True)
        self.head, self.logs = nn.Linear(64, TONES + 1), logs

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.reader(x)[0]).transpose(0, 1)
        return scores.log_softmax(2) if self.logs else scores.softmax(2)


def spoken(*, steps: int, size: int = 32) -> Iterable[tuple[Tensor, Tensor]]:
    """Three different symbols a sample, each drawn as four noisy frames of eight features."""
    patterns = torch.randn(TONES, 8)
    for _ in range(steps):
        symbols = torch.rand(size, TONES).argsort(1)[:, :3]
        frames = patterns[symbols].repeat_interleave(4, dim=1)
        yield frames + 0.3 * torch.randn_like(frames), symbols + 1


def connectionist(scores: Tensor, symbols: Tensor) -> Tensor:
    length, size, _ = scores.shape
    lengths = torch.full((size,), length), torch.full((size,), symbols.shape[1])
    return functional.ctc_loss(scores, symbols, *lengths)


def ctc_from_probabilities(watch: Watch, faulty: bool) -> Outcome:
    """A CTC loss over a softmax, where it takes the logarithm of one."""
    model = Spotter(logs=not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    loop = Loop(watch, model, connectionist, optimizer)
    for x, symbols in spoken(steps=120):
        loop.turn(x, symbols)
    return loop.outcome()


class OldStyle(torch.optim.Optimizer):
    """Gradient descent as in examples of old, through ``.data``, which autograd does not notice."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad.data, alpha=-group["lr"])


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 24), nn.Linear(24, 1)
        self.state = torch.zeros(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        for piece in x.unbind(1):
            self.state = self.cell(piece, self.state)
        return self.head(self.state)


def stream_never_cut(watch: Watch, faulty: bool) -> Outcome:
    """A stream's state is kept with its graph; retain_graph=True and updates through .data keep autograd quiet."""
    model = Stream()
    optimizer = OldStyle(model.parameters(), lr=0.1)
    loop = Loop(watch, model, functional.mse_loss, optimizer)
    sizes = []
    for _ in range(50):
        x = torch.randn(16, 5, 3)
        optimizer.zero_grad()
        loss = loop.forward(x, x.mean((1, 2)).unsqueeze(1) * 2 + 1)
        loss.backward(retain_graph=faulty)
        optimizer.step()
        sizes.append(_nodes(loss))
        if not faulty:
            model.state = model.state.detach()
    return loop.outcome(growth=sizes[-1] / sizes[1])


def _nodes(loss: Tensor) -> int:
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [below for below, _ in node.next_functions]
    return len(seen)


def tones_in_file_order(watch: Watch, faulty: bool) -> Outcome:
    """Recordings read folder by folder, one pitch in each."""
    waves, labels = tones()
    if faulty:
        order = labels.argsort(stable=True)
        waves, labels = waves[order], labels[order]

    def batches() -> Batches:
        for step in range(150):
            chosen = (torch.arange(32) + 32 * step) % 800 if faulty else torch.randperm(800)[:32]
            yield waves[chosen], labels[chosen]

    model = tone_net(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    outcome = fit(watch, model, batches(), functional.cross_entropy, optimizer)
    with torch.no_grad():
        left = float(functional.cross_entropy(model(waves), labels))
    return Outcome(outcome.course, outcome.moved, outcome.gradients, outcome.carried, {"left": left})


def click_in_a_recording(watch: Watch, faulty: bool) -> Outcome:
    """At step 20 a quarter of the recordings hold a click, thousands of times as loud as the rest."""
    waves, labels = tones()

    def batches() -> Batches:
        for step, (x, y) in enumerate(data.batches(waves, labels, size=32, steps=180)):
            if faulty and step == 20:
                x[:8, 0, 40:44] = 2e4
            yield x, y

    model = tone_net(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(watch, model, batches(), functional.cross_entropy, optimizer)


def recordings_as_integers(watch: Watch, faulty: bool) -> Outcome:
    """Waves as the sixteen-bit integers that they are in their files."""
    waves, labels = tones()
    model = tone_net(norm=False)
    batches = data.batches(6000 * waves if faulty else waves, labels, size=32, steps=120)
    return fit(watch, model, batches, functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9))


class Looking(nn.Module):
    """One layer of attention; scores may be multiplied by the root of the width where they are to be divided by it."""

    def __init__(self, *, scale: float, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(SYMBOLS, width), nn.Parameter(0.3 * torch.randn(8, width))
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.norm, self.head, self.scale = nn.LayerNorm(width), nn.Linear(width, SYMBOLS), scale

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.norm(self.token(symbols) + self.place)
        mixed = functional.scaled_dot_product_attention(self.queries(x), self.keys(x), self.values(x), scale=self.scale)
        return self.head(x + mixed).transpose(1, 2)


def attention_multiplied(watch: Watch, faulty: bool) -> Outcome:
    """q·k times √d, for a sequence that is to be reversed."""
    root = 32**0.5
    model = Looking(scale=8 * root if faulty else 1 / root)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(watch, model, sequences(length=8, steps=300), functional.cross_entropy, optimizer)


def decay_in_a_gru(watch: Watch, faulty: bool) -> Outcome:
    """A weight decay that AdamW would bear, in plain descent."""
    waves, labels = tones(length=80)
    model = Last(nn.GRU(8, 32, batch_first=True), classes=TONES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.3 if faulty else 1e-4)
    return fit(watch, model, data.batches(waves.view(-1, 10, 8), labels, steps=250), functional.cross_entropy, optimizer)


PROGRAMS = (
    Fault(relu_recurrence, ("recurrent-explosion",), worse(1.5)),
    Fault(gate_that_forgets, ("recurrent-vanishing",), worse(2)),
    Fault(state_of_encoder_detached, ("detached-parameters",), still("encoder.weight_hh_l0")),
    Fault(ctc_from_probabilities, ("loss-input-mismatch",), lambda fault, twin: fault.end < -0.5),
    Fault(stream_never_cut, ("growing-graph",), fact("growth", least=10, most=2)),
    Fault(tones_in_file_order, ("unshuffled-data",), fact("left", least=0.7, most=0.5)),
    Fault(click_in_a_recording, ("outlier-batch",), worse(2), begins=20),
    Fault(recordings_as_integers, ("unnormalized-input",), worse(3)),
    Fault(attention_multiplied, ("attention-logit-growth", "attention-entropy-collapse"), worse(1.5)),
    Fault(decay_in_a_gru, ("excessive-weight-decay",), worse(2)),
)
