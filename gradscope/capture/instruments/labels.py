"""How class labels are spread: counted on their device, where nothing waits for them."""

from __future__ import annotations

import math
from typing import final

import torch

from gradscope.capture.sampling import spread
from gradscope.capture.transfer import to_device

MOST_LABELS = 8192  # of a backward pass that are counted
MOST_CLASSES = 1 << 18


@final
class LabelCounts:
    """Counts of one loss's labels: of the step that is going on, and of all sampled steps."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._counts = torch.zeros(2, classes, dtype=torch.float32, device=device)  # of the step, and of all
        self._chosen: tuple[int, torch.Tensor] | None = None

    def fits(self, classes: int, device: torch.device) -> bool:
        return self._counts.shape[1] == classes and self._counts.device == device

    def start_step(self) -> None:
        self._counts[0].zero_()

    def add(self, labels: torch.Tensor, ignored: int) -> None:
        """Count a backward pass's labels; of very many, a sample that stands for all."""
        flat = labels.reshape(-1)
        share = 1.0
        if len(flat) > MOST_LABELS:
            share = len(flat) / MOST_LABELS
            flat = flat.index_select(0, self._sample(len(flat)))
        counted = flat.ne(ignored).to(torch.float32)
        if share != 1.0:
            counted *= share
        places = flat.clamp(0, self._counts.shape[1] - 1)
        self._counts[0].scatter_add_(0, places if places.dtype is torch.int64 else places.long(), counted)

    def end_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the step and of all: the number of labels n, and the sum of c ln c over the classes' counts c. Each [2].

        The entropy is ln n - sum / n.
        """
        self._counts[1] += self._counts[0]
        return self._counts.sum(1), torch.xlogy(self._counts, self._counts).sum(1)

    def _sample(self, size: int) -> torch.Tensor:
        if self._chosen is None or self._chosen[0] != size:
            self._chosen = (size, to_device(torch.from_numpy(spread(size, MOST_LABELS)), self._counts.device))
        return self._chosen[1]


def entropy(count: float, total: float) -> float:
    """In nats, from what ``end_step`` gives; NaN for no labels."""
    return max(math.log(count) - total / count, 0.0) if count > 0 else math.nan
