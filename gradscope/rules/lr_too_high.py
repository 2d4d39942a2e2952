"""Steps longer than the valley of the loss is wide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import largest
from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.depth import step_sizes
from gradscope.evidence import gravity
from gradscope.evidence import overshoot
from gradscope.evidence import peak_rate
from gradscope.evidence import rates_at
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rule import Rule
from gradscope.timeline import Timeline
from gradscope.trends import geometric


@dataclass(frozen=True)
class _Overshoot:
    """Where the steps were too long, and what came of it."""

    rows: npt.NDArray[np.intp]  # the sampled steps whose size shows it
    step: int  # where the loss shows it
    loss: float  # the worst finite loss from there on, or the last one
    story: str  # what the loss did
    severity: Severity = Severity.CRITICAL
    raised: float = 1.0  # by how much the learning rate rose between the last sampled step and the blow-up
    at_once: bool = False  # within two updates, before gradients that are not cleared could have piled up
    probe: StepQuality | None = None  # the step that was measured to overshoot


@final
@dataclass(frozen=True)
class LrTooHigh(Rule):
    """The learning rate is so high that steps overshoot: the loss jumps, training diverges or never gets going.

    ## What it does

    Compares the length of steps (the update ratio, the norm of a step over the norm of the weight, of the median matrix)
    with what the loss does. It speaks in seven cases:

    - within the first ten steps the loss jumps by more than twice its start or is no longer finite, a step before moved
      the median matrix by a tenth of its norm or more, and the loss has not come down since (where it has, the finding is
      a warning until the training has converged, and then an aside);
    - training blows up later, and one of the last three sampled steps before was as large;
    - training worked, the loss falling below half of what the best constant prediction has, then grew above three times its
      start with such steps before, and is back at a constant prediction's: what was learned is lost;
    - loss and gradient norm grow geometrically from the start, by ten times or more in all, and steps grow along;
    - for 50 steps or more the typical step is as large, and the loss does not come down;
    - the first five steps moved the median matrix by 15 % of its norm or more, and after 100 steps the loss is still above
      half of what the best constant prediction has;
    - a suspicious one of the first ten steps was tried again on its own batch, at a part 1/O of it, O at least 1.3, the loss is
      above where it began already, and at its end above where training began: the step overshot, and without any one of the
      faults of scale that show it does so still.

    A measured overshoot without such a fault also makes the other cases sure. A measured O below a half for the step before
    a jump refutes them: that step was right, so the jump came of something else.

    ## Why it is bad

    A gradient step of rate lr lowers the loss only where lr times the curvature is below 2; beyond, each step lands
    higher on the other side. Units die, and what is left is a model that cannot learn any more, or NaN.

    ## How it is told apart

    - Too large weights, inputs that are not normalised and stacks without normalisation lower the largest rate that
      works; they show at step 0, before any update, and then explain this finding.
    - Gradients that are not cleared make ever longer steps: where the last step's gradient is still there, this rule is
      silent. Where no two steps in a row were sampled that is not known, and what grows over more than two steps proves
      little.
    - Where the loss before any update is more than ten times that of a constant prediction, scale is at fault, whatever the
      learning rate: a recurrence whose state grows by 1.2 a step began at 7,700 times. This rule is silent then.
    - An outlier or a NaN in the data makes one large step; the steps before it were of ordinary size.
    - Large steps alone are no fault: a healthy Adagrad embedding shows 0.35 and full-batch training at the edge of
      stability 0.11, both with a falling loss. Steps that weight decay alone makes large are not counted.
    - Where the loss is the mean of fewer than eight numbers it jumps by chance: there it takes a hundredfold rise.

    On 78 healthy trainings O at step 0 was 0.43 at most. It is proportional to the learning rate: 0.154, 0.462, 1.54 and 4.63
    at 0.1, 0.3, 1 and 3. Digits as raw values of 0 to 16 had 9.9, and 0.15 once divided by their root mean square.

    On 26 healthy small trainings the median update ratio of the first five steps was at most 0.11 and the loss rose by at
    most 1.6 times its start; with learning rates that were too high it was 0.14 to 100,000 and the loss jumped by 1.3 to
    1e14. Such a run need not fail outright: Adam with 0.1 on five layers sent the loss from 3 to between 23 and 32 and
    came to 0.15 to 1.95 in 250 steps, with most units dead, where 0.001 comes to 0.002.

    Of 38 healthy trainings of the zoo (one seed), those that were above half the best constant prediction's loss at their end
    had begun with steps of 10 % of the norm at most (a GAN; 3 % where one objective was trained); larger ones (45 % at most:
    full-batch regression, a sparse embedding, L-BFGS) had all come to under a thirtieth. The case of the first five steps
    rests on one fault: a transformer with AdamW at 0.03 began with 20 % and 21 % (two seeds) and stood at 0.62 and 0.68
    after 120 steps. Its healthy twin at 0.002 began with 1.7 % and stood at 0.45 and 0.50: it is the step that tells them
    apart, not the loss.

    Twelve faults of the step's size had a measured overshoot of 1.3 at least, 78 healthy starts one of 0.43 at most. Two
    healthy trainings on raw data lay higher, at 1.14 with a first step from 8.3 to 12.3, and at 1.76 with a rise that stayed
    below the start; both learned, hence what the overshoot alone has to come to.

    Momentum 0.95 at a rate of 0.3 made an MLP of three layers learn its task within 15 steps, to a twentieth of a constant
    prediction's loss. Then the steps' length rose from 4 % to 10 and 20 % of the norm and the loss to 5,000 and more, and in
    the end all units of a layer were dead (three seeds). Steps on the way, tried again on their own batch, had O between 0.3
    and 1.1: each alone was about right, and it is the growth that is the proof, not the probe. Data that are wrong in one
    batch make the loss jump with no longer step before.

    ## What to do

    Where the overshoot was measured, lower the learning rate to lr / (4 O), which brings it to a quarter. Else lower it so that
    the first steps move the median matrix by a hundredth of its norm, and to an eighth at least; or warm it up over the first
    hundreds of steps.

    ## Known false alarms

    Weights that start close to zero have large ratios for a few steps; it takes a loss that does not recover as well.

    ## References

    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998, section 5. J. Cohen, S. Kaur, Y. Li, J. Z.
    Kolter, A. Talwalkar, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability", 2021.
    """

    family: ClassVar[str] = "learning rate, optimizer"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("update.ratio", "pulse.loss")
    least_steps: ClassVar[int] = 2
    explains: ClassVar[tuple[str, ...]] = (
        "exploding-gradients", "vanishing-gradients", "gradient-spikes", "loss-divergence", "loss-plateau", "oscillating-loss",
        "dead-units", "saturated-units", "collapsed-output", "activation-growth", "residual-growth", "nonfinite-origin",
        "nonfinite-gradients", "nonfinite-loss", "weights-not-moving", "attention-entropy-collapse",
        "fp16-overflow", "attention-logit-growth", "output-logit-drift", "adam-second-moment-lag",
    )  # fmt: skip

    large_step: float = 0.1  # update ratio of the median matrix
    rise: float = 2.0  # jump of the loss over its magnitude at the start
    noisy_rise: float = 100.0  # the same where the loss is the mean of few numbers
    early_steps: int = 10  # within which a jump counts as one from the start
    sudden_step: float = 1.0  # update ratio from which a loss may turn NaN with no growth before
    growth: float = 10.0  # of gradient or loss in the ten steps before it turns NaN; of the loss where it grows geometrically
    raised: float = 3.0  # rise of the learning rate since the last sampled step, from which steps are taken to grow along
    most_start: float = 10.0  # times the loss of the best constant prediction, above which the scale is off from the start
    sustained_steps: int = 50  # of large steps whose loss does not come down
    sustained_frames: int = 10  # sampled ones among them
    scrambling_step: float = 0.15  # update ratio of the first five sampled steps, in the median
    scrambled_after: int = 100  # steps
    scrambled_loss: float = 0.5  # of the best constant prediction's
    worked_loss: float = 0.5  # of the best constant prediction's, below which training had worked before it died
    dead_loss: float = 0.95  # of the same, above which nothing of it is left
    good_step: float = 0.01  # update ratio that the remedy aims at
    least_cut: float = 0.125  # the remedy divides the rate by eight at least
    right_step: float = 0.5  # overshoot below which a step is right
    overshoot_alone: float = 1.3  # that says enough where the run shows nothing else
    good_overshoot: float = 0.25  # that the remedy aims at, where it was measured

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        losses = timeline.loss
        if len(losses) < 2 or not len(timeline.frames) or not math.isfinite(losses[0]) or self._off_from_the_start(timeline):
            return
        sizes = step_sizes(timeline)
        found = self._early(timeline, sizes) or self._late(timeline, sizes) or self._geometric(timeline, sizes)
        found = found if found and not self._refuted(timeline, found) else None
        found = found or self._lost(timeline, sizes) or self._sustained(timeline, sizes) or self._scrambled(timeline, sizes)
        found = self._measured(timeline, found)
        if found and not self._other_cause(timeline, found):
            yield self._hit(timeline, sizes, found)

    def _refuted(self, timeline: Timeline, found: _Overshoot) -> bool:
        """Whether the step before the jump was measured to be right."""
        return any(p.step == found.step - 1 and p.overshoot < self.right_step for p in timeline.info.probes)

    def _measured(self, timeline: Timeline, found: _Overshoot | None) -> _Overshoot | None:
        """What was found, with the step that was measured to overshoot for no other reason; or that step alone."""
        probe = overshoot(timeline)
        if probe is None or any(without < 1 for without in probe.without.values()):
            return found
        rows = np.flatnonzero(timeline.steps == probe.step)
        if found is not None:
            near = abs(probe.step - found.step) <= self.early_steps or probe.step in timeline.steps[found.rows]
            return replace(found, probe=probe) if near else found
        if not len(rows) or timeline.several_objectives or probe.step > self.early_steps:
            return None  # near the end of a training that works, a step may go up on its own batch
        if probe.overshoot < self.overshoot_alone or probe.loss_after <= timeline.first_loss:
            return None  # just past the valley, or not higher than where training began: it goes on
        story = f"the loss of that very batch went from {probe.loss_before:.3g} to {probe.loss_after:.3g}"
        return _Overshoot(rows, probe.step + 1, probe.loss_after, story, gravity(timeline), probe=probe)

    def _off_from_the_start(self, timeline: Timeline) -> bool:
        baseline = timeline.known_baseline or 0.0
        return baseline > 0 and float(timeline.loss[0]) > self.most_start * baseline

    def _early(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        losses, steps = timeline.loss, timeline.loss_steps
        start = float(losses[0])
        reference = max(abs(start), timeline.known_baseline or 0.0, 1e-30)
        jumped = ~(losses <= start + self._rise(timeline) * reference)
        if timeline.several_objectives:
            jumped &= ~np.isfinite(losses)
        place = int(np.argmax(jumped)) if jumped.any() else None
        if place is None or steps[place] > self.early_steps:
            return None
        rows = np.flatnonzero(timeline.steps < steps[place])
        found = self._overshoot(timeline, sizes, rows, int(steps[place]), f"the loss jumped from {start:.3g} to {{worst}}")
        return found and replace(found, severity=self._aftermath(timeline, start), at_once=bool(steps[place] <= 2))

    def _aftermath(self, timeline: Timeline, start: float) -> Severity:
        """Critical where the loss has not come down since, a warning where it has and training has yet to converge."""
        if not self._recovered(timeline, start):
            return Severity.CRITICAL
        return Severity.INFO if timeline.converged else Severity.WARNING

    def _late(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        onset = timeline.onset
        if onset is None or (self._rise(timeline) > self.rise and np.isfinite(timeline.loss).all()):
            return None
        rows = np.flatnonzero(timeline.steps < onset)[-3:]
        raised = rates_at(timeline, np.array([onset - 1])) / rates_at(timeline, timeline.steps[rows])
        expected = sizes.copy()  # steps grow with the learning rate, which is known also where no frame was taken
        expected[rows] *= np.where(raised > self.raised, raised, 1.0)
        found = self._overshoot(timeline, expected, rows, onset, f"training blew up at step {onset}, to a loss of {{worst}}")
        return found and replace(found, raised=float(raised[-1]) if raised[-1] > self.raised else 1.0)

    def _lost(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        """A training that worked until the loss grew far above its start, and that has come back to a constant's loss only."""
        losses, baseline = timeline.loss, timeline.known_baseline or 0.0
        alone = timeline.onset is None and not timeline.several_objectives and not timeline.noisy_loss
        if not alone or not baseline > 0 or not timeline.last_loss > self.dead_loss * baseline:
            return None
        start, peak = float(losses[0]), int(np.argmax(losses))
        ceiling = start + self.rise * max(abs(start), baseline)
        below = np.flatnonzero(losses[:peak] <= ceiling)
        if not losses[peak] > ceiling or not len(below) or not losses[: below[-1] + 1].min() < self.worked_loss * baseline:
            return None
        step = int(timeline.loss_steps[below[-1] + 1])
        rows = np.flatnonzero(timeline.steps < step)[-3:]
        story = f"training blew up at step {step}, to a loss of {{worst}}, and is back at {timeline.last_loss:.3g}"
        return self._overshoot(timeline, sizes, rows, step, story)

    def _overshoot(
        self, timeline: Timeline, sizes: npt.NDArray[np.float64], rows: npt.NDArray[np.intp], step: int, story: str
    ) -> _Overshoot | None:
        rows = rows[sizes[rows] >= self.large_step]
        if not len(rows) or not (self._grew(timeline, step) or sizes[rows].max() >= self.sudden_step):
            return None
        after = timeline.loss[timeline.loss_steps >= step]
        finite = after[np.isfinite(after)]
        worst = float(finite.max()) if len(finite) else math.nan
        return _Overshoot(rows, step, worst, story.format(worst=f"{worst:.3g}" if len(finite) else "NaN"))

    def _grew(self, timeline: Timeline, step: int) -> bool:
        """Whether loss or gradient rose before, where the loss at ``step`` is not a finite number itself."""
        place = int(np.searchsorted(timeline.loss_steps, step))
        if place < len(timeline.loss) and math.isfinite(timeline.loss[place]):
            return True
        near = (timeline.pulse("step") < step) & (timeline.pulse("step") >= step - 10)
        loss, norm = (timeline.pulse(name)[near] for name in ("loss", "gradient_norm"))
        return any(len(x) > 1 and bool(np.any(x[1:] > self.growth * abs(x[0]))) for x in (loss, norm))

    def _geometric(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        rising = np.isfinite(timeline.loss[:64]) & (timeline.loss[:64] > 0)
        count = len(rising) if rising.all() else int(np.argmin(rising))
        norms = timeline.pulse("gradient_norm")[timeline.pulse("backwards") > 0][:count]
        if count < 6 or timeline.several_objectives or not (norms[[0, -1]] > 0).all() or not np.isfinite(norms[[0, -1]]).all():
            return None
        slope, stray = geometric(timeline.loss[:count])
        total = slope * (count - 1)
        carried_over = math.log(norms[-1] / norms[0]) / total if total > 0 else 0.0
        rows = np.flatnonzero(timeline.steps < timeline.loss_steps[count - 1])
        if total < math.log(self.growth) or stray > 0.15 * total or not 0.25 <= carried_over <= 1.25:
            return None
        large = len(rows) > 0 and bool((sizes[rows[-3:]] >= self.large_step).any())
        if not large or self._recovered(timeline, float(timeline.loss[0])):
            return None
        ends = f"from {timeline.loss[0]:.3g} to {timeline.loss[count - 1]:.3g}"
        story = f"the loss grew by a factor {math.exp(slope):.3g} in every step, {ends}"
        rows = rows[sizes[rows] >= self.large_step]
        return _Overshoot(rows, int(timeline.loss_steps[0]), float(timeline.loss[count - 1]), story)

    def _sustained(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        rows = np.flatnonzero(np.isfinite(sizes))
        if len(rows) < self.sustained_frames or timeline.step_count < self.sustained_steps:
            return None
        gone = timeline.several_objectives or timeline.converged or timeline.progressing
        if gone or self._recovered(timeline, float(timeline.loss[0])) or not np.median(sizes[rows]) >= self.large_step:
            return None
        story = f"the loss went from {timeline.first_loss:.3g} to {timeline.last_loss:.3g} in {timeline.step_count} steps"
        rows = rows[sizes[rows] >= self.large_step]
        return _Overshoot(rows, int(timeline.steps[rows[0]]), timeline.last_loss, story, Severity.WARNING)

    def _scrambled(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        """The first steps wiped out what the initialisation had laid out, and the loss has come half the way at most since."""
        baseline = timeline.known_baseline or 0.0
        rows = np.flatnonzero(np.isfinite(sizes))[:5]
        enough = timeline.step_count >= self.scrambled_after and len(rows) == 5 and baseline > 0
        if not enough or timeline.several_objectives or not timeline.last_loss > self.scrambled_loss * baseline:
            return None
        if not np.median(sizes[rows]) >= self.scrambling_step:
            return None
        start, end = timeline.first_loss, timeline.last_loss
        story = (
            f"the loss went from {start:.3g} to {end:.3g} in {timeline.step_count} steps, where a constant has {baseline:.3g}"
        )
        return _Overshoot(rows, int(timeline.steps[rows[0]]), end, story, Severity.WARNING)

    def _rise(self, timeline: Timeline) -> float:
        """The jump that cannot be chance, given how many numbers a loss is the mean of."""
        return self.noisy_rise if timeline.noisy_loss else self.rise

    def _recovered(self, timeline: Timeline, start: float) -> bool:
        """Whether the loss has come down from where it began, and below the best constant prediction's where that is known."""
        last = timeline.last_loss
        baseline = timeline.known_baseline or 0.0
        return bool(last < start - 0.1 * abs(start)) and not (baseline > 0 and last > 0.95 * baseline)

    def _other_cause(self, timeline: Timeline, found: _Overshoot) -> bool:
        """Whether gradients were not cleared, data was not finite, or weight decay alone makes the steps as long."""
        seen = timeline.steps <= found.step + 1
        carried = (timeline.column("weight_gradient.carried")[seen] > 0).any()
        if carried or (timeline.column("input.nonfinite")[seen] > 0).any():
            return True
        decay = max((o.settings.get("weight_decay", 0.0) for o in timeline.info.optimizers), default=0.0)
        return peak_rate(timeline) * decay > self.large_step

    def _hit(self, timeline: Timeline, sizes: npt.NDArray[np.float64], found: _Overshoot) -> Hit:
        row = int(found.rows[0])
        first = int(timeline.steps[row]) if found.raised == 1 else found.step - 1
        size = float(sizes[row]) * found.raised
        rate = float(rates_at(timeline, np.array([first]))[0])
        better = self._better(rate, sizes[found.rows[:5]] * found.raised)
        if found.probe is not None and math.isfinite(found.probe.overshoot):
            rate = found.probe.learning_rate
            better = one_digit(rate * self.good_overshoot / found.probe.overshoot)
        owners = [
            timeline.parameters[s.path].module if s.path in timeline.parameters else s.path for s in timeline.schema.parameters
        ]
        return Hit(
            modules=largest(timeline.update_ratios[row], owners),
            first_step=min(first, found.step),
            last_step=max(first, int(timeline.steps[found.rows[-1]])),
            evidence={
                "update_ratio": plain(size),
                "healthy_update_ratio": self.good_step,
                "learning_rate": plain(rate),
                "learning_rate_raised": plain(found.raised),
                "first_loss": plain(float(timeline.loss[0])),
                "worst_loss": plain(found.loss),
                "onset": found.step,
                **({"overshoot": plain(found.probe.overshoot)} if found.probe else {}),
            },
            message=self._message(first, size, rate, found),
            remedy=_remedy(rate, better, measured=found.probe is not None),
            severity=found.severity,
            strength=5.0 if found.probe else 3.0 if found.at_once or self._cleared(timeline) else 1.0,
        )

    def _cleared(self, timeline: Timeline) -> bool:
        """Whether it was seen that gradients are cleared; with no two steps in a row sampled that stays open."""
        return bool(np.isfinite(timeline.column("weight_gradient.carried")).any())

    def _message(self, first: int, size: float, rate: float, found: _Overshoot) -> str:
        if found.raised > 1:
            risen = f"By step {first} the learning rate had risen {found.raised:.3g} times, to {rate:g}: such a step changes"
        else:
            risen = f"Step {first} changed"
        said = f"{risen} the median weight matrix by {_share(size)}, where 0.1 to 1 % is usual, and {found.story}"
        if found.probe is None:
            return f"{said}."
        times = f"{found.probe.overshoot:.3g} times" if math.isfinite(found.probe.overshoot) else "more than 65,000 times"
        return f"{said}; tried again, step {found.probe.step} is {times} as long as it may be before its batch's loss goes up."

    def _better(self, rate: float, sizes: npt.NDArray[np.float64]) -> float:
        finite = sizes[np.isfinite(sizes)]
        factor = self.good_step / float(np.median(finite)) if len(finite) else 1e-3
        return one_digit(rate * min(factor, self.least_cut))


def _share(size: float) -> str:
    return f"{100 * size:.3g} % of its norm" if size < 10 else f"{size:.3g} times its norm"


def _remedy(rate: float, better: float, *, measured: bool) -> Remedy:
    if not rate > 0 or not better > 0:
        return Remedy("Lower the learning rate to an eighth, and again until the first steps change weights by 1 % at most.")
    return Remedy(
        f"Lower the learning rate from {rate:g} to {better:g}; the value comes from "
        f"{'how far the step overshot' if measured else 'the size of the first steps'}.",
        f'for group in optimizer.param_groups:\n    group["lr"] = {better:g}  # was {rate:g}',
    )
