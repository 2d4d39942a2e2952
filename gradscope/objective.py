"""What graphs and sampled steps say of the loss: which function it is, what it is given, and what a constant would have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.evidence import gravity
from gradscope.records import LossInfo
from gradscope.records import Severity
from gradscope.timeline import Timeline
from gradscope.trends import median_of
from gradscope.weighing import LEAST_SPREAD
from gradscope.weighing import of_all

Floats = npt.NDArray[np.float64]

REGRESSIONS = ("mse", "l1", "smooth_l1")
_FUNCTIONS = {
    "cross_entropy": "cross_entropy", "nll": "nll_loss", "mse": "mse_loss", "l1": "l1_loss", "smooth_l1": "smooth_l1_loss",
    "bce": "binary_cross_entropy", "bce_with_logits": "binary_cross_entropy_with_logits",
}  # fmt: skip
SILENT = 1e-3  # standard deviation over the batch, under which an output says the same of all inputs
MOST_DRAWS = 512  # labels in a batch beyond which its entropy is all but that of the data


def sole_loss(timeline: Timeline) -> LossInfo | None:
    """The loss function where it was recognised and is the only one; None where several are added or play together."""
    known = timeline.info.wiring.losses if timeline.info.wiring else ()
    alone = len(known) == 1 and len(timeline.schema.losses) <= 1 and not timeline.several_objectives
    return known[0] if alone and known[0].kind != "other" else None


def given(timeline: Timeline, statistic: str) -> Floats:
    """A statistic of the first loss on each sampled step; NaN where it was not captured."""
    table = timeline.column(f"loss.{statistic}")
    return table[:, 0].astype(np.float64) if table.shape[1] else np.full(len(table), np.nan)


def silent(timeline: Timeline) -> bool:
    """Whether the output hardly varied over the batch as it was last seen: what came down since did so by the last biases."""
    outputs = given(timeline, "input_signal")
    return bool((outputs[np.isfinite(outputs)][-1:] < SILENT).any())


def given_to(timeline: Timeline, loss: LossInfo, statistic: str) -> Floats:
    """A statistic of one of the run's losses; NaN where it is not plain which of the captured ones that is."""
    losses = timeline.info.wiring.losses if timeline.info.wiring else ()
    table = timeline.column(f"loss.{statistic}")
    if len(losses) != table.shape[1]:
        return np.full(len(table), np.nan)
    return table[:, losses.index(loss)].astype(np.float64)


@final
@dataclass(frozen=True)
class Targets:
    """What the numbers are like that a regression is to predict: medians over the sampled batches."""

    mean: float
    std: float
    low: float
    high: float


def spreads(timeline: Timeline) -> Floats:
    """Standard deviation of the first loss's targets in each sampled batch; NaN where they are labels or were not captured."""
    mean, rms = given(timeline, "target_mean"), given(timeline, "target_rms")
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.sqrt(np.maximum(rms**2 - mean**2, 0.0))
        return np.asarray(np.where(spread < LEAST_SPREAD * rms, given(timeline, "target_signal"), spread), dtype=np.float64)


def batch_variances(timeline: Timeline) -> Floats:
    """What the best constant prediction has of a squared error, as a mean, on each sampled step; NaN where it is not known.

    Of a squared error that is computed several times in a step it is known where these are the parts of one mean.
    """
    loss, weights = sole_loss(timeline), timeline.column("loss.weight").astype(np.float64)
    if loss is not None and loss.kind == "mse":
        return spreads(timeline) ** 2
    known = timeline.info.wiring.losses if timeline.info.wiring else ()
    alike = loss is None and [(x.kind, x.reduction) for x in known] == [("mse", "mean")] and not timeline.several_objectives
    if not alike or not math.isfinite(of_all(weights, timeline.loss_weight, alike=False)):
        return np.full(len(weights), np.nan)
    mean, rms = (timeline.column(f"loss.target_{name}").astype(np.float64) for name in ("mean", "rms"))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray((weights * np.maximum(rms**2 - mean**2, 0.0)).sum(axis=1), dtype=np.float64)


def targets(timeline: Timeline) -> Targets | None:
    """The scale of the first loss's targets; None where they are labels or were not captured."""
    mean, spread = given(timeline, "target_mean"), spreads(timeline)
    found = Targets(*(median_of(x) for x in (mean, spread, given(timeline, "target_low"), given(timeline, "target_high"))))
    return found if math.isfinite(found.mean) and math.isfinite(found.std) else None


def terms(timeline: Timeline, loss: LossInfo) -> float:
    """How many numbers the loss adds or averages; NaN where that is not known."""
    counted = median_of(given(timeline, "target_count"))
    shape = loss.target_shape or ()
    soft = loss.kind == "cross_entropy" and shape == loss.input_shape and shape[1:2] == (loss.classes,)
    if math.isfinite(counted):
        return counted / (loss.classes or 1) if soft else counted  # one term for all classes' probabilities
    shape = shape or (loss.input_shape if loss.kind in REGRESSIONS else (loss.input_shape or ())[:1]) or ()
    calls = median_of(timeline.pulse("backwards")) if timeline.info.losses_add_up else 1.0
    return calls * math.prod(shape) if shape else math.nan


def loss_weight(timeline: Timeline) -> float:
    """By how much the first loss counts in what backward() was called on: 1, or 1/k where it was divided by k."""
    weight = timeline.loss_weight
    return weight if math.isfinite(weight) and weight != 0 else 1.0


