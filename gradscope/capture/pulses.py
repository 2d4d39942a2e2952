"""Every step's cheap scalars: the loss without waiting for it, the gradient norm, the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol
from typing import final

import numpy as np
import torch

from gradscope.capture.graph import saved_tensor
from gradscope.capture.transfer import Arrays
from gradscope.capture.transfer import Mailbox

_BATCH_ELSEWHERE = 16  # steps whose scalars an accelerator's copy brings at once
_REMEMBERED = 20
_JUMP = 3.0  # times the largest of the last twenty that makes a loss or a gradient norm suspicious


class Receiver(Protocol):
    def __call__(self, row: tuple[float, ...], *, alarming: bool) -> None:
        """Take one step's pulse, in the order of PULSE_FIELDS; ``alarming`` where its numbers look wrong."""


@dataclass(frozen=True)
class _Step:
    """A finished step whose losses and norm may still lie on the device."""

    scalars: tuple[float, ...]  # step, learning rate, seconds, own seconds, backwards, sampled, foreign
    losses: tuple[torch.Tensor, ...]
    factors: tuple[torch.Tensor | None, ...]  # what a GradScaler multiplied each loss with
    norm: torch.Tensor | None


@final
class PulseMaker:
    """Collects what each step shows cheaply, and hands it over once it has reached the host."""

    def __init__(self, mailbox: Mailbox, receiver: Receiver) -> None:
        self._mailbox = mailbox
        self._receiver = receiver
        self._losses: list[torch.Tensor] = []
        self._factors: list[torch.Tensor | None] = []
        self._norm: torch.Tensor | None = None
        self._finished: list[_Step] = []
        self._recent_losses: deque[float] = deque(maxlen=_REMEMBERED)
        self._recent_norms: deque[float] = deque(maxlen=_REMEMBERED)
        self.backwards = 0

    def backward(self, loss: torch.Tensor, *, ours: bool) -> None:
        """A backward call on ``loss``; it counts only where it reaches the model."""
        if not ours:
            return
        self.backwards += 1
        if loss.numel() == 1:
            self._losses.append(loss.detach().clone())  # the user may go on to change it in place
            self._factors.append(_loss_scale(loss))

    def count_backward(self, *, first: bool) -> None:
        """A backward call of a step whose scalars are not taken."""
        self.backwards = 1 if first else self.backwards + 1

    def end_unseen(self, step: int, seconds: float, own: float) -> None:
        """Tell of finished steps whose scalars were not taken, the last of which is ``step``."""
        self._finished.append(_Step((step, float("nan"), seconds, own, 0, 0.0, 0.0), (), (), None))

    def restart(self) -> None:
        """Forget the losses seen since the last step."""
        self._losses, self._factors, self.backwards = [], [], 0

    def observe(self, loss: float | torch.Tensor) -> None:
        self.backwards += 1
        self._losses.append(
            loss.detach().clone() if isinstance(loss, torch.Tensor) else torch.tensor(float(loss), device="cpu")
        )
        self._factors.append(None)

    @property
    def loss_scale(self) -> torch.Tensor | None:
        """What the step's last loss was multiplied with last, if that may be a GradScaler's doing; see ``is_loss_scale``."""
        return self._factors[-1] if self._factors else None

    def norm(self, norm: torch.Tensor | None) -> None:
        """Add the norm of one optimizer's gradients to the step's."""
        if self._norm is not None and norm is not None:
            norm = torch.linalg.vector_norm(torch.stack([self._norm, norm.to(self._norm.device, non_blocking=True)]))
        self._norm = norm

    def end(self, step: int, learning_rate: float, *, seconds: float, own: float, sampled: bool, foreign: bool) -> None:
        """The step is over."""
        scalars = (step, learning_rate, seconds, own, self.backwards if self._losses else 0, float(sampled), float(foreign))
        self._finished.append(_Step(scalars, tuple(self._losses), tuple(self._factors), self._norm))
        on_host = all(
            tensor.device.type == "cpu" for tensor in (*self._losses, *([self._norm] if self._norm is not None else []))
        )
        self._losses, self._factors, self._norm, self.backwards = [], [], None, 0
        if on_host or sampled or len(self._finished) >= _BATCH_ELSEWHERE:
            self.flush()

    def flush(self) -> None:
        """Send the finished steps to the host."""
        steps, self._finished = self._finished, []
        if not steps:
            return
        tensors: list[torch.Tensor] = []
        for step in steps:
            tensors.extend((*step.losses, *(f for f in step.factors if f is not None)))
            tensors.extend([step.norm] if step.norm is not None else [])

        def arrived(arrays: Arrays) -> None:
            values = iter([float(array.reshape(-1)[0]) for array in arrays])
            for step in steps:
                losses = [next(values) for _ in step.losses]
                factors = [next(values) if factor is not None else 1.0 for factor in step.factors]
                self._hand_on(step, losses, factors, next(values) if step.norm is not None else float("nan"))

        self._mailbox.send(tensors, arrived)

    def _hand_on(self, step: _Step, losses: list[float], factors: list[float], norm: float) -> None:
        index, learning_rate, seconds, own, backwards, sampled, foreign = step.scalars
        unscaled = [loss / factor if is_loss_scale(factor) else loss for loss, factor in zip(losses, factors, strict=True)]
        loss = float(np.mean(unscaled)) if unscaled else float("nan")
        if step.norm is not None and np.isnan(norm):
            norm = float("inf")  # captured, and not finite
        row = (index, loss, norm, learning_rate, seconds, own, backwards, sampled, foreign)
        self._receiver(row, alarming=bool(losses) and self._looks_wrong(loss, norm, captured=step.norm is not None))

    def _looks_wrong(self, loss: float, norm: float, *, captured: bool) -> bool:
        wrong = _jumps(loss, self._recent_losses) or (captured and _jumps(norm, self._recent_norms))
        self._recent_losses.append(loss)
        if captured:
            self._recent_norms.append(norm)
        return wrong


def _jumps(value: float, recent: deque[float]) -> bool:
    """Whether a value is not finite where its predecessor was, or three times the largest of late."""
    if not np.isfinite(value):
        return not recent or bool(np.isfinite(recent[-1]))
    return len(recent) == _REMEMBERED and abs(value) > _JUMP * max(map(abs, recent))


def _loss_scale(loss: torch.Tensor) -> torch.Tensor | None:
    """The scalar tensor that the loss was multiplied with last, if any: a GradScaler's loss scale looks so."""
    node = loss.grad_fn
    if node is None or node.name() != "MulBackward0" or node.next_functions[1][0] is not None:
        return None
    factor = saved_tensor(node, "other")
    scalar = factor is not None and factor.dim() == 0 and factor.dtype is torch.float32
    return factor.detach().clone() if factor is not None and scalar else None


def is_loss_scale(factor: float) -> bool:
    """A GradScaler starts at a power of two and only ever doubles or halves."""
    return factor > 1.0 and np.frexp(factor)[0] == 0.5
