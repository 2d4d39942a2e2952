"""Every step's cheap scalars: the loss without waiting for it, the gradient norm, the time."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple
from typing import Protocol
from typing import final

import torch

from gradscope.capture.graph import saved_tensor
from gradscope.capture.shards import estimate_of
from gradscope.capture.transfer import Arrays
from gradscope.capture.transfer import Mailbox
from gradscope.capture.transfer import number_at_hand
from gradscope.capture.transfer import together

BATCH = 16  # steps whose scalars are brought to the host at once
MOST_SECONDS = 1.0  # after which those of fewer are: what a crash may cost
LEAST_LOSS_SCALE = 256.0
_REMEMBERED = 20
_JUMP = 3.0  # times the largest of the last twenty that makes a loss or a gradient norm suspicious


class Receiver(Protocol):
    def __call__(self, row: tuple[float, ...], *, alarming: bool) -> None:
        """Take one step's pulse, in the order of PULSE_FIELDS; ``alarming`` where its numbers look wrong."""


class QuietStep(NamedTuple):
    """A step that has ended: its loss and gradient norm, numbers where they were on the host already, and its times.

    Made at every step.
    """

    loss: torch.Tensor | float
    norm: torch.Tensor | float | None
    learning_rate: float
    seconds: float
    own: float


@dataclass(frozen=True)
class _Step:
    """A finished step whose losses and norm may still lie on the device."""

    scalars: tuple[float, ...]  # step, learning rate, seconds, own seconds, backwards, sampled, foreign
    losses: tuple[torch.Tensor | float, ...]  # a number where it was on the host already
    factors: tuple[torch.Tensor | None, ...]  # what a GradScaler multiplied each loss with
    skipped: torch.Tensor | None  # the first of the losses whose gradients were thrown away, as those of skipped steps are
    norm: torch.Tensor | float | None

    def tensors(self) -> list[torch.Tensor]:
        """All that lies on a device, in the order in which it is read."""
        norm = [self.norm] if isinstance(self.norm, torch.Tensor) else []
        losses = [loss for loss in self.losses if isinstance(loss, torch.Tensor)]
        return [*losses, *(factor for factor in (*self.factors, self.skipped) if factor is not None), *norm]


