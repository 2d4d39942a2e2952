"""Single batches whose numbers are far larger than those of all others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope import middles
from gradscope.blowup import LONG_STEP
from gradscope.blowup import leaps
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import Indices
from gradscope.evidence import Mask
from gradscope.evidence import gravity
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import SPIKE_WINDOW
from gradscope.trends import largest_before
from gradscope.trends import median_of
from gradscope.trends import spike_scores

SERIES = ("input.absmax", "input.rms", "loss.target_rms", "loss.target_high", "loss.target_low")


@dataclass(frozen=True)
class _Outlier:
    row: int  # the sampled step
    score: float
    column: str
    place: int  # which input or loss
    value: float
    usual: float


@final
@dataclass(frozen=True)
class OutlierBatch(Rule):
    """A batch came with a sample far out of range, and its step threw the training off.

    ## What it does

    Compares the largest magnitude and the root mean square of each input, and those of the targets, with the sampled steps
    before, on a logarithmic scale in units of their spread. It speaks where one of them jumps above 8 in the same step in
    which the gradient norm or the loss jumps above 6 (or to ten times the largest of the 30 steps before), with finite
    weights before, and is back to normal on the next sampled step.

    Where no frame was taken of that step, or the sample is not among the elements that were taken, it is told by what no step
    can do: the loss leaps above three times its start (and a constant prediction's) and to ten times the largest of the 30
    before, the losses before it did not climb, the learning rate did not rise, and no step before it that is known was long.
    It speaks where that blew the training up, or where the loss comes down from there again.

    ## Why it is bad

    The gradient of the squared error and that of the first layer grow with what they are given. One sample a thousand times
    too large makes a step a thousand times too long: units die and hundreds of steps are undone.

    ## How it is told apart

    - A spike of the gradient over ordinary inputs is not the data's: `gradient-spikes` stands alone then.
    - Inputs that stay large after the step are a change of the data, not an outlier.
    - Outliers that loss and gradient take without a jump are not mentioned. Where the loss is back within 20 steps, as with
      Adam, whose step is bounded, the finding is an aside.
    - The loss need not tell: at the start of a training it stands where it ends when the net has died. Where the outlier's step
      moved the median matrix by a tenth of its norm or more, and ten times as far as those before, the finding is as grave as
      what became of the training. A click thousands of times too loud made steps of 4.6 and 6.6 times the norm, where 0.01
      and 0.02 were usual; the loss went from 1.29 over 376 and 2,613 to ln 4 and stayed there, all units dead 19 steps later.
      A step as long as the weights themselves leaves nothing of what they were: it is a warning until training has converged.
      The same click made one of 1.5 in another draw; the loss was back from 33 within ten steps, and came to 0.34 where the
      training without it came to 0.00001.
    - What follows within 20 steps is an aftershock: a loss of 684 one step after the outlier had ordinary inputs.
    - Steps that are too long make the loss climb over several steps, each higher than the one before; a rate that had become
      fifty times too high took it from 0.001 over 0.03, 0.4 and 50 to 2,000. One batch takes it from 0.06 to 140,000 at once.
    - A loss that counts a thousand times as much from a step on leaps, too: it is compared with what it would have been with
      that weight before, where there is one loss function and the graph tells its weight.
    - Data that are different from then on, so that the loss stays where it leapt to, are no outlier.
    - A small last batch has another root mean square: less than four times the usual is not out of range. That of a single
      sample was 2.5 times that of batches of 37, in the step in which its own deviation was divided by.
    - Where one target in fifty is absurd, every other batch holds one, and twenty losses may lie a hundred times above the
      twenty before by chance (0.3 against 50): to be harm, their median has to exceed nine tenths of those before as well.
    - A loss that is infinite because of a weight of 1/0, or of a value that came out of numbers of ordinary size, is
      `nonfinite-input` or `nonfinite-origin`.

    Measured: a sample five hundred to a thousand times too large has a score of 69 in the input and 28 in the gradient norm;
    in healthy trainings the gradient's stays under 4.6.

    ## What to do

    Look at that batch; bound inputs and targets at what ordinary batches reach; clip the gradient, so that no single batch can
    do much.

    ## Known false alarms

    Data with heavy tails that the model is to learn from. It is a warning only where the loss suffers.

    ## References

    PaLM (2022), section 5.1, on batches that make spikes. N. Humbatova et al., "Taxonomy of Real Faults in Deep Learning
    Systems" (ICSE 2020), "training data quality".
    """

    family: ClassVar[str] = "data"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("pulse.gradient_norm", "pulse.loss")
    least_steps: ClassVar[int] = 11
    explains: ClassVar[tuple[str, ...]] = (
        "gradient-spikes", "exploding-gradients", "loss-divergence", "lr-too-high", "dead-units", "saturated-units",
        "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "loss-plateau", "adam-second-moment-lag",
        "activation-growth", "oscillating-loss", "collapsed-output",
    )  # fmt: skip

    score: float = 8.0  # of an input or target
    least_times: float = 4.0  # the usual, that is far out of range however little the batches vary
    ordinary: float = 1e6  # magnitude up to which what went into an operation that broke was in its range
    spike: float = 6.0  # of gradient norm or loss in the same step
    leap: float = 10.0  # times the largest of the 30 steps before, that is a spike however much they vary
    normal: float = 4.0  # score under which the next sampled step is ordinary
    same_event: int = 20  # steps in which later ones are aftershocks
    fall: float = 3.0  # times that a loss comes down within as many steps as are one event, where a leap was one batch's
    harm_steps: int = 20  # before and after, whose losses are compared
    harm: float = 1.5  # times the median loss before
    scatter: float = 0.9  # share of the losses before that the median after has to exceed as well
    whole: float = 1.0  # update ratio of the median matrix, from which what it had learned is gone
    blow_up_steps: int = 50  # within which a blow-up is laid to the outlier

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        if len(timeline.frames) < 11:
            return
        steps = self._spikes(timeline)
        eligible = np.isin(timeline.steps, steps) & ~(timeline.held("weight.nonfinite") > 0).any(axis=1)
        found = list(self._outliers(timeline, eligible))
        if found:
            yield self._hit(timeline, found)
            return
        leapt = [int(timeline.loss_steps[i]) for i in leaps(timeline) if self._is_one_batch(timeline, int(i))]
        leapt = [step for step in leapt if not self._broke_otherwise(timeline, step)]
        if leapt:
            yield self._inferred(timeline, leapt)

    def _is_one_batch(self, timeline: Timeline, index: int) -> bool:
        """Whether a loss that leapt did not stay where it was: it came down soon, or the training broke."""
        after = timeline.loss[index + 1 : index + 1 + self.same_event]
        high = float(timeline.loss[index])
        return bool((~np.isfinite(after)).any() or (after < high / self.fall).any() or (after > high * self.fall).any())

    def _broke_otherwise(self, timeline: Timeline, step: int) -> bool:
        """Whether this step's first value that is not finite is known to have come of numbers of ordinary size."""
        origin = timeline.info.origin
        if origin is None or origin.step != step:
            return False
        return origin.place in ("input", "target") or (origin.largest is not None and origin.largest < self.ordinary)

    def _spikes(self, timeline: Timeline) -> npt.NDArray[np.int64]:
        """The steps whose gradient norm or loss jumped, or whose loss was the first that is not finite."""
        norms, known = timeline.gradient_norms, np.isfinite(timeline.gradient_norms)
        steps = [timeline.pulse("step")[known][self._jumps(norms[known])], timeline.loss_steps[self._jumps(timeline.loss)]]
        broken = ~np.isfinite(timeline.loss) | np.isinf(norms[timeline.pulse("backwards") > 0])
        return np.concatenate([*steps, timeline.loss_steps[broken][:1]]).astype(np.int64)

    def _jumps(self, series: npt.NDArray[np.float64]) -> Mask:
        if not len(series):
            return np.zeros(0, dtype=bool)
        with np.errstate(invalid="ignore"):
            return np.asarray((spike_scores(series) > self.spike) | (series > self.leap * largest_before(series)))

    def _outliers(self, timeline: Timeline, eligible: Mask) -> Iterator[_Outlier]:
        """The worst series of each event; the steps after it are its aftershocks."""
        last = -self.same_event - 1
        for row in np.flatnonzero(eligible):
            found = self._worst(timeline, int(row)) if timeline.steps[row] - last > self.same_event else None
            if found is not None:
                last = int(timeline.steps[row])
                yield found

    def _worst(self, timeline: Timeline, row: int) -> _Outlier | None:
        found = []
        for column in SERIES:
            table = np.abs(timeline.column(column).astype(np.float64))
            for place, series in enumerate(table.T):
                score = float(spike_scores(series[max(0, row - SPIKE_WINDOW) : row + 1])[-1])
                usual = median_of(series[max(0, row - SPIKE_WINDOW) : row])
                outlier = _Outlier(row, score, column, place, float(series[row]), usual)
                far = outlier.value > self.least_times * usual
                if far and score > self.score and self._passes(series[row + 1 :], outlier):
                    found.append(outlier)
        return max(found, key=lambda outlier: outlier.score, default=None)

    def _passes(self, after: npt.NDArray[np.float64], outlier: _Outlier) -> bool:
        """Whether the next value, where there is one, is back to normal."""
        known = after[np.isfinite(after)]
        normal = outlier.usual * (outlier.value / outlier.usual) ** (self.normal / outlier.score)
        return not len(known) or bool(known[0] < normal)

    def _hit(self, timeline: Timeline, found: list[_Outlier]) -> Hit:
        worst = max(found, key=lambda outlier: outlier.score)
        step = int(timeline.steps[worst.row])
        kind, _, statistic = worst.column.partition(".")
        name = f"the input {timeline.site_names('input')[worst.place]}" if kind == "input" else "the targets"
        what = {"rms": "root mean square", "target_rms": "root mean square"}.get(statistic, "largest magnitude")
        norm = float(_at(timeline, "gradient_norm", step))
        usual = median_of(
            timeline.pulse("gradient_norm")[(timeline.pulse("step") < step) & (timeline.pulse("step") >= step - 30)]
        )
        return Hit(
            modules=(timeline.site_names("input")[worst.place],) if kind == "input" else (),
            first_step=int(timeline.steps[found[0].row]),
            last_step=int(timeline.steps[found[-1].row]),
            evidence={
                "step": step,
                "column": worst.column,
                "value": plain(worst.value),
                "usual": plain(worst.usual),
                "score": plain(worst.score),
                "gradient_norm": plain(norm),
                "usual_gradient_norm": plain(usual),
                "events": len(found),
            },
            message=(
                f"At step {step} {name} had a {what} of {worst.value:.3g}, {worst.value / worst.usual:.3g} times the usual, "
                f"and the gradient norm went from {usual:.3g} to {norm:.3g}."
            ),
            remedy=_remedy(timeline, worst, kind, step),
            severity=self._severity(timeline, [int(timeline.steps[outlier.row]) for outlier in found]),
            strength=4.0,
        )

    def _inferred(self, timeline: Timeline, steps: list[int]) -> Hit:
        """What the losses tell, where the numbers that were out of range were not among those taken."""
        step = max(steps, key=lambda step: float(timeline.loss[timeline.loss_steps == step][0]))
        place = int(np.flatnonzero(timeline.loss_steps == step)[0])
        high, usual = float(timeline.loss[place]), median_of(timeline.loss[max(place - SPIKE_WINDOW, 0) : place])
        norm = float(_at(timeline, "gradient_norm", step))
        return Hit(
            modules=(),
            first_step=min(steps),
            last_step=max(steps),
            evidence={
                "step": step,
                "loss": plain(high),
                "usual_loss": plain(usual),
                "gradient_norm": plain(norm),
                "events": len(steps),
            },
            message=(
                f"At step {step} the loss went from {usual:.3g} to {high:.3g} at once, though the steps before it were of "
                "ordinary size and the learning rate had not risen: something in that batch is far out of range, beside the "
                "elements that were sampled."
            ),
            remedy=_clipped(timeline, step),
            severity=self._severity(timeline, steps),
            strength=3.0,
        )

    def _severity(self, timeline: Timeline, steps: list[int]) -> Severity:
        onset = timeline.onset
        if onset is not None and any(step <= onset <= step + self.blow_up_steps for step in steps):
            return Severity.CRITICAL
        if any(self._threw(timeline, step) for step in steps) and not works(timeline):
            return gravity(timeline)
        overwrote = any(self._threw(timeline, step, least=self.whole) for step in steps)
        suffered = overwrote or any(self._suffered(timeline, step) for step in steps)
        return Severity.WARNING if suffered and not timeline.converged and not timeline.several_objectives else Severity.INFO

    def _threw(self, timeline: Timeline, step: int, *, least: float = LONG_STEP) -> bool:
        """Whether the step of that batch moved the weights far, and many times as far as those before."""
        sizes, near = step_sizes(timeline), (timeline.steps >= step) & (timeline.steps <= step + 1)
        before = median_of(sizes[(timeline.steps < step) & (timeline.steps >= step - SPIKE_WINDOW)])
        return bool((sizes[near] >= least).any() and (sizes[near] > self.leap * before).any())

    def _suffered(self, timeline: Timeline, step: int) -> bool:
        """Whether the loss was worse for some time after, by more than it scattered before."""
        steps = timeline.loss_steps
        losses = timeline.loss[(steps < step) & (steps >= step - self.harm_steps)]
        before, losses = median_of(losses), losses[np.isfinite(losses)]
        after = timeline.loss[(steps > step) & (steps <= step + self.harm_steps)]
        if len(after) < self.harm_steps // 2 or not len(losses):
            return False
        worse = before + (self.harm - 1) * abs(before)
        return bool(median_of(after) > max(worse, float(np.quantile(losses, self.scatter))))


def _at(timeline: Timeline, field: str, step: int) -> float:
    values: Indices = np.flatnonzero(timeline.pulse("step") == step)
    return float(timeline.pulse(field)[values[0]]) if len(values) else float("nan")


def _remedy(timeline: Timeline, worst: _Outlier, kind: str, step: int) -> Remedy:
    name, limit = ("x" if kind == "input" else "y"), f"{3 * worst.usual:.2g}"
    bounded = worst.column.endswith("max") or worst.column.endswith(("high", "low"))
    first = f"{name} = {name}.clamp(-{limit}, {limit})  # ordinary batches reach {worst.usual:.3g}\n" if bounded else ""
    return _clipped(timeline, step, first=first)


def _clipped(timeline: Timeline, step: int, *, first: str = "") -> Remedy:
    """Clip the gradient at what 99 % of those before the step stay under, after the code in ``first``."""
    norms = timeline.pulse("gradient_norm")[timeline.pulse("step") < step]
    norms = norms[np.isfinite(norms) & (norms > 0)][-200:]
    clip = float(f"{middles.percentile(norms, 99):.2g}") if len(norms) else 1.0
    return Remedy(
        f"Look at the batch of step {step} and repair or drop the sample; clip the gradient at {clip:g}, under which 99 % of "
        "the steps before it stay.",
        f"{first}torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={clip:g})  # after backward(), before step()",
    )
