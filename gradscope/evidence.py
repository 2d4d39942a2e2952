"""What several rules say or ask in the same way: severities, names in a sentence, and values for remedies."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.records import ModuleInfo
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.timeline import Timeline
from gradscope.trends import median_of

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

PATIENCE = 100  # steps after which a training that does not progress is called wasted
WARM_UP_LOOK = 10  # steps that are looked back on to see a learning rate rise
LEAST_CALM = 20  # steps before a blow-up that a limit for the gradient can be taken from
_IN_TIME = ("activation_gradient", "weight_gradient")  # kinds that know gradients through time
LEAST_TIME_STEPS = 4  # that a gradient must have come back through before its growth counts


# He's initialisation for the layers, ReLU for what comes between them.
RELU_FOR_SIGMOID = """\
for name, module in list(model.named_modules(remove_duplicate=False)):  # before the optimizer is made
    if isinstance(module, (torch.nn.Sigmoid, torch.nn.Hardsigmoid)):
        model.set_submodule(name, torch.nn.ReLU())
    elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
# and torch.relu in place of torch.sigmoid, where the model calls that"""


def works(timeline: Timeline) -> bool:
    """Whether training demonstrably works: no blow-up, and a loss that fell, below the best constant prediction's if known."""
    if timeline.onset is not None:
        return False
    known = timeline.known_baseline
    if known and timeline.last_loss < 0.5 * known:
        return True
    return timeline.learning and not (known and timeline.last_loss > 0.95 * known)


def overshot(timeline: Timeline) -> bool:
    """Whether the loss jumped by more than twice its start in the first ten steps, and training does not work since."""
    early = timeline.loss[:11]
    jumped = len(early) > 0 and not (early <= early[0] + 2 * abs(early[0])).all()
    return jumped and not timeline.several_objectives and not works(timeline)


def gravity(timeline: Timeline) -> Severity:
    """How grave a defect in the structure is: it wastes the training, it is likely to, or training works all the same.

    Of a training that was broken already when it was first seen nobody knows what broke it.
    """
    if broken_before(timeline):
        return Severity.INFO
    if timeline.onset is not None or overshot(timeline):
        return Severity.CRITICAL
    if works(timeline):
        return Severity.INFO
    return Severity.CRITICAL if stalled(timeline) else Severity.WARNING


def broken_before(timeline: Timeline) -> bool:
    """Whether the weights were not finite on the first sampled step, and no loss before it was: all that is seen came later."""
    first = timeline.column("weight.nonfinite")[:1]
    before = timeline.loss_steps <= (timeline.steps[0] if len(timeline.steps) else -1)
    return bool((first > 0).any() and not np.isfinite(timeline.loss[before]).any())


def trains_others(timeline: Timeline) -> bool:
    """Whether the loop trains something besides the model: another one, or tensors that are not its parameters."""
    return timeline.info.shared_process or any(optimizer.strangers for optimizer in timeline.info.optimizers)


def stalled(timeline: Timeline) -> bool:
    """Whether a hundred steps or more are made, and the loss does not come down any more."""
    return timeline.step_count >= PATIENCE and not timeline.progressing and not timeline.several_objectives


def unless_works(timeline: Timeline, least: Severity) -> Severity:
    """Critical where the training as it stands is wasted, ``least`` where it works all the same."""
    return least if works(timeline) else Severity.CRITICAL


def named(names: Sequence[str], *, most: int = 3) -> str:
    """Names as part of a sentence: "a", "a and b", "a, b, c and 4 more"."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def owners(timeline: Timeline, parameters: Iterable[str]) -> tuple[str, ...]:
    """The modules that own these parameters, each once, in the order given."""
    known = timeline.parameters
    return tuple(dict.fromkeys(known[name].module for name in parameters if name in known))


def ever(held: Mask) -> Mask:
    """Where it held in any sampled step; [sites]."""
    return np.asarray(held.any(axis=0))


def parameter_names(timeline: Timeline, held: Mask) -> list[str]:
    """Names of the parameter sites where ``held`` is true."""
    return [site.path for site, holds in zip(timeline.schema.parameters, held, strict=True) if holds]


def run_length(timeline: Timeline) -> tuple[int, int]:
    """First and last step of a defect that was there all along."""
    return 0, max(timeline.step_count - 1, 0)


def warming_up(timeline: Timeline) -> bool:
    """Whether the learning rate still rises."""
    rates = timeline.pulse("learning_rate")
    rates = rates[np.isfinite(rates)][-WARM_UP_LOOK - 1 :]
    return bool(len(rates) > 1 and rates[-1] > 1.001 * rates[0])


def growth(series: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where a positive series began (the median of three values) and its last value; NaN where it has none."""
    known = series[np.isfinite(series) & (series > 0)]
    if not len(known):
        return float("nan"), float("nan")
    return float(middles.median(known[:3]) if len(known) > 3 else known[0]), float(known[-1])


