"""Published detectors as a few lines each over the same timelines, to compare with. They say that something is wrong, not what.

The thresholds are those of Amazon SageMaker Debugger's built-in rules, AutoTrainer (Zhang et al., ICSE 2021) and DeepDiagnosis
(Wardat et al., ICSE 2022), on the statistics that a timeline has: a parameter's root mean square stands for its mean magnitude.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from gradscope.records import STATISTICS
from gradscope.timeline import Timeline

Table = npt.NDArray[np.float64]


def sagemaker(timeline: Timeline, *, with_loss: bool = True) -> tuple[str, ...]:
    """The rules that fire. Without LossNotDecreasing, which most healthy runs set off, where ``with_loss`` is false."""
    sizes = _sizes(timeline)
    gradients = timeline.column("weight_gradient.norm") / np.sqrt(sizes)
    variances = timeline.column("weight.norm")[:10] ** 2 / sizes
    matrices = np.array([len(p.shape) > 1 if p else False for p in _known(timeline)], dtype=bool)
    ratios = timeline.update_ratios
    spread = 3.3 * gradients[:10]  # between the 5th and the 95th percentile of a normal distribution
    rules = {
        "DeadRelu": _any(_dead_share(timeline) > 0.5),
        "SaturatedActivation": _any(timeline.column("activation.saturated") > 0.5),
        "VanishingGradient": _any(gradients < 1e-7),
        "ExplodingTensor": _nonfinite(timeline),
        "WeightUpdateRatio": _any((ratios > 10) | (ratios < 1e-8)),
        "PoorWeightInitialization": _any(_largest_over_smallest(variances[:, matrices]) > 10) or _any(spread < 1e-3),
        "AllZero": _any(timeline.column("activation.zero") >= 1),
        "LossNotDecreasing": with_loss and _any(_change_over_ten(timeline.loss) > -0.001),
    }
    return _fired(rules)


def autotrainer(timeline: Timeline) -> tuple[str, ...]:
    """The symptoms that show, where the loss has not come to half of its start, in place of an accuracy under 0.6."""
    norms = timeline.column("weight_gradient.norm")[:, [layer.parameter for layer in timeline.layers]]
    zeros = timeline.column("weight_gradient.zero")[:, [layer.parameter for layer in timeline.layers]]
    if not norms.size or timeline.last_loss < 0.5 * timeline.first_loss:
        return ()
    first, ratio = norms[:, 0], norms[:, 0] / norms[:, -1]
    rules = {
        "gradient vanishing": _any((ratio < 1e-3) & (first < 1e-4)),
        "gradient explosion": _any(ratio > 70) or _any(~np.isfinite(timeline.loss) | (timeline.loss >= 1e3)),
        "dying ReLU": _any(zeros >= 0.7),
    }
    return _fired(rules)


def deepdiagnosis(timeline: Timeline) -> tuple[str, ...]:
    sizes = _sizes(timeline)
    variances = timeline.column("weight.norm") ** 2 / sizes
    matrices = np.array([len(p.shape) > 1 if p else False for p in _known(timeline)], dtype=bool)
    activated = np.array([_role(timeline, site.path) == "activation" for site in timeline.schema.modules], dtype=bool)
    rates = timeline.pulse("learning_rate")
    rules = {
        "DeadNode": _any(timeline.column("activation.zero")[:, activated] >= 0.7),
        "SaturatedActivation": _any(timeline.column("activation.saturated") > 0.5),
        "VanishingGradient": _any(timeline.column("weight_gradient.norm") / np.sqrt(sizes) < 1e-7),
        "UnchangedWeight": _any(timeline.column("update.unchanged")[:, timeline.trained] >= 1),
        "ExplodingTensor": _nonfinite(timeline),
        "ImproperWeightInitialization": _any((variances[:1, matrices] < 1e-5) | (variances[:1, matrices] > 10)),
        "ImproperLearningRate": _any((rates < 1e-5) | (rates > 1e-1)),
    }
    return _fired(rules)


BASELINES: Mapping[str, Callable[[Timeline], tuple[str, ...]]] = {
    "SageMaker Debugger": sagemaker,
    "the same without LossNotDecreasing": lambda timeline: sagemaker(timeline, with_loss=False),
    "AutoTrainer": autotrainer,
    "DeepDiagnosis": deepdiagnosis,
}


def fired(timeline: Timeline) -> dict[str, tuple[str, ...]]:
    """What each baseline says of a timeline."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of medians over nothing but NaN
        return {name: baseline(timeline) for name, baseline in BASELINES.items()}


def _known(timeline: Timeline) -> list:
    return [timeline.parameters.get(site.path) for site in timeline.schema.parameters]


def _sizes(timeline: Timeline) -> Table:
    return np.array([p.size if p else np.nan for p in _known(timeline)], dtype=np.float64)


def _role(timeline: Timeline, path: str) -> str:
    return timeline.modules[path].role if path in timeline.modules else "other"


def _dead_share(timeline: Timeline) -> Table:
    """Of the units sampled in a step, the share that no element of the batch activates, where a ReLU follows."""
    low, high = timeline.column("activation.active_low"), timeline.column("activation.active_high")
    paths = [site.path for site in timeline.schema.modules]
    relu = np.array([path in timeline.modules and timeline.modules[path].activation == "relu" for path in paths], dtype=bool)
    bits = np.nan_to_num(low).astype(np.int64) | (np.nan_to_num(high).astype(np.int64) << 16)
    active = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8).reshape(*bits.shape, 8), axis=2).sum(2)
    units = active.max(0, initial=0, keepdims=True)
    return np.where(np.isfinite(low) & relu, 1 - active / np.maximum(units, 1), 0.0)


def _largest_over_smallest(table: Table) -> Table:
    return np.nanmax(table, axis=1) / np.nanmin(table, axis=1) if table.size else np.zeros(0)


def _change_over_ten(losses: Table) -> Table:
    return losses[10::10] / losses[:-10:10] - 1


def _nonfinite(timeline: Timeline) -> bool:
    columns = (f"{kind}.nonfinite" for kind, statistics in STATISTICS.items() if "nonfinite" in statistics)
    return any(_any(timeline.column(name) > 0) for name in columns) or _any(~np.isfinite(timeline.loss))


def _any(held: npt.NDArray[np.bool_]) -> bool:
    return bool(np.any(held))


def _fired(rules: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(name for name, held in rules.items() if held)
