"""Sums where means are meant, and clipping, decay, epsilons and precisions that take a step its size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional

from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.program import Watch
from tests.zoo.program import fit
from tests.zoo.proofs import worse
from tests.zoo.village_data import SYMBOLS
from tests.zoo.village_data import TOPICS
from tests.zoo.village_data import VOCABULARY
from tests.zoo.village_data import fabrics
from tests.zoo.village_data import headlines
from tests.zoo.village_data import loans
from tests.zoo.village_data import motions
from tests.zoo.village_data import pairs
from tests.zoo.village_data import rentals
from tests.zoo.village_data import spots
from tests.zoo.village_data import stories


class Teller(nn.Module):
    """A language model of one GRU; logits [size, SYMBOLS, length]."""

    def __init__(self, *, width: int = 40) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.out(self.recurrent(self.symbols(symbols))[0]).transpose(1, 2)


def story_summed(watch: Watch, faulty: bool) -> Outcome:
    """CrossEntropyLoss(reduction="sum") over 320 symbols, at the rate for their mean. The course is the mean."""
    model = Teller()
    criterion = nn.CrossEntropyLoss(reduction="sum" if faulty else "mean")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    outcome = fit(watch, model, stories(steps=250), criterion, optimizer)
    return replace(outcome, course=tuple(loss / (320 if faulty else 1) for loss in outcome.course))


def marked(places: Tensor, *, size: int = 16) -> Tensor:
    """Pictures that are bright around these places, [count, 1, size, size]."""
    line = torch.linspace(-1, 1, size)
    across, down = (line - places[:, :1]).square(), (line - places[:, 1:]).square()
    return torch.exp(-(across[:, None, None, :] + down[:, None, :, None]) / 0.05)


def maps_summed(watch: Watch, faulty: bool) -> Outcome:
    """((output - target) ** 2).sum() over the pixels of maps that mark a place. The course is the mean, in hundredths."""
    x, places = spots()
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2), nn.SiLU(), nn.Conv2d(12, 12, 5, padding=2), nn.SiLU(), nn.Conv2d(12, 1, 1)
    )

    def loss(output: Tensor, target: Tensor) -> Tensor:
        squares = (output - target) ** 2
        return squares.sum() if faulty else squares.mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    outcome = fit(watch, model, pairs(x, marked(places), size=16, steps=250), loss, optimizer)
    return replace(outcome, course=tuple(100 * value / (16 * 256 if faulty else 1) for value in outcome.course))


def twelve_pieces(watch: Watch, faulty: bool) -> Outcome:
    """Twelve batches of eight pictures make a step, and none of their losses is divided by twelve."""
    x, y = fabrics()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.zero_grad()
    course = []
    for i, (pictures, labels) in enumerate(pairs(x, y, size=8, steps=1200)):
        loss = functional.cross_entropy(model(pictures), labels)
        course.append(loss.item())
        if not faulty:
            loss = loss / 12
        loss.backward()
        if (i + 1) % 12 == 0:
            optimizer.step()
            optimizer.zero_grad()
    return Outcome(tuple(course))


class Wearer(nn.Module):
    """A GRU over a sensor's channels, and what was done by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x.permute(2, 0, 1))[1][0])


def clipped_to_a_thousandth(watch: Watch, faulty: bool) -> Outcome:
    """clip_grad_norm_(…, 1e-3) after a glance at a paper that clips values, and plain descent."""
    x, y = motions()
    model = Wearer()
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    course = []
    for waves, labels in pairs(x, y, size=48, steps=300):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(waves), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3 if faulty else 2.0)
        optimizer.step()
        course.append(loss.item())
    return Outcome(tuple(course))


def scaled_and_clipped(watch: Watch, faulty: bool) -> Outcome:
    """autocast to float16 and a GradScaler, and clip_grad_norm_ without scaler.unscale_(optimizer) before it."""
    x, y = loans()
    model = nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    course = []
    for inputs, labels in pairs(x, y, size=64, steps=300):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            output = model(inputs).squeeze(1)
        loss = functional.binary_cross_entropy_with_logits(output.float(), labels)
        scaler.scale(loss).backward()
        if not faulty:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        course.append(loss.item())
    return Outcome(tuple(course))


def decay_of_a_tenth(watch: Watch, faulty: bool) -> Outcome:
    """weight_decay=0.1, which is what a transformer has under AdamW, in descent with momentum."""
    x, y = fabrics()
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ELU(), nn.Conv2d(16, 16, 3, stride=2), nn.ELU(), nn.Flatten(), nn.Linear(144, 5)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1 if faulty else 1e-4)
    return fit(watch, model, pairs(x, y, steps=300), functional.cross_entropy, optimizer)


def penalty_by_hand(watch: Watch, faulty: bool) -> Outcome:
    """A tenth of the squares of all weights is added to the loss, or a hundred-thousandth. The course is the loss without."""
    x, counts = rentals()
    target = (counts - counts.mean()) / counts.std()
    model = nn.Sequential(nn.Linear(7, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh(), nn.Linear(24, 1), nn.Flatten(0))
    watch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    course = []
    for inputs, wanted in pairs(x, target, size=64, steps=400):
        error = functional.mse_loss(model(inputs), wanted)
        loss = error + (0.1 if faulty else 1e-5) * sum(p.square().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(error.item())
    return Outcome(tuple(course))


class Glance(nn.Module):
    """Convolutions over two and three words at a time, the largest over places."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 24)
        self.spans = nn.ModuleList(nn.Conv1d(24, 24, width) for width in (1, 2, 3))
        self.out = nn.Linear(72, TOPICS)

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens).transpose(1, 2)
        return self.out(torch.cat([functional.relu(span(words)).amax(2) for span in self.spans], dim=1))


def epsilon_of_inception(watch: Watch, faulty: bool) -> Outcome:
    """eps=1.0, as a page on another framework's Adam advises for a large net for pictures."""
    x, y = headlines()
    model = Glance()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1.0 if faulty else 1e-8)
    return fit(watch, model, pairs(x, y, steps=300), functional.cross_entropy, optimizer)


def fine_tuned_in_bfloat16(watch: Watch, faulty: bool) -> Outcome:
    """A trained net gets a new head, is loaded as bfloat16 and goes on with other labels, at a rate for fine-tuning."""
    x, y = motions()
    model = nn.Sequential(nn.Flatten(), nn.Linear(240, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))
    first = torch.optim.Adam(model.parameters(), lr=2e-3)
    fit(lambda model: None, model, pairs(x, y // 2, steps=80), functional.cross_entropy, first)
    model[-1] = nn.Linear(64, 4)
    kind = torch.bfloat16 if faulty else torch.float32
    model = model.to(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = pairs(x.to(kind), y, steps=500)
    return fit(watch, model, batches, functional.cross_entropy, optimizer)


PROGRAMS = (
    Fault(story_summed, ("loss-reduction-sum",), worse(1.5), falls_to=0.8),
    Fault(maps_summed, ("loss-reduction-sum",), worse(2)),
    Fault(twelve_pieces, ("accumulation-not-averaged",), worse(2)),
    Fault(clipped_to_a_thousandth, ("clipping-too-tight",), worse(2)),
    Fault(scaled_and_clipped, ("clipping-misplaced",), worse(2)),
    Fault(decay_of_a_tenth, ("excessive-weight-decay",), worse(2)),
    Fault(penalty_by_hand, ("excessive-weight-decay",), worse(1.5)),
    Fault(epsilon_of_inception, ("adam-epsilon-dominates",), worse(2)),
    Fault(fine_tuned_in_bfloat16, ("bf16-stalled-updates",), worse(1.5)),
)