def overshoot(timeline: Timeline) -> StepQuality | None:
    """The first step that a probe found to be longer than the valley of the loss is wide, though it followed the gradient down.

    A step that does not follow it down goes up at any length, and one whose gradient is not finite leads nowhere. A slope of
    NaN stands where the gradient or the step were not finite.
    """
    broken = broken_gradients(timeline)
    known = (probe for probe in timeline.info.probes if probe.step < timeline.step_count and probe.step not in broken)
    return next((probe for probe in known if probe.overshoot > 1 and not probe.slope >= 0), None)


def broken_gradients(timeline: Timeline) -> npt.NDArray[np.float64]:
    """The steps whose gradient was not finite."""
    return timeline.pulse("step")[np.isinf(timeline.pulse("gradient_norm"))]


def without_gradient(timeline: Timeline) -> bool:
    """Whether no step had a gradient other than zero: what moves the weights all the same is weight decay."""
    norms = timeline.pulse("gradient_norm")
    return bool((norms == 0).any() and not (norms > 0).any())


def worse_since(timeline: Timeline, good: int, bad: int, *, steps: int, times: float, least: float) -> bool:
    """Whether the loss got worse between two steps, and has not come back since.

    The median of the ``steps`` losses after ``bad``, and the last loss, have to exceed that of as many up to ``good`` by its
    ``times``, less one, and by ``least`` of the loss at the start.
    """
    at = timeline.loss_steps
    before = median_of(timeline.loss[(at > good - steps) & (at <= good)])
    after = timeline.loss[(at > bad) & (at <= bad + steps)]
    most = before + max((times - 1) * abs(before), least * abs(timeline.first_loss))
    return len(after) >= steps // 2 and bool(min(median_of(after), timeline.last_loss) > most)


def suffices(timeline: Timeline, rule: str) -> bool:
    """Whether a step that overshot was measured to stay in the valley once what ``rule`` blames is taken away."""
    found = overshoot(timeline)
    return found is not None and found.without.get(rule, float("inf")) < 1


def measured(timeline: Timeline, rule: str) -> dict[str, float | None]:
    """The overshoot of the step that was probed, with what ``rule`` blames and without it, for evidence; {} where none was.

    None stands for what no part of the step that was tried keeps in the valley.
    """
    found = overshoot(timeline)
    if found is None or rule not in found.without:
        return {}
    with_it, without = found.overshoot, found.without[rule]
    return {
        "overshoot": with_it if np.isfinite(with_it) else None,
        "overshoot_without": without if np.isfinite(without) else None,
    }


def began(timeline: Timeline) -> str:
    """Where the first value that is not finite came from, as the end of a sentence; empty where that is not known."""
    found = timeline.info.origin
    if found is None:
        return ""
    where = {
        "forward": f"in {found.module or 'the model'}",
        "between": f"before {found.module}",
        "loss": "in the loss",
        "target": "in the loss",
    }
    what = {"parameter": "weights that were not finite", "input": "an input that was not finite", "backward": "the way back"}
    place = where.get(found.place)
    cause = f"{found.node or 'an operation'} {place}" if place else what[found.place]
    return f"; it began at step {found.step} with {cause}"


def clipping_norm(timeline: Timeline) -> float:
    """A gradient norm to clip at: the 90th percentile of the last 200 before the onset, two digits; 1 where none is known."""
    norms = timeline.pulse("gradient_norm")
    calm = timeline.pulse("step") < (np.inf if timeline.onset is None else timeline.onset)
    norms = norms[calm & np.isfinite(norms) & (norms > 0)][-200:]
    return float(f"{middles.percentile(norms, 90):.2g}") if len(norms) else 1.0


def calm_clipping(timeline: Timeline, *, before: int | None = None) -> Remedy | None:
    """Clipping at the norm of the calm steps, those before ``before``, else before the onset; None where there were too few.

    A limit taken from steps that blow up themselves bounds nothing: of 19 small trainings that diverged, clipping at such a
    norm brought three back, all of which had run for some 40 steps or longer before.
    """
    norms, steps = timeline.pulse("gradient_norm"), timeline.pulse("step")
    until = before if before is not None else timeline.onset
    calm = norms[(steps < (np.inf if until is None else until)) & np.isfinite(norms) & (norms > 0)][-200:]
    if len(calm) < LEAST_CALM:
        return None
    limit = float(f"{middles.percentile(calm, 90):.2g}")
    return Remedy(
        f"Clip the gradient at {limit:g}, the 90th percentile of the norms of {len(calm)} calm steps.",
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={limit:g})  # between backward() and optimizer.step()",
    )


def slower(timeline: Timeline, rate: float, better: float, source: str) -> Remedy:
    """A lower learning rate, and where its value comes from; for LBFGS, whose steps are not in proportion, a line search."""
    if timeline.info.optimizers and all(optimizer.type == "LBFGS" for optimizer in timeline.info.optimizers):
        return Remedy(
            f"Let LBFGS find the length of its steps by a line search, with a learning rate of 1 and not {rate:g}.",
            'for group in optimizer.param_groups:\n    group["lr"], group["line_search_fn"] = 1.0, "strong_wolfe"',
        )
    if not rate > 0 or not better > 0:
        return Remedy("Lower the learning rate to an eighth, and again until the first steps change weights by 1 % at most.")
    return Remedy(
        f"Lower the learning rate from {rate:g} to {better:g}; {source}.",
        f'for group in optimizer.param_groups:\n    group["lr"] = {better:g}  # was {rate:g}',
    )