@final
class PulseMaker:
    """Collects what each step shows cheaply, and hands it over once it has reached the host."""

    def __init__(self, mailbox: Mailbox, receiver: Receiver) -> None:
        self._mailbox = mailbox
        self._receiver = receiver
        self._losses: list[torch.Tensor | float] = []
        self._factors: list[torch.Tensor | None] = []
        self._skipped: torch.Tensor | None = None
        self._norm: torch.Tensor | float | None = None
        self._finished: list[_Step] = []
        self._flushed = monotonic()
        self._recent_losses: deque[float] = deque(maxlen=_REMEMBERED)
        self._recent_norms: deque[float] = deque(maxlen=_REMEMBERED)
        self._scale_seen = False
        self.losses_add_up = False  # whether a step's loss is the sum of those of its backward calls, and not their mean
        self._scaled_at = -1  # where the scalar lies that the step's last loss was multiplied with
        self._repeats = False  # whether the step's loss is known, and the model is asked again at other weights
        self.backwards = 0

    def backward(self, loss: torch.Tensor) -> None:
        """A backward call on ``loss``, which reaches the model."""
        if self._repeats:
            return
        self.backwards += 1
        if loss.numel() == 1:
            self._losses.append(kept_loss(loss))
            factor = _factor_of(loss)
            self._factors.append(None if factor is None else factor.clone())
            self._scaled_at = -1 if factor is None else factor.data_ptr()

    def resume(self, loss: torch.Tensor | float) -> None:
        """A backward call that someone else has heard, whose loss no GradScaler has multiplied."""
        self.backwards, self._repeats = 1, False
        self._losses, self._factors = [loss], [None]

    def repeat(self) -> None:
        """From here to the step's end backward is called at weights other than those that the step began with."""
        self._repeats = True

    def restart(self) -> None:
        """Forget the losses seen since the last step."""
        if self._factors and self._skipped is None and not self._scale_seen:
            self._skipped = self._factors[0]  # of steps in a row that a GradScaler skips, the first has the largest scale
        self._losses, self._factors, self.backwards, self._repeats = [], [], 0, False

    def observe(self, loss: float | torch.Tensor) -> None:
        self.backwards += 1
        self._losses.append(kept_loss(loss) if isinstance(loss, torch.Tensor) else float(loss))
        self._factors.append(None)

    @property
    def is_broken(self) -> bool:
        """Whether the step's last loss is at hand and not finite."""
        last = self._losses[-1] if self._losses else 0.0
        return isinstance(last, float) and not math.isfinite(last)

    def is_suspicious(self, loss: torch.Tensor) -> bool:
        """Whether a loss whose value is at hand is far above the last ones that are known; one with a loss scale never is."""
        value = number_at_hand(loss) if loss.numel() == 1 and not self._scale_seen else None
        return value is not None and _jumps(value, self._recent_losses)

    @property
    def limits(self) -> tuple[float, float]:
        """Magnitudes of a loss and of a gradient norm above which they are suspicious."""
        return _limit(self._recent_losses), _limit(self._recent_norms)

    @property
    def is_plain(self) -> bool:
        """Whether the step has had one backward call, on a loss that no GradScaler has multiplied."""
        return self.backwards == 1 and len(self._losses) == 1 and self._factors[0] is None and not self._repeats

    def is_scaled_by(self, scale: torch.Tensor) -> bool:
        """Whether the step's last loss was multiplied with this very scalar."""
        return bool(self._losses) and self._scaled_at == scale.data_ptr()

    @property
    def scale_seen(self) -> bool:
        """Whether a loss of an earlier step, made or skipped, was multiplied with a large power of two."""
        return self._scale_seen

    @property
    def loss_scale(self) -> torch.Tensor | None:
        """What the step's last loss was multiplied with last, if that may be a GradScaler's doing; see ``is_loss_scale``."""
        return self._factors[-1] if self._factors else None

    def norm(self, norm: torch.Tensor | float | None) -> None:
        """Add the norm of one optimizer's gradients to the step's; None begins anew."""
        self._norm = _both(self._norm, norm)

    def end(self, step: int, learning_rate: float, *, seconds: float, own: float, sampled: bool, foreign: bool) -> None:
        """The step is over."""
        scalars = (step, learning_rate, seconds, own, self.backwards if self._losses else 0, float(sampled), float(foreign))
        ended = _Step(scalars, tuple(self._losses), tuple(self._factors), self._skipped, self._norm)
        self._losses, self._factors, self._skipped, self._norm, self.backwards = [], [], None, None, 0
        self._repeats = False
        self._finished.append(ended)
        # Not one by one: between two steps of a training, code that ran long ago is slow to come back to the caches.
        if len(self._finished) >= BATCH or monotonic() - self._flushed > MOST_SECONDS:
            self.flush()

    def book(self, step: int, quiet: QuietStep, *, sampled: bool) -> None:
        """Hand over a quiet step whose numbers are at hand, once all before it were flushed."""
        norm = math.nan if quiet.norm is None else float(quiet.norm)
        captured = quiet.norm is not None
        norm = math.inf if captured and math.isnan(norm) else norm
        loss = float(quiet.loss)
        row = (step, loss, norm, quiet.learning_rate, quiet.seconds, quiet.own, 1, float(sampled), 0.0, math.nan)
        self._receiver(row, alarming=self._looks_wrong(loss, norm, captured=captured))

    def flush(self) -> None:
        """Send the finished steps to the host."""
        steps, self._finished = self._finished, []
        self._flushed = monotonic()
        if not steps:
            return

        def arrived(arrays: Arrays) -> None:
            values = iter(arrays[0].tolist())
            for step in steps:
                self._hand_on(step, values)

        tensors = [tensor.detach().reshape(()).float() for step in steps for tensor in step.tensors()]
        self._mailbox.send([together(tensors)], arrived)

    def _hand_on(self, step: _Step, values: Iterator[float]) -> None:
        """Hand over one step, whose tensors have the next of these values."""
        index, learning_rate, seconds, own, backwards, sampled, foreign = step.scalars
        losses = [loss if isinstance(loss, float) else next(values) for loss in step.losses]
        factors = [next(values) if factor is not None else 1.0 for factor in step.factors]
        skipped = [next(values)] if step.skipped is not None else []
        self._scale_seen = self._scale_seen or any(is_loss_scale(factor) for factor in (*factors, *skipped))
        norm = step.norm if isinstance(step.norm, float) else next(values) if step.norm is not None else math.nan
        if step.norm is not None and math.isnan(norm):
            norm = math.inf  # captured, and not finite
        scaled = [
            factor is not None and is_loss_scale(value, seen=self._scale_seen)
            for factor, value in zip(step.factors, factors, strict=True)
        ]
        loss, scale = _unscaled(losses, factors, scaled)
        loss *= len(losses) if self.losses_add_up else 1
        row = (index, loss, norm, learning_rate, seconds, own, backwards, sampled, foreign, scale)
        self._receiver(row, alarming=bool(losses) and self._looks_wrong(loss, norm, captured=step.norm is not None))

    def _looks_wrong(self, loss: float, norm: float, *, captured: bool) -> bool:
        wrong = _jumps(loss, self._recent_losses) or (captured and _jumps(norm, self._recent_norms))
        self._recent_losses.append(loss)
        if captured:
            self._recent_norms.append(norm)
        return wrong


