"""Timelines built by hand, without torch: a healthy run unless told otherwise.

>>> build()                                                          # a healthy run of a small MLP
>>> build(columns={"activation.rms": lambda step: 10.0**step})       # all sites alike, step by step
>>> build(columns={"update.ratio": {"layers.0.weight": 0.0}})        # one site, the others healthy
>>> build(pulses={"loss": lambda step: 2.3})                         # a loss that stays where it is
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gradscope.records import PULSE_FIELDS
from gradscope.records import STATISTICS
from gradscope.records import Frame
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import OptimizerInfo
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.records import Schema
from gradscope.records import Site
from gradscope.records import Wiring
from gradscope.timeline import Timeline

# A number, one for each site, a table [sampled steps, sites], or a function of the step that gives a number or one each.
Values: TypeAlias = float | Sequence[float] | npt.NDArray[Any] | Callable[[int], Any]

STEPS = (*range(12), *range(15, 100, 5))  # sampled by default: dense, then every fifth
TOTAL = 100  # optimizer steps by default
CLASSES = 4

HEALTHY: Mapping[str, Values] = {
    "input.mean": 0.0, "input.rms": 1.0, "input.absmax": 3.0, "input.signal": 1.0,
    "activation.mean": 0.2, "activation.rms": 1.0, "activation.absmax": 4.0, "activation.signal": 0.8,
    "activation.active_low": 0xFFFF, "activation.active_high": 0xFFFF,
    "activation.saturated": math.nan,
    "activation_gradient.rms": 0.01, "activation_gradient.absmax": 0.05,
    "weight.row_spread": 1.0,
    "weight_gradient.norm": lambda step: 0.5 * math.exp(-step / 60),
    "weight_gradient.absmax": 0.1, "weight_gradient.row_spread": 1.0,
    "update.ratio": lambda step: 0.003 + 0.002 * math.exp(-step / 60),
    "update.outside_factor": math.nan, "update.outside_residual": math.nan,
    "update.second_moment_ratio": math.nan, "update.epsilon_share": math.nan,
    "activation_gradient.time_growth": math.nan, "activation_gradient.time_steps": math.nan,
    "weight_gradient.time_growth": math.nan, "weight_gradient.time_steps": math.nan,
    "loss.weight": 1.0, "loss.input_rms": 1.0, "loss.input_signal": 0.8, "loss.log_partition": math.log(CLASSES),
    "loss.target_mean": math.nan, "loss.target_rms": math.nan, "loss.target_low": math.nan, "loss.target_high": math.nan,
    "loss.target_signal": math.nan, "loss.target_nonfinite": math.nan, "loss.target_count": 32.0,
    "loss.label_entropy": 0.97 * math.log(CLASSES), "loss.label_entropy_seen": math.log(CLASSES),
    "attention.logit_max": 6.0, "attention.entropy": 0.8,
    "step.graph_nodes": 40.0, "step.forwards": 1.0, "step.evaluating": math.nan, "step.untouched_statistics": math.nan,
    "step.clip_norm": math.nan, "step.clip_limit": math.nan, "step.clip_place": math.nan,
    "weight.ranks_apart": math.nan, "weight.ranks_apart_rank": math.nan,
    "step.loss_apart": math.nan, "step.loss_apart_rank": math.nan, "step.loss_apart_spread": math.nan,
    **{
        f"{kind}.{name}": math.nan
        for kind in ("input", "activation", "activation_gradient")
        for name in ("apart", "apart_rank", "apart_spread", "broken_ranks", "broken_rank")
    },
}  # fmt: skip

CONSECUTIVE = ("weight_gradient.carried", "update.outside_change", "update.outside_factor", "update.outside_residual")

PULSES: Mapping[str, Values] = {
    "loss": lambda step: 0.1 + 1.3 * math.exp(-step / 30),
    "gradient_norm": lambda step: (1.0 + 0.1 * math.sin(step)) * math.exp(-step / 60),
    "learning_rate": 0.1,
    "seconds": 0.01,
    "own_seconds": 0.0001,
    "backwards": 1.0,
    "loss_scale": math.nan,
}


@dataclass(frozen=True)
class Net:
    """What a model consists of, in execution order."""

    modules: tuple[ModuleInfo, ...]
    parameters: tuple[ParameterInfo, ...]

    def __add__(self, other: Net) -> Net:
        return Net(self.modules + other.modules, self.parameters + other.parameters)


def parameter(name: str, shape: tuple[int, ...], *, trainable: bool = True, zero_at_start: bool = False) -> ParameterInfo:
    return ParameterInfo(name, name.rpartition(".")[0], shape, "float32", trainable, zero_at_start)


def linear(
    path: str,
    inputs: int,
    outputs: int,
    *,
    activation: str | None = None,
    norm_follows: bool = False,
    bias: bool = False,
    trainable: bool = True,
    zero_at_start: bool = False,
) -> Net:
    weights = [parameter(f"{path}.weight", (outputs, inputs), trainable=trainable, zero_at_start=zero_at_start)]
    weights += [parameter(f"{path}.bias", (outputs,), trainable=trainable)] if bias else []
    names = tuple(weight.name for weight in weights)
    module = ModuleInfo(path, "Linear", "linear", names, activation=activation, norm_follows=norm_follows)
    return Net((module,), tuple(weights))


def module(path: str, kind: str, role: str) -> Net:
    """A module without parameters: ``module("layers.1", "ReLU", "activation")``."""
    return Net((ModuleInfo(path, kind, role),), ())


def norm(path: str, features: int, *, kind: str = "LayerNorm") -> Net:
    weight = parameter(f"{path}.weight", (features,))
    return Net((ModuleInfo(path, kind, "norm", (weight.name,)),), (weight,))


def mlp(*widths: int, activation: str = "relu", kind: str = "ReLU") -> Net:
    """Linear layers with activations between them: ``layers.0`` Linear, ``layers.1`` ReLU, ``layers.2`` Linear, …"""
    net = Net((), ())
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        net += linear(f"layers.{2 * i}", inputs, outputs, activation=None if last else activation)
        net += Net((), ()) if last else module(f"layers.{2 * i + 1}", kind, "activation")
    return net


SMALL = mlp(16, 32, 32, CLASSES)


def sgd(net: Net = SMALL, *, lr: float = 0.1) -> OptimizerInfo:
    """An optimizer that holds all trainable parameters."""
    return OptimizerInfo("SGD", lr, tuple(p.name for p in net.parameters if p.trainable), 0, {"momentum": 0.0})


def classification(net: Net = SMALL, **changes: Any) -> Wiring:
    """The wiring of a classifier whose loss reaches all trainable parameters."""
    loss = LossInfo("cross_entropy", "NllLossBackward0", "mean", (32, CLASSES), (32,), CLASSES, baseline=math.log(CLASSES))
    facts: dict[str, Any] = {"losses": (loss,), "reached": tuple(p.name for p in net.parameters if p.trainable), "graphs": 3}
    return Wiring(**(facts | changes))


def one_loss(kind: str = "mse", *, net: Net = SMALL, **changes: Any) -> Wiring:
    """The wiring of a run with one loss of this kind, a regression's by default; ``changes`` are of the LossInfo."""
    facts: dict[str, Any] = {"reduction": "mean", "input_shape": (32, 1), "target_shape": (32, 1)}
    return classification(net, losses=(LossInfo(kind, "LossBackward0", **(facts | changes)),))