def matrices(timeline: Timeline) -> Mask:
    """Which parameter sites are trained matrices that do not start at zero; [parameter sites]."""
    known = (timeline.parameters.get(site.path) for site in timeline.schema.parameters)
    return np.array([bool(p and len(p.shape) >= 2 and not p.zero_at_start) for p in known], dtype=bool) & timeline.trained


def captured(table: npt.NDArray[np.floating]) -> Indices:
    """The sampled steps at which a column was captured for any site: the rows of ``table`` with a finite number."""
    return np.flatnonzero(np.isfinite(table).any(axis=1))


def usual_rate(timeline: Timeline) -> float:
    """Median learning rate of the run; NaN where none is known."""
    rates = timeline.pulse("learning_rate")
    return median_of(rates[rates > 0])


def peak_rate(timeline: Timeline) -> float:
    """The largest learning rate of the run; 0 where none is known."""
    rates = timeline.pulse("learning_rate")
    return float(np.max(rates[np.isfinite(rates)], initial=0.0))


def rates_at(timeline: Timeline, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The learning rate at these steps, NaN where it is not known."""
    known = timeline.pulse("step")
    places = np.minimum(np.searchsorted(known, steps), max(len(known) - 1, 0))
    rates = timeline.pulse("learning_rate")[places]
    return np.where((known[places] == steps) & (rates > 0), rates, np.nan)


def stuck(timeline: Timeline, steps: int, *, level: float = 0.9) -> bool:
    """Whether the last ``steps`` losses all along stood at the best constant prediction's, where that is known."""
    known = timeline.known_baseline
    recent = timeline.loss[-steps:]
    if not known or len(recent) < steps or timeline.progressing:
        return False
    return all(median_of(part) >= level * known for part in np.array_split(recent, 4))


def recurrent_weights(timeline: Timeline, path: str) -> list[str]:
    """Names of the matrices that a recurrent module applies again at each time step; empty where it has none."""
    below = f"{path}." if path else ""
    own = [p for p in timeline.info.parameters if p.name.startswith(below) and len(p.shape) == 2]
    return [p.name for p in own if carries_state(p.name)] or [p.name for p in own if p.shape[0] == p.shape[1]]


def carries_state(name: str) -> bool:
    """Whether a parameter is, by its name, a matrix with which one of torch's recurrent layers carries its state on."""
    return name.rpartition(".")[2].startswith("weight_hh")


@final
@dataclass(frozen=True)
class TimeGrowth:
    """Decades that gradients grow back through time, and time steps; [frames, places], NaN where nothing recurs.

    Places are the module sites, then the parameter sites: a recurrence by hand has a matrix and no module.
    """

    decades: npt.NDArray[np.float64]
    steps: npt.NDArray[np.float64]
    modules: list[str]  # the path of each place's module
    matrices: list[list[str]]  # and the parameters that it applies again at each time step


def time_growth(timeline: Timeline) -> TimeGrowth:
    """How gradients grow back through time, wherever something recurs.

    A module that is called many times recurs where it has a square matrix: activations and heads that several places share
    have none.
    """
    grown, steps = (
        np.concatenate([timeline.column(f"{kind}.{name}") for kind in _IN_TIME], axis=1).astype(np.float64)
        for name in ("time_growth", "time_steps")
    )
    seen = np.isfinite(grown) & (steps >= LEAST_TIME_STEPS) & np.isfinite(steps)
    modules = [site.path for site in timeline.schema.modules]
    matrices = [recurrent_weights(timeline, path) if seen[:, i].any() else [] for i, path in enumerate(modules)]
    bare = [site.path for site in timeline.schema.parameters]
    seen[:, : len(modules)] &= np.array([bool(names) for names in matrices], dtype=bool)
    found = (np.where(seen, grown, np.nan), np.where(seen, steps, np.nan))
    return TimeGrowth(*found, [*modules, *(name.rpartition(".")[0] for name in bare)], [*matrices, *([name] for name in bare)])


def no_recurrence(timeline: Timeline) -> str | None:
    """Why nothing can be said of gradients through time; None where it can."""
    lacks = [timeline.lack(f"{kind}.time_growth") for kind in _IN_TIME]
    return lacks[0] if None not in lacks else None


def batch_norms(timeline: Timeline) -> tuple[ModuleInfo, ...]:
    """The modules that normalise over the batch and keep running statistics of it."""
    return tuple(module for module in timeline.info.modules if module.role == "norm" and "BatchNorm" in module.type)


def before_onset(timeline: Timeline) -> Mask:
    """Which sampled steps came before the training blew up, all where it did not; [sampled steps]."""
    return timeline.steps < (np.inf if timeline.onset is None else timeline.onset)