def each(timeline: Timeline, loss: LossInfo, value: float) -> float:
    """A value of the run's loss as the mean over its terms, whatever it was multiplied with; NaN where that is not known."""
    share = 1 / loss_weight(timeline) / (terms(timeline, loss) if loss.reduction == "sum" else 1.0)
    larger = (timeline.loss[:1] * share > timeline.most_mean).any()  # other terms, or a sum over features, make it so
    return math.nan if larger else value * share


def chance(timeline: Timeline, loss: LossInfo) -> float:
    """The mean loss of the best constant prediction: entropy of the labels, variance of the targets; NaN where unknown."""
    if loss.kind in ("cross_entropy", "nll"):
        seen = given(timeline, "label_entropy_seen")
        seen = seen[np.isfinite(seen) & (seen > 0)]
        return float(seen[-1]) if len(seen) else guess(loss)
    known = targets(timeline)
    if known is None:
        return math.nan
    if loss.kind in ("bce", "bce_with_logits"):
        return two_way_entropy(known.mean) if 0 < known.mean < 1 else math.nan
    return known.std**2 if loss.kind == "mse" else math.nan


def of_the_mean(loss: LossInfo, known: Targets) -> float:
    """What predicting the mean of the targets costs at most: no mean error is larger than its root mean square.

    Huber's delta is not known: with a large one the loss is half the square, with one of 1 or less no more than the error.
    """
    if loss.kind == "mse":
        return known.std**2
    return max(known.std, known.std**2 / 2) if loss.node == "HuberLoss" else known.std


def guess(loss: LossInfo) -> float:
    """ln C, what a classifier has that knows nothing; NaN for other losses."""
    classes = loss.classes or 0
    return math.log(classes) if loss.kind in ("cross_entropy", "nll") and classes > 1 else math.nan


def two_way_entropy(share: float) -> float:
    """Entropy of a choice between two of which one has this share, in nats."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def label_mixing(timeline: Timeline, loss: LossInfo, *, least: float = 0.3) -> float:
    """Mean entropy of the sampled batches' labels over what shuffled batches of that size have at least.

    About 1 or more for shuffled data and 0 where each batch holds one class. NaN where batches are so small, or one class
    so frequent, that shuffled ones may be expected to have less than ``least`` nats.
    """
    entropies, seen = given(timeline, "label_entropy"), given(timeline, "label_entropy_seen")
    known = np.isfinite(entropies) & np.isfinite(seen)
    if not known.any() or (loss.classes or 0) < 2:
        return math.nan
    draws = terms(timeline, loss)
    if loss.target_shape and len(loss.target_shape) > 1:  # the labels of one image or text are alike
        draws = min(draws, float(loss.target_shape[0]))
    expected = _shuffled_entropy(float(seen[known][-1]), draws, int(loss.classes or 2))
    return float(entropies[known].mean() / expected) if expected >= least else math.nan


def _shuffled_entropy(entropy: float, draws: float, classes: int) -> float:
    """Expected entropy of ``draws`` labels from data with this entropy, for the data that makes it smallest.

    That is one frequent class and the others equally rare: H = h(p) + (1 - p) ln(C - 1), which is solved for p.
    """
    if not draws >= 2 or not 0 < entropy <= math.log(classes) * 1.001:
        return 0.0
    low, high = 1 / classes, 1.0
    for _ in range(40):
        share = (low + high) / 2
        larger = two_way_entropy(share) + (1 - share) * math.log(max(classes - 1, 1)) > entropy
        low, high = (share, high) if larger else (low, share)
    n, rare = int(min(draws, MOST_DRAWS)), max(1 - low, 1e-12)
    k = np.arange(1, n + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(k))])
    chances = np.exp(factorials[n] - factorials[k] - factorials[n - k] + k * math.log(rare) + (n - k) * math.log1p(-rare))
    mixed = np.array([two_way_entropy(float(share)) for share in k / n]) + k / n * np.log(np.minimum(k, max(classes - 1, 1)))
    return float(chances @ mixed)


def adapts(timeline: Timeline) -> bool:
    """Whether the optimizer divides by the gradient's size (Adam, RMSprop, Adagrad), so that a loss's scale has no effect."""
    return any("eps" in optimizer.settings for optimizer in timeline.info.optimizers)


def breach(timeline: Timeline) -> Severity:
    """How grave it is that model and loss do not fit: an aside where training converged, else a warning at least."""
    return Severity.INFO if timeline.converged else max(gravity(timeline), Severity.WARNING)


def one_batch(loss: LossInfo | None) -> str | None:
    """Code that trains a copy of the model on one batch alone; None for a loss function that is not known."""
    function = _FUNCTIONS.get(loss.kind) if loss is not None else None
    if function is None:
        return None
    return (
        "import copy\n\ntwin = copy.deepcopy(model)\n"
        "adam = torch.optim.Adam(twin.parameters(), lr=1e-3)\n"
        "for _ in range(200):  # on this x and y only\n"
        "    adam.zero_grad()\n"
        f"    one = torch.nn.functional.{function}(twin(x), y)\n"
        "    one.backward()\n"
        "    adam.step()\n"
        'print("the loss of one batch came to", one.item())'
    )


def output_module(timeline: Timeline) -> tuple[str, ...]:
    """The last matrix layer, whose output is the model's, also where another's weight is its own; empty where there is none."""
    firsts = (timeline.modules.get(site.path) for site in timeline.schema.modules if site.call == 0)
    layers = [module.path for module in firsts if module is not None and module.role in ("linear", "conv")]
    return (layers[-1],) if layers else ()