def _unscaled(losses: list[float], factors: list[float], scaled: list[bool]) -> tuple[float, float]:
    """The mean of the losses without the scales of a GradScaler, and the last of these; NaN for what is not there."""
    if scaled == [False]:
        return losses[0], math.nan
    scales = [factor for factor, is_scale in zip(factors, scaled, strict=True) if is_scale]
    unscaled = [loss / factor if is_scale else loss for loss, factor, is_scale in zip(losses, factors, scaled, strict=True)]
    return sum(unscaled) / len(unscaled) if unscaled else math.nan, scales[-1] if scales else math.nan


def _both(norm: torch.Tensor | float | None, other: torch.Tensor | float | None) -> torch.Tensor | float | None:
    """The norm of two vectors together from the norms of each."""
    if norm is None or other is None:
        return other
    if isinstance(norm, float) and isinstance(other, float):
        return math.hypot(norm, other)
    parts = [p if isinstance(p, torch.Tensor) else torch.tensor(p, dtype=torch.float32, device="cpu") for p in (norm, other)]
    return torch.linalg.vector_norm(together(parts))  # type: ignore[no-any-return]


def kept_loss(loss: torch.Tensor) -> torch.Tensor | float:
    """A copy, as the user may go on to change the loss in place; its value where that is at hand without waiting."""
    number = number_at_hand(loss)
    return estimate_of(loss).detach().clone() if number is None else number


def host_value(scalar: torch.Tensor) -> torch.Tensor | float:
    """A number where the tensor is on the host: kept as a tensor it would hold a place amid the training's memory."""
    number = number_at_hand(scalar)
    return scalar if number is None else number


def _jumps(value: float, recent: deque[float]) -> bool:
    """Whether a value is not finite where its predecessor was, or three times the largest of late."""
    if not math.isfinite(value):
        return not recent or math.isfinite(recent[-1])
    return abs(value) > _limit(recent)


def _limit(recent: deque[float]) -> float:
    return _JUMP * max(map(abs, recent)) if len(recent) == _REMEMBERED else sys.float_info.max


def loss_scale_of(loss: torch.Tensor) -> torch.Tensor | None:
    """What the loss was multiplied with last, a copy, if that was a scalar tensor: a GradScaler's loss scale looks so."""
    factor = _factor_of(loss)
    return None if factor is None else factor.clone()


def _factor_of(loss: torch.Tensor) -> torch.Tensor | None:
    """The same, where it lies."""
    node = loss.grad_fn
    if node is None or node.name() != "MulBackward0" or node.next_functions[1][0] is not None:
        return None
    factor = saved_tensor(node, "other")
    scalar = factor is not None and factor.dim() == 0 and factor.dtype is torch.float32
    return factor.detach() if factor is not None and scalar else None


def is_loss_scale(factor: float, *, seen: bool = False) -> bool:
    """A GradScaler starts at a large power of two and only ever doubles or halves; a weight of the user's is small.

    Where a scale was ``seen`` before, any power of two is one: it halves until nothing overflows, below 1 if need be.
    """
    return (seen or factor >= LEAST_LOSS_SCALE) and math.frexp(factor)[0] == 0.5
