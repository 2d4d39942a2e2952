"""Scale against depth and the size of steps: what the rules about initialisation, gradient flow and step size share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.records import ParameterInfo
from gradscope.records import Remedy
from gradscope.timeline import Timeline
from gradscope.trends import row_medians
from gradscope.trends import theil_sen

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

TINY = 0.01  # rho of the median matrix
LEAST_BLOCKS = 6  # residual blocks from which a slope over depth says something
ALIKE = 0.05  # how far factors may lie apart that a remedy gives together


def begins_at_zero(timeline: Timeline) -> bool:
    """Whether the first sampled step is step 0, where weights and activations are as they were initialised."""
    return len(timeline.frames) > 0 and timeline.frames[0].step == 0 and not updates_within(timeline)


def updates_within(timeline: Timeline) -> bool:
    """Whether a step makes several updates, as L-BFGS does: loss, weights and gradient of step 0 are those after the last."""
    several = bool((timeline.column("step.forwards")[:1] > 1).any())
    return several and any("lbfgs" in optimizer.type.lower() for optimizer in timeline.info.optimizers)


def is_residual(timeline: Timeline) -> bool:
    """Whether branches that both come out of the model are added somewhere."""
    return timeline.info.wiring is not None and timeline.info.wiring.residual_additions > 0


def has_norm(timeline: Timeline) -> bool:
    """Whether the model normalises anywhere, by a module or a function."""
    wiring = timeline.info.wiring
    return (wiring is not None and wiring.norms > 0) or any(module.role == "norm" for module in timeline.info.modules)


def init_ratios(timeline: Timeline) -> dict[str, float]:
    """rho of the matrix layers at step 0, by path: without the last one, those at zero and those that a normalisation follows.

    rho = fan_in * Var(W) / gain^2 (He et al., 2015, section 2.2): 1 keeps the scale from layer to layer.
    """
    if not begins_at_zero(timeline):
        return {}
    norms = timeline.column("weight.norm")[0]
    return {
        layer.module.path: layer.weight.fan_in * norm**2 / layer.weight.size / layer.gain_squared
        for layer in timeline.layers[:-1]
        if not layer.module.norm_follows and 0 < (norm := float(norms[layer.parameter])) < 1e150
    }


def matrix_ratios(timeline: Timeline) -> dict[str, float]:
    """The least rho that each trained matrix can have at step 0, by parameter: of all layers, and of parameters by themselves.

    Of a matrix that no layer of torch holds it is not known which way it is multiplied, nor what follows: the shorter side and
    the gain of ReLU count.
    """
    if not begins_at_zero(timeline):
        return {}
    gains = {layer.weight.name: layer.gain_squared for layer in timeline.layers}
    norms = timeline.column("weight.norm")[0]
    known = {
        site.path: (timeline.parameters[site.path], norm)
        for site, norm, trained in zip(timeline.schema.parameters, norms.tolist(), timeline.trained, strict=True)
        if trained and 0 < norm < 1e150
    }
    return {
        name: (weight.fan_in if name in gains else _least_fan_in(weight)) * norm**2 / weight.size / gains.get(name, 2.0)
        for name, (weight, norm) in known.items()
        if name in gains or stands_alone(timeline, weight)
    }


def begins_tiny(timeline: Timeline) -> bool:
    """Whether most matrices begin so small that any step is a large one beside them; a normalisation makes that good."""
    rhos = {} if has_norm(timeline) else matrix_ratios(timeline)
    return bool(rhos) and middles.median(list(rhos.values())) < TINY


def most_matrix_ratios(timeline: Timeline) -> dict[str, float]:
    """The largest rho that each trained matrix by itself can have at step 0, by parameter: the longer side, no activation."""
    if not begins_at_zero(timeline):
        return {}
    norms = timeline.column("weight.norm")[0].tolist()
    sites = zip(timeline.schema.parameters, norms, timeline.trained, strict=True)
    known = {site.path: (timeline.parameters[site.path], norm) for site, norm, trained in sites if trained and 0 < norm < 1e150}
    return {
        name: max(weight.fan_in, *weight.shape[-2:]) * norm**2 / weight.size
        for name, (weight, norm) in known.items()
        if stands_alone(timeline, weight)
    }


def stands_alone(timeline: Timeline, weight: ParameterInfo) -> bool:
    """Whether it is a matrix that no layer of torch holds: a parameter of a module of the user's own."""
    owner = timeline.modules.get(weight.module)
    own = owner is not None and owner.role in ("other", "container")
    return own and len(weight.shape) >= 2 and _least_fan_in(weight) > 1


def _least_fan_in(weight: ParameterInfo) -> int:
    return weight.fan_in if len(weight.shape) > 3 else min(weight.shape[-2:])


def depth_sites(timeline: Timeline) -> Indices:
    """The module sites over which scale is compared with depth: residual blocks, or all matrix layers but the last.

    Empty where neither forms a line: a residual net without six blocks of one class. Layers that start at zero don't count.
    """
    if not is_residual(timeline):
        return np.array([layer.site for layer in timeline.layers[:-1] if not layer.weight.zero_at_start], dtype=np.intp)
    return np.array(timeline.blocks if len(timeline.blocks) >= LEAST_BLOCKS else (), dtype=np.intp)


