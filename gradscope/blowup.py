"""How a training came to blow up: the steps before it that no frame was taken of, rates that rose, losses that leapt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.depth import has_norm
from gradscope.depth import is_residual
from gradscope.depth import step_sizes
from gradscope.depth import updates_within
from gradscope.evidence import overshoot
from gradscope.evidence import rates_at
from gradscope.objective import sole_loss
from gradscope.timeline import Timeline
from gradscope.trends import geometric
from gradscope.trends import largest_before
from gradscope.trends import median_of
from gradscope.trends import smoothed

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

ORDINARY_DEPTH = 4  # matrices in a row, of the small nets that the usual size of steps comes from
MEMORY = 2.0  # times 1 / (1 - momentum): steps whose gradients make all but the whole of an update
MOST_GROWING = 64  # losses from the start that are looked at for even growth
LEAST_GROWING = 6  # of them, that show it
HEIGHT = 0.1  # of the loss at the start, below which a rise may be any batch's
CLIMB = 20  # steps before a blow-up that are looked at for a rise
RISING = 1.5  # times the highest of them, that one of the last three has where steps and not a batch have made it
RISEN = 3.0  # times that a learning rate rises at once
RATE_BEFORE = 10  # steps at a rate that training has borne
SOON = 30  # steps within which a blow-up is laid to a rate that rose
LEAP = 10.0  # times the largest of the 30 losses before
ABOVE_START = 3.0  # times the loss at the start, or the best constant prediction's: no ordinary batch has as much
QUIET = 100  # losses before a leap, of which none is as high
LONG_STEP = 0.1  # update ratio of the median matrix


def compounded(timeline: Timeline) -> Floats:
    """What each sampled step comes to over the layers of a deep plain net, as a share; NaN for other nets; [sampled steps].

    Where nothing but layers follow one another, a step changes what the net computes by up to Π (1 + r) - 1 over the update
    ratios r of its layers (J. Bernstein et al., "On the distance between two neural networks and the stability of
    learning", 2020). Residual branches and normalisations keep it from compounding.
    """
    if chain_length(timeline) <= ORDINARY_DEPTH:
        return np.full(len(timeline.frames), np.nan)
    ratios = timeline.update_ratios[:, [layer.parameter for layer in timeline.layers]].astype(np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(np.expm1(np.nansum(np.log1p(np.maximum(ratios, 0.0)), axis=1)), dtype=np.float64)


def reaches(sizes: Floats, together: Floats, least: float) -> Mask:
    """Which steps are as long as ``least`` in the median matrix, or as far over all layers as if four matrices were."""
    with np.errstate(invalid="ignore"):
        return np.asarray((sizes >= least) | (together >= (1 + least) ** ORDINARY_DEPTH - 1))


def chain_length(timeline: Timeline) -> int:
    """Matrix layers that follow one another with nothing to keep them in hand; 0 where there are branches or norms."""
    kept = is_residual(timeline) or has_norm(timeline)
    return 0 if kept else sum(not layer.weight.zero_at_start for layer in timeline.layers)


def _alike(timeline: Timeline, sizes: Floats) -> Floats:
    """``compounded`` of steps that are as long in every layer."""
    depth = chain_length(timeline)
    with np.errstate(over="ignore"):
        return np.expm1(depth * np.log1p(sizes)) if depth > ORDINARY_DEPTH else np.full(len(sizes), np.nan)


def reckoned_sizes(timeline: Timeline) -> Floats:
    """Median update ratio of every step, also of those that no frame was taken of, as far as it can be told; [pulses].

    A step of SGD with momentum m is lr · v with v ← m v + g: from one sampled step to the next its length goes with the
    learning rate and with the norms of the gradients, which pulses hold. NaN for other optimizers and where norms are missing.
    """
    steps, rates, norms = (timeline.pulse(name) for name in ("step", "learning_rate", "gradient_norm"))
    unknown = np.full(len(steps), np.nan)
    optimizer = timeline.info.optimizers[0] if len(timeline.info.optimizers) == 1 else None
    if optimizer is None or optimizer.type != "SGD" or not len(timeline.frames):
        return unknown
    norms = np.where(timeline.spans == 1, norms, np.nan)  # before a gap nothing is known
    pushes = rates * _gathered(norms, optimizer.settings.get("momentum", 0.0))
    sizes = np.where(np.isin(steps, timeline.steps), 0.0, np.nan)
    sizes[np.isfinite(sizes)] = step_sizes(timeline)[np.isin(timeline.steps, steps)]
    told = (sizes > 0) & (pushes > 0) & np.isfinite(sizes) & np.isfinite(pushes)
    last = np.maximum.accumulate(np.where(told, np.arange(len(steps)), -1)) if len(steps) else np.zeros(0, dtype=np.intp)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        reckoned = np.where(last >= 0, sizes[last] * pushes / pushes[last], np.nan)
    return np.where(np.isfinite(sizes), sizes, reckoned)


def _gathered(norms: Floats, momentum: float) -> Floats:
    """Norms of gradients added up as momentum does; NaN until as many are known in a row as still count."""
    memory = math.ceil(MEMORY / (1 - momentum)) if 0 < momentum < 1 else 1
    gathered = np.full(len(norms), np.nan)
    total, known = 0.0, memory  # before the first step there is nothing that could be missing
    for i, norm in enumerate(norms):
        known = known + 1 if math.isfinite(norm) else 0
        total = momentum * total + norm if known else 0.0
        gathered[i] = total if known >= memory else math.nan
    return gathered


@final
@dataclass(frozen=True)
class Growth:
    """A loss that grows by the same factor in every step."""

    count: int  # losses that do, from the first
    factor: float


def grows_geometrically(timeline: Timeline, least: float) -> Growth | None:
    """Whether loss and gradient norm grow together and evenly from the start, by ``least`` in all; of 64 losses at most."""
    rising = np.isfinite(timeline.loss[:MOST_GROWING]) & (timeline.loss[:MOST_GROWING] > 0)
    count = len(rising) if rising.all() else int(np.argmin(rising))
    norms = timeline.gradient_norms[timeline.pulse("backwards") > 0][:count]
    if count < LEAST_GROWING or timeline.several_objectives:
        return None
    if not (norms[[0, -1]] > 0).all() or not np.isfinite(norms[[0, -1]]).all():
        return None
    slope, stray = geometric(timeline.loss[:count])
    total = slope * (count - 1)
    carried_over = math.log(norms[-1] / norms[0]) / total if total > 0 else 0.0
    even = total >= math.log(least) and stray <= 0.15 * total and 0.25 <= carried_over <= 1.25
    return Growth(count, math.exp(slope)) if even else None


def grew(timeline: Timeline, step: int, times: float) -> bool:
    """Whether loss or gradient rose before, where the loss at ``step`` is not a finite number itself."""
    place = int(np.searchsorted(timeline.loss_steps, step))
    if place < len(timeline.loss) and math.isfinite(timeline.loss[place]):
        return True
    near = (timeline.pulse("step") < step) & (timeline.pulse("step") >= step - 10)
    loss, norm = (timeline.pulse(name)[near] for name in ("loss", "gradient_norm"))
    return any(len(x) > 1 and bool(np.any(x[1:] > times * abs(x[0]))) for x in (loss, norm))


def ordinary_gradient(timeline: Timeline, step: int) -> bool:
    """Whether the gradient at ``step`` was as large as those before, as far as that is known: no batch made that step long."""
    steps, norms = timeline.pulse("step"), timeline.gradient_norms
    before, now = median_of(norms[(steps < step) & (steps >= step - SOON)]), median_of(norms[steps == step])
    return not now > LEAP * before


def worst_loss(timeline: Timeline, step: int) -> float:
    """The largest finite loss from a step on; NaN where there is none."""
    after = timeline.loss[timeline.loss_steps >= step]
    return float(after[np.isfinite(after)].max()) if np.isfinite(after).any() else math.nan


def lost_at(timeline: Timeline, *, worked: float, ceiling: float) -> int | None:
    """The step at which the loss first rose above ``ceiling``, after it had last been below ``worked``; None where it didn't.

    What comes after belongs to a model that is lost already, however high a loss it has then.
    """
    below = np.flatnonzero(timeline.loss < worked)
    above = np.flatnonzero(timeline.loss > ceiling)
    above = above[above > below[-1]] if (smoothed(timeline.loss) < worked).any() else above[:0]
    return int(timeline.loss_steps[above[0]]) if len(above) else None


def recovered(timeline: Timeline, start: float) -> bool:
    """Whether the loss has come down from where it began, and below the best constant prediction's where that is known."""
    last, baseline = timeline.last_loss, timeline.known_baseline or 0.0
    return bool(last < start - 0.1 * abs(start)) and not (baseline > 0 and last > 0.95 * baseline)


def scale_is_off(timeline: Timeline, most: float) -> bool:
    """Whether the loss began above ``most`` times a constant prediction's, which explains all that the first step did.

    Curvature grows with the square of the model's scale at most (Gauss-Newton). So does the squared error; the cross-entropy
    grows with the scale. A first step that was measured to overshoot by more than that has another cause.
    """
    if updates_within(timeline):
        return False  # the first loss that is known came after some of them
    baseline = timeline.known_baseline or 0.0
    off = float(timeline.loss[0]) / baseline if baseline > 0 else 0.0
    loss, probe = sole_loss(timeline), overshoot(timeline)
    explained = off if loss is not None and loss.kind == "mse" else off**2
    return off > most and not (probe is not None and probe.step == 0 and probe.overshoot > explained)


def climbed(timeline: Timeline, step: int) -> bool:
    """Whether loss or gradient norm rose in the three steps before ``step``, above those before: no single batch made that."""
    near = (timeline.loss_steps < step) & (timeline.loss_steps >= step - CLIMB)
    norms = timeline.gradient_norms[timeline.pulse("backwards") > 0][near]
    losses = timeline.loss[near]
    if len(losses) < LEAST_GROWING:
        return False
    with np.errstate(invalid="ignore"):
        known = norms[:-3][np.isfinite(norms[:-3])]
        norms_rose = len(known) > 0 and np.count_nonzero(norms[-3:] > RISING * known.max()) >= 2
        high = max(RISING * float(losses[:-3].max()), HEIGHT * abs(timeline.first_loss))
        return bool(norms_rose or (losses[-3:] > high).any())


@final
@dataclass(frozen=True, eq=False)
class LongSteps:
    """Steps that moved the weights far, and how that is known."""

    steps: npt.NDArray[np.int64]
    sizes: Floats  # what they changed of the median matrix, as a share of its norm
    together: Floats  # the same over all layers of a deep plain net; NaN for others
    raised: float = 1.0  # by how much the learning rate rose since a frame was taken, or at once
    reckoned: bool = False  # sizes come from norms of gradients and learning rates
    borne: float | None = None  # the learning rate before it rose at once, which the training had borne

    @staticmethod
    def at(timeline: Timeline, sizes: Floats, rows: Mask | Indices) -> LongSteps:
        """These sampled steps."""
        return LongSteps(timeline.steps[rows], sizes[rows], compounded(timeline)[rows])


def sampled_before(timeline: Timeline, sizes: Floats, step: int, *, least: float, most: int) -> LongSteps | None:
    """Those of the last sampled steps before ``step`` that were long; the learning rate may have risen since.

    Where loss or gradient had climbed before, the step itself counts as well: no batch of its own made it long. What the rate
    has since made of a step counts where none was long itself.
    """
    rows = np.flatnonzero(timeline.steps < step + climbed(timeline, step))[-most:]
    raised = rates_at(timeline, np.array([step - 1])) / rates_at(timeline, timeline.steps[rows])
    raised = np.where(raised > RISEN, raised, 1.0)  # steps grow with the rate, which is known also where no frame was taken
    expected = sizes[rows] * raised
    together = np.where(raised > 1, _alike(timeline, expected), compounded(timeline)[rows])
    long = reaches(expected, together, least)
    itself = long & (raised == 1)
    long = itself if itself.any() else long
    if not long.any():
        return None
    by = float(raised[long][-1])
    steps = timeline.steps[rows][long]
    return LongSteps(steps if by == 1 else np.maximum(steps, step - 1), expected[long], together[long], by)


def reckoned_before(timeline: Timeline, step: int, *, least: float, most: int) -> LongSteps | None:
    """Those of the last steps before ``step`` that were long, as norms of gradients and learning rates tell.

    The step itself counts where loss or gradient had climbed before.
    """
    near = (timeline.pulse("step") < step + climbed(timeline, step)) & (timeline.pulse("step") >= step - most)
    sizes, steps = reckoned_sizes(timeline)[near], timeline.pulse("step")[near].astype(np.int64)
    together = _alike(timeline, sizes)
    long = reaches(sizes, together, least)
    return LongSteps(steps[long], sizes[long], together[long], reckoned=True) if long.any() else None


def risen_before(timeline: Timeline, sizes: Floats, step: int) -> LongSteps | None:
    """The step within 30 before ``step`` at which the learning rate rose at once to three times what training had borne.

    None where the loss did not climb from then on.
    """
    steps, rates = timeline.pulse("step"), timeline.pulse("learning_rate")
    rows = np.flatnonzero(timeline.steps < step)[-1:]
    for i in np.flatnonzero((steps < step) & (steps >= step - SOON))[::-1]:
        before = rates[max(i - RATE_BEFORE, 0) : i]
        if len(before) == RATE_BEFORE and (before > 0).all() and rates[i] >= RISEN * before.max():
            if not len(rows) or not climbed(timeline, step):
                return None
            known = sizes[rows] * rates[i] / rates_at(timeline, timeline.steps[rows])
            by, borne = float(rates[i] / before.max()), float(before.max())
            return LongSteps(steps[i : i + 1].astype(np.int64), known, _alike(timeline, known), by, borne=borne)
    return None


def said_of(timeline: Timeline, long: LongSteps, rate: float) -> str:
    """The beginning of a sentence that says how long steps were."""
    first, size = int(long.steps[0]), float(long.sizes[0])
    if long.borne is not None:
        return f"At step {first} the learning rate rose from {long.borne:g} to {rate:g} at once, after it the loss climbed"
    if long.raised > 1:
        said = f"By step {first} the learning rate had risen {long.raised:.3g} times, to {rate:g}: such a step changes"
    else:
        said = f"Step {first} changed"
    reckoned = ", by its gradient's norm" if long.reckoned else ""
    far, over = float(long.together[0]), ""
    if math.isfinite(far) and size < LONG_STEP:
        over = f", and what the net computes by up to {100 * far:.3g} % over its {chain_length(timeline)} layers"
    return f"{said} the median weight matrix by {_share(size)}{reckoned}, where 0.1 to 1 % is usual{over}"


def source_of(long: LongSteps, *, measured: bool) -> str:
    """Where the value of the rate to take comes from."""
    if long.borne:
        return "the training had borne that one"
    return "the value comes from " + ("how far the step overshot" if measured else "the size of the first steps")


def _share(size: float) -> str:
    return f"{100 * size:.3g} % of its norm" if size < 10 else f"{size:.3g} times its norm"


def leaps(timeline: Timeline) -> Indices:
    """Indices of losses that leapt out of the ordinary though no step before was long: what a batch does, and no step.

    Each is above three times the loss at the start (and a constant prediction's) and ten times the 30 before it; these did
    not climb, the learning rate did not rise, and no gradient or step of theirs that is known was out of the ordinary.
    """
    losses = timeline.loss
    if timeline.several_objectives or timeline.noisy_loss or not np.isfinite(timeline.first_loss):
        return np.zeros(0, dtype=np.intp)
    ceiling = ABOVE_START * max(abs(timeline.first_loss), timeline.known_baseline or 0.0)
    with np.errstate(invalid="ignore"):
        leapt = (losses > LEAP * largest_before(losses)) & (losses > ceiling)
    first = [i for i in np.flatnonzero(leapt) if not (losses[max(i - QUIET, 0) : i] > ceiling).any()]
    found = [int(i) for i in first if _calm(timeline, int(timeline.loss_steps[i]))]
    return np.array(found, dtype=np.intp)


def _calm(timeline: Timeline, step: int) -> bool:
    """Whether the steps before this one are known to have been ordinary, as far as anything is known of them."""
    near = (timeline.pulse("step") < step) & (timeline.pulse("step") >= step - SOON)
    rates, norms = timeline.pulse("learning_rate")[near], timeline.gradient_norms[near]
    rose = len(rates) > 0 and bool(rates[-1] > 1.5 * middles.median(rates))
    known = norms[np.isfinite(norms)]
    steep = np.isinf(norms).any() or (len(known) > 2 and bool(known[-1] > LEAP * middles.median(known[:-1])))
    rows = np.flatnonzero(timeline.steps < step)[-3:]
    short = not reaches(step_sizes(timeline)[rows], compounded(timeline)[rows], LONG_STEP).any()
    return len(rows) > 0 and short and not rose and not steep and not climbed(timeline, step)