def regressed(*, mean: float = 0.0, std: float = 1.0, low: float = -3.0, high: float = 3.0) -> dict[str, Values]:
    """The columns of a loss whose targets are numbers with this mean and standard deviation."""
    return {
        "loss.target_mean": mean, "loss.target_rms": math.hypot(mean, std), "loss.target_signal": std,
        "loss.target_low": low, "loss.target_high": high, "loss.target_nonfinite": 0.0,
        "loss.label_entropy": math.nan, "loss.label_entropy_seen": math.nan, "loss.log_partition": math.nan,
    }  # fmt: skip


def build(
    net: Net = SMALL, *,
    steps: Iterable[int] = STEPS,
    total: int | None = None,
    columns: Mapping[str, Values | Mapping[str, Values]] | None = None,
    pulses: Mapping[str, Values] | None = None,
    optimizers: Sequence[OptimizerInfo] | None = None,
    wiring: Wiring | None = None,
    inputs: Sequence[str] = ("x",),
    losses: Sequence[str] = ("(loss)",),
    attentions: Sequence[str] = (),
    sites: Sequence[Site] | None = None,
    **info: Any,
) -> Timeline:  # fmt: skip
    """A run of ``net`` that is healthy but for what is given.

    ``columns`` maps a column to values for all its sites, or to a mapping from a site's name to values for this one (a
    number, one for each sampled step, or a function of the step). ``total`` is the number of optimizer steps, at least
    all that are sampled. ``sites`` replaces the module sites, which are one for each module. As in capture, what
    compares consecutive steps is NaN where the step before was not sampled.
    """
    sampled = sorted(steps)
    total = max(total if total is not None else (TOTAL if tuple(sampled) == STEPS else 0), (sampled or [-1])[-1] + 1)
    places = Schema(
        tuple(Site(name) for name in inputs),
        tuple(sites) if sites is not None else tuple(Site(m.path) for m in net.modules),
        tuple(Site(p.name) for p in net.parameters),
        tuple(Site(name) for name in losses),
        tuple(Site(name) for name in attentions),
    )
    tables = _tables(net, places, sampled, columns or {})
    frames = [Frame(step, places, {name: table[row] for name, table in tables.items()}) for row, step in enumerate(sampled)]
    facts = RunInfo(
        "run", "Net", net.modules, net.parameters,
        (sgd(net),) if optimizers is None else tuple(optimizers),
        classification(net) if wiring is None else wiring,
        **info,
    )  # fmt: skip
    return Timeline(facts, frames, _pulse_rows(sampled, total, pulses or {}))