@final
@dataclass(frozen=True)
class InitGrowth:
    """How the signal changes over depth at step 0."""

    rhos: dict[str, float]  # of the layers whose initial weights count
    slope: float  # decades from one layer or block to the next
    count: int  # layers or blocks compared
    unit: str  # "layers" or "blocks"

    @property
    def rho(self) -> float:
        """The median layer's."""
        return middles.median(list(self.rhos.values()))

    @property
    def total(self) -> float:
        """Decades over all layers."""
        return self.slope * (self.count - 1)


def init_growth(timeline: Timeline) -> InitGrowth | None:
    """The initial weights and what they do to the signal over depth; None where there is nothing to compare.

    Where the batch is of one sample the signal is not known: then half log10 rho stands for its slope (He et al., 2015).
    """
    rhos = init_ratios(timeline)
    if not rhos:
        return None
    residual = is_residual(timeline)
    sites = depth_sites(timeline) if residual else [layer.site for layer in timeline.layers if layer.module.path in rhos]
    if len(sites) < 2:
        return None
    signal = decades(timeline.column("activation.signal")[0][sites])
    slope = theil_sen(signal)
    if np.isnan(signal).all() and not residual:
        slope = 0.5 * math.log10(middles.median(list(rhos.values())))
    return InitGrowth(rhos, slope, len(sites), "blocks" if residual else "layers")


def init_remedy(growth: InitGrowth) -> Remedy:
    """Rescale each layer's initial weights by 1 / sqrt(rho)."""
    factors = {path: 1 / math.sqrt(rho) for path, rho in growth.rhos.items()}
    middle = middles.median(list(factors.values()))
    return Remedy(
        f"Multiply each layer's initial weights by 1/sqrt(rho), {middle:.3g} in the median layer, or initialise them with "
        "nn.init.kaiming_normal_ and the nonlinearity that follows.",
        f"factors = {_table(factors, middle)}  # 1 / sqrt(rho)\nwith torch.no_grad():  # directly after the model is made\n"
        "    for name, factor in factors.items():\n        model.get_submodule(name).weight.mul_(factor)",
    )


def matrix_remedy(rhos: Mapping[str, float]) -> Remedy:
    """Rescale each matrix by 1 / sqrt(rho), where it stands by itself too."""
    factors = {name: 1 / math.sqrt(rho) for name, rho in rhos.items()}
    middle = middles.median(list(factors.values()))
    return Remedy(
        f"Multiply each matrix's initial values by 1/sqrt(rho), {middle:.3g} in the median one: draw them with a standard "
        "deviation of sqrt(2 / fan_in) before a ReLU, and of 1 / sqrt(fan_in) at the end.",
        f"factors = {_table(factors, middle)}  # 1 / sqrt(rho)\nparameters = dict(model.named_parameters())\n"
        "with torch.no_grad():  # directly after the model is made\n"
        "    for name, factor in factors.items():\n        parameters[name].mul_(factor)",
    )


def _table(factors: Mapping[str, float], middle: float) -> str:
    """The factors as Python, those that agree with the median to 5 % given together."""
    alike = [path for path, factor in factors.items() if abs(factor / middle - 1) <= ALIKE]
    apart = {path: float(f"{factor:.4g}") for path, factor in factors.items() if path not in alike}
    together = f"dict.fromkeys({alike}, {middle:.4g})"
    return f"{together} | {apart}" if apart and alike else (together if alike else str(apart))


def decades(values: npt.NDArray[np.floating]) -> Floats:
    """log10, NaN where a value is zero, negative or not finite."""
    table = np.asarray(values, dtype=np.float64)
    return np.log10(table, out=np.full(table.shape, np.nan), where=np.isfinite(table) & (table > 0))


def slopes(table: Floats) -> Floats:
    """Robust slope of each row against the column index: the median over the pairs (i, i + n/2), NaN-safe.

    Source: H. Theil, 1950, the incomplete method. All rows at once, where all pairs of each would be too slow.
    """
    half = (table.shape[1] + 1) // 2
    if table.shape[1] < 2:
        return np.full(len(table), np.nan)
    return row_medians((table[:, half:] - table[:, :-half]) / half)


def step_sizes(timeline: Timeline) -> Floats:
    """Median update ratio over the trained matrices, for each sampled step."""
    return row_medians(timeline.update_ratios)


def last_site(timeline: Timeline) -> int:
    """Index of the module site of the last matrix layer: what stands there or after is the model's output."""
    return timeline.layers[-1].site if timeline.layers else len(timeline.schema.modules)


def largest(values: npt.NDArray[np.floating], names: list[str], *, most: int = 3) -> tuple[str, ...]:
    """Names of the largest values, largest first; NaN and zero have none."""
    order = np.argsort(-np.nan_to_num(values, nan=-1.0, posinf=np.inf), kind="stable")
    return tuple(dict.fromkeys(names[i] for i in order[:most] if values[i] > 0))


def plain(value: float) -> float | None:
    """A number for evidence: six significant digits, None where it is not finite."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None


def one_digit(value: float) -> float:
    """Rounded to one significant digit, as a learning rate is written."""
    return float(f"{value:.0e}")
