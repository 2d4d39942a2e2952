"""What a step would have done without a suspected fault: the fault is taken away, and the step made again.

With H ≈ JᵀLJ a scale S of the forward pass multiplies the curvature by S², so that a step may be too long for the scale's sake
and not the learning rate's. Which, is told by trying, and only where the fault shows: a large input, a summed loss, weights
above He's variance, a deep model without normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import Optimizer
from torch.utils._pytree import tree_map

from gradscope import middles
from gradscope.capture.naming import parameters_of
from gradscope.capture.probe.forward_again import Forward
from gradscope.capture.probe.linesearch import overshoot
from gradscope.capture.probe.replay import Change
from gradscope.capture.probe.replay import Replay
from gradscope.capture.probe.replay import Seen
from gradscope.capture.probe.replay import Weights
from gradscope.capture.probe.replay import along
from gradscope.records import LossInfo
from gradscope.records import ModuleInfo
from gradscope.records import ParameterInfo
from gradscope.records import RunInfo
from gradscope.timeline import ACTIVATION_ENERGY

LARGE_INPUT = 3.0  # root mean square from which the input is suspected
MASK = 1e8  # magnitude from which a tensor is a mask
LARGE_RHO = 2.0  # variance of the median layer over He's, from which the initialisation is suspected
FEWEST_LAYERS = 3
FEWEST_BLOCKS = 6  # residual blocks, and
FEWEST_PLAIN = 10  # layers in a row, from which a lack of normalisation is suspected
ORDINARY_STEP = 0.1  # update ratio of the median matrix, below which a step is not too long for any one layer
SAME_STEP = 0.01  # by how much the step made again may miss the one that was made
_DEEPEST, _BISECTIONS = 5, 2  # of the search; it is enough to know on which side of 1 the overshoot lies


@dataclass(frozen=True)
class _Fault:
    """A suspected fault, and what is there without it."""

    rule: str
    change: Change | None = None  # of the arguments
    factor: float = 1.0  # of the loss
    scales: dict[int, float] | None = None  # of the weights, by the id of the parameter
    normalised: frozenset[int] = frozenset()  # modules, by id, whose output is divided by its rms


def without_faults(
    replay: Replay, model: torch.nn.Module, info: RunInfo, *, untrained: bool, tolerance: float
) -> dict[str, float]:
    """Rule -> overshoot of the step once what the rule blames is taken away, for each that is suspected.

    Weights and layers are suspected only where ``untrained``: later their scale may be what a learning rate has done to them.
    One forward and backward pass in all, and one with at most eight forward passes for each of at most four faults. {} where
    the optimizer is not one whose step can be made again.
    """
    if not replay.steps_again:
        return {}
    faults = list(_suspected(replay.forward, replay.before, model, info, untrained=untrained, size=lambda: _step_size(replay)))
    clip = _clip(replay) if faults else None
    if clip is None:
        return {}
    return {fault.rule: _overshoot(replay, fault, clip, tolerance) for fault in faults}


def may_be_faulty(seen: Seen, optimizer: Optimizer, model: torch.nn.Module, info: RunInfo, *, untrained: bool) -> bool:
    """Whether ``without_faults`` may have something to try on the step that the optimizer is about to make."""
    weights = {id(p): p.detach() for group in optimizer.param_groups for p in group["params"]}
    return any(_suspected(seen.forward, weights, model, info, untrained=untrained, size=lambda: 0.0))


def _clip(replay: Replay) -> float | None:
    """The norm at which the loop clips gradients, infinite where it does not; None where its step cannot be made again."""
    gradient = replay.gradient(replay.before)
    used = {key: p.grad for key, p in replay.parameters.items() if p.grad is not None}
    norm, used_norm = _norm(gradient), _norm(used)
    if not (math.isfinite(norm) and math.isfinite(used_norm) and used_norm > 0):
        return None
    limit = used_norm if used_norm < 0.999 * norm else math.inf
    made, again = replay.after, replay.step(replay.before, _clipped(gradient, limit))
    off, moved = _distance(again, made), _distance(made, replay.before)
    return limit if off <= SAME_STEP * moved else None


def _overshoot(replay: Replay, fault: _Fault, clip: float, tolerance: float) -> float:
    scales = fault.scales or {}
    start: Weights = {key: w * scales[key] if key in scales else w for key, w in replay.before.items()}
    with _normalising(fault.normalised):
        end = replay.step(start, _clipped(replay.gradient(start, change=fault.change, factor=fault.factor), clip))

        def phi(length: float) -> float:
            return replay.loss(along(start, end, length), change=fault.change, factor=fault.factor)

        return overshoot(phi, phi(0.0), phi(1.0), deepest=_DEEPEST, bisections=_BISECTIONS, tolerance=tolerance)


def _suspected(
    forward: Forward, before: Weights, model: torch.nn.Module, info: RunInfo, *, untrained: bool, size: Callable[[], float]
) -> Iterator[_Fault]:
    """``before`` are the weights before the step, ``size`` says how long it is: the update ratio of the median matrix."""
    count = _terms(info)
    if count > 1:
        yield _Fault("loss-reduction-sum", factor=1 / count)
    sizes = {id(x): rms for x in forward.inputs if (rms := _rms(x)) > LARGE_INPUT}
    if sizes:
        yield _Fault("unnormalized-input", change=lambda given: tree_map(lambda leaf: _divided(leaf, sizes), given))
    scales = _scales(before, model, info) if untrained else {}
    if scales:
        yield _Fault("init-too-large", scales=scales)
    modules = _unnormalised(size, model, info) if untrained else frozenset()
    if modules:
        yield _Fault("missing-normalization", normalised=modules)


# -- the loss


def _terms(info: RunInfo) -> int:
    """How many numbers the loss is the sum of; 1 where it is a mean."""
    losses = info.wiring.losses if info.wiring else ()
    summed = [loss for loss in losses if loss.reduction == "sum"]
    return _numbers(summed[0]) if len(losses) == 1 and summed else 1


def _numbers(loss: LossInfo) -> int:
    return math.prod(loss.target_shape or loss.input_shape or ())


# -- the input


def _rms(x: torch.Tensor) -> float:
    values = x.detach().float()
    largest = float(values.abs().max())
    return float(values.square().mean().sqrt()) if largest < MASK else math.nan


def _divided(leaf: Any, sizes: dict[int, float]) -> Any:
    return leaf / sizes[id(leaf)] if id(leaf) in sizes else leaf


# -- the weights


def _scales(before: Weights, model: torch.nn.Module, info: RunInfo) -> dict[int, float]:
    """1/sqrt(rho) for each matrix layer but those that a normalisation follows; {} where rho is ordinary.

    rho = fan_in · Var(W) / gain² (He et al., 2015, section 2.2). The last layer, which sets no more than the scale of the
    output, has no part in what is ordinary, and is scaled where it is too large itself.
    """
    known = {p.name: p for p in info.parameters}
    tensors = dict(parameters_of(model))
    layers = [(module, weight) for module in info.modules if (weight := _matrix(module, known)) is not None]
    rhos: dict[int, float] = {}
    for module, weight in layers:
        key = id(tensors.get(weight.name))
        if key in before and not module.norm_follows and not weight.zero_at_start:
            variance = float(before[key].float().square().mean())
            rhos[key] = weight.fan_in * variance * ACTIVATION_ENERGY.get(module.activation or "", 1.0)
    rhos = {key: rho for key, rho in rhos.items() if rho > 0 and math.isfinite(rho)}
    last = id(tensors.get(layers[-1][1].name)) if layers else 0
    usual = [rho for key, rho in rhos.items() if key != last]
    if len(usual) < FEWEST_LAYERS - 1 or not middles.median(usual) > LARGE_RHO:
        return {}
    return {key: rho**-0.5 for key, rho in rhos.items() if key != last or rho > LARGE_RHO}


def _matrix(module: ModuleInfo, known: dict[str, ParameterInfo]) -> ParameterInfo | None:
    if module.role not in ("linear", "conv"):
        return None
    matrices = [known[name] for name in module.parameters if name in known and len(known[name].shape) >= 2]
    return max(matrices, key=lambda parameter: parameter.size, default=None)


# -- the layers' scale


def _unnormalised(size: Callable[[], float], model: torch.nn.Module, info: RunInfo) -> frozenset[int]:
    """The blocks of a residual stack, or else the layers of a deep plain net, in a model that normalises nowhere.

    A normalised net bears any step. So a plain net is suspected only where the step was one that each layer by itself bears.
    """
    wiring = info.wiring
    if wiring is None or wiring.norms or any(module.role == "norm" for module in info.modules):
        return frozenset()
    if wiring.residual_additions:
        families: dict[tuple[str, str], list[str]] = {}
        for module in info.modules:
            if module.role in ("container", "other"):
                families.setdefault((module.path.rpartition(".")[0], module.type), []).append(module.path)
        paths, fewest = max(families.values(), key=len, default=[]), FEWEST_BLOCKS
    elif size() < ORDINARY_STEP:
        known = {p.name: p for p in info.parameters}
        paths, fewest = [module.path for module in info.modules if _matrix(module, known) is not None][:-1], FEWEST_PLAIN - 1
    else:
        return frozenset()
    return frozenset(id(model.get_submodule(path)) for path in paths) if len(paths) >= fewest else frozenset()


def _step_size(replay: Replay) -> float:
    """Median over the matrices of the norm of their step over their own."""
    after = replay.after
    sizes = [
        float((after[key] - weight).norm() / weight.norm().clamp_min(1e-12))
        for key, weight in replay.before.items()
        if weight.dim() >= 2
    ]
    return middles.median(sizes) if sizes else math.inf


def _normalising(modules: frozenset[int]) -> AbstractContextManager[None]:
    return _hooked(modules) if modules else nullcontext()


@contextmanager
def _hooked(modules: frozenset[int]) -> Iterator[None]:
    """While this is open, what these modules put out is divided by its root mean square over features."""

    def normalise(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if id(module) not in modules or not isinstance(output, torch.Tensor) or output.dim() < 2:
            return None
        features = tuple(range(1, output.dim())) if output.dim() > 3 else (-1,)
        return output * (output.square().mean(features, keepdim=True) + 1e-5).rsqrt()

    handle = register_module_forward_hook(normalise)
    try:
        yield
    finally:
        handle.remove()


# -- gradients


def _norm(tensors: Mapping[int, torch.Tensor]) -> float:
    norms = torch._foreach_norm([tensor.float() for tensor in tensors.values()]) if tensors else []
    return math.hypot(*(float(norm) for norm in norms))


def _distance(weights: Weights, others: Weights) -> float:
    """Tensor by tensor: all differences at once would take as much memory as the weights."""
    return math.hypot(*(float((weights[key] - other).float().norm()) for key, other in others.items()))


def _clipped(gradient: dict[int, torch.Tensor], limit: float) -> dict[int, torch.Tensor]:
    """The same tensors, made shorter in place."""
    norm = _norm(gradient)
    if norm > limit:
        torch._foreach_mul_(list(gradient.values()), limit / norm)
    return gradient