def empty() -> Timeline:
    """A run that was attached to and has not made a step."""
    return Timeline(RunInfo("run", "Net"))


def poisoned(value: float, *, net: Net = SMALL) -> Timeline:
    """A run in which every number of every frame and pulse is ``value``."""
    every = {f"{kind}.{statistic}": value for kind, known in STATISTICS.items() for statistic in known}
    return build(net, columns=every, pulses={"loss": value, "gradient_norm": value, "learning_rate": value})


def _tables(net: Net, places: Schema, sampled: list[int], given: Mapping[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    tables = {}
    for kind, known in STATISTICS.items():
        for name in (f"{kind}.{statistic}" for statistic in known):
            count = len(places.sites(kind))
            table = np.empty((len(sampled), count), dtype=np.float32)
            table[:] = _spread(_healthy(name, net), sampled, count)
            _overlay(table, given.get(name), sampled, places.sites(kind))
            if name in CONSECUTIVE:
                table[[step - 1 not in sampled for step in sampled]] = np.nan
            tables[name] = table
    return tables


def _healthy(name: str, net: Net) -> Values:
    if name == "weight.norm":  # He's: a variance of 2 / fan_in, and it grows a little
        norms = np.array([math.sqrt(2 * p.size / p.fan_in) for p in net.parameters])
        return lambda step: norms * (1 + 0.001 * step)
    return HEALTHY.get(name, 0.0)


def _overlay(table: npt.NDArray[np.float32], given: Any, sampled: list[int], sites: tuple[Site, ...]) -> None:
    if isinstance(given, Mapping):
        for name, values in given.items():
            column = [values(step) for step in sampled] if callable(values) else values
            table[:, [site.name for site in sites].index(name)] = column
    elif given is not None:
        table[:] = _spread(given, sampled, len(sites))


def _spread(values: Values, sampled: list[int], count: int) -> npt.NDArray[np.float64]:
    if callable(values):
        rows = [np.broadcast_to(values(step), (count,)) for step in sampled]
        return np.array(rows, dtype=np.float64).reshape(len(sampled), count)
    return np.asarray(values, dtype=np.float64)


def _pulse_rows(sampled: list[int], total: int, given: Mapping[str, Values]) -> npt.NDArray[np.float64]:
    rows = np.zeros((total, len(PULSE_FIELDS)))
    rows[:, PULSE_FIELDS.index("step")] = np.arange(total)
    rows[sampled, PULSE_FIELDS.index("sampled")] = 1
    for field, values in {**PULSES, **given}.items():
        rows[:, PULSE_FIELDS.index(field)] = [values(step) for step in range(total)] if callable(values) else values
    return rows


def factors_in(code: str) -> dict[str, float]:
    """The table of factors that an initialisation's remedy begins with, as running it makes it."""
    names: dict[str, dict[str, float]] = {}
    exec(code.partition("\n")[0], names)
    return names["factors"]
