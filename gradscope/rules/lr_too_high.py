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

from gradscope import middles
from gradscope.aftermath import accident
from gradscope.aftermath import begins_amid
from gradscope.aftermath import changed_by_hand
from gradscope.aftermath import constant_loss
from gradscope.aftermath import finite_steps
from gradscope.aftermath import gravity_of
from gradscope.aftermath import knows_of_clearing
from gradscope.aftermath import leads_nowhere
from gradscope.aftermath import long_for_another_reason
from gradscope.aftermath import passing
from gradscope.aftermath import refuted
from gradscope.aftermath import wiping
from gradscope.blowup import LongSteps
from gradscope.blowup import compounded
from gradscope.blowup import grew
from gradscope.blowup import grows_geometrically
from gradscope.blowup import lost_at
from gradscope.blowup import reaches
from gradscope.blowup import reckoned_before
from gradscope.blowup import recovered
from gradscope.blowup import risen_before
from gradscope.blowup import said_of
from gradscope.blowup import sampled_before
from gradscope.blowup import scale_is_off
from gradscope.blowup import source_of
from gradscope.blowup import worst_loss
from gradscope.depth import begins_tiny
from gradscope.depth import largest
from gradscope.depth import one_digit
from gradscope.depth import plain
from gradscope.evidence import overshoot
from gradscope.evidence import rates_at
from gradscope.evidence import slower
from gradscope.evidence import stalled
from gradscope.evidence import works
from gradscope.records import Hit
from gradscope.records import Severity
from gradscope.records import StepQuality
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@dataclass(frozen=True)
class _Overshoot:
    """Where the steps were too long, and what came of it."""

    long: LongSteps
    step: int  # where the loss shows it
    loss: float  # the worst finite loss from there on, or the last one
    story: str  # what the loss did
    severity: Severity = Severity.CRITICAL
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
      a warning until the training has converged, and then an aside; so it is where the steps since are ordinary, until
      training works);
    - training blows up later, and one of the last three steps before was as large: of those that were sampled, or, for SGD, as
      the norms of gradients and the learning rates of all steps tell from the last that was; or the learning rate had risen
      to three times at once within 30 steps before, and the loss climbed from then on;
    - training worked, the loss falling below half of what the best constant prediction has (where that is not known, of its
      start), then grew above three times its start with such steps before, and is back at a constant prediction's at best:
      what was learned is lost, and what such a model does later is not looked at;
    - loss and gradient norm grow geometrically from the start, by ten times or more in all, and steps grow along;
    - for 50 steps or more the typical step is as large, and the loss does not come down;
    - five steps in a row of the first thirty moved the median matrix by 15 % of its norm or more, by gradients no larger than
      before, and after 100 steps the loss is still above half of what the best constant prediction has;
    - a suspicious one of the first ten steps was tried again on its own batch, at a part 1/O of it, O at least 1.3, the loss is
      above where it began already, and at its end above where training began: the step overshot, and without any one of the
      faults of scale that show it does so still. A short one is an aside where the next losses came down all the same, or
      halved after an O below 2. A later step counts from 4 on, where training stands still above 0.8 of a constant's loss.

    In plain nets of more than four matrices, without residual branches or normalisation, a step also counts as that large
    where its ratios come to as much over all layers, Π (1 + r), as a tenth does over four.

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
      little. A loop of steps by hand whose parameters hold no gradient, as with `torch.func.grad`, has none to clear.
    - Where the loss before any update is more than ten times that of a constant prediction, scale is at fault, whatever the
      learning rate: a recurrence whose state grows by 1.2 a step began at 7,700 times. This rule is silent then, unless the
      first step was measured to overshoot by more than that explains: a regression at a rate of 1.5 began 14 times too high,
      by its draw of weights, and overshot 94 times.
    - An outlier or a NaN in the data makes one large step; the steps before it were of ordinary size. Where loss or gradient
      norm rose over several steps, no batch did it, and the step of the blow-up itself counts.
    - Weights that begin with a hundredth of the variance that keeps the scale, in a net without normalisation, are small, and
      steps large beside them: there too the length of steps alone proves nothing (`init-too-small`).
    - Weights that something clamps or rescales after each step are small by that, and steps large beside them: where the
      change outside is a third of the step or more, the length of steps alone proves nothing.
    - Large steps alone are no fault: a healthy Adagrad embedding shows 0.35 and full-batch training at the edge of
      stability 0.11, both with a falling loss. Steps that weight decay alone makes large are not counted.
    - Where the loss is the mean of fewer than eight numbers it jumps by chance: there it takes a hundredfold rise.
    - A record that begins after the start with steps as long as the weights shows what came of a blow-up, not its cause.

    On 26 healthy small trainings the median update ratio of the first five steps was at most 0.11, the loss at most 1.6 times
    its start; with rates that were too high 0.14 to 100,000, and 1.3 to 1e14 times. Such a run need not fail outright: it came
    to 0.15 to 1.95 in 250 steps, where a good rate comes to 0.002. On 78 healthy trainings O at step 0 was 0.43 at most.
    O is proportional to the rate. Digits as raw values of 0 to 16 had 9.9, and 0.15 once divided by their root mean square.

    Of 264 healthy trainings (one seed) eight had five early steps of 15 to 45 % (full-batch regression, a sparse embedding,
    Adagrad, L-BFGS, …), and the five whose constant loss is known came to a sixth of it at most. Faults with such steps stood
    at 0.62 and more: a transformer with AdamW at 0.03 began with 20 % and stood there after 120 steps, its twin at 0.002
    with 1.7 % and at 0.45; RAdam, whose first five steps are not adapted, moved a mixer by 24 and 29 % after them and
    stood at 0.80 and 0.86; a one-cycle rate came to 92 % within ten steps. One batch thousands of times too large made
    steps of 49 and 85 %, but by gradients as many times larger.

    RMSprop's first step is ten times as long as those to come. Below an O of ten it is an aside where nothing else goes wrong,
    and until three losses have followed: it took recurrent nets from 2 to between 7 and 85 (nine seeds, O of 1.48 to 5.9),
    which were back at their start two steps later, and half the rate did no better (0.11 to 0.37, not 0.10 to 0.35). Rates
    that were too high had 24 and 87. At 0.003 five steps moved an MLP by 39 to 15 %, which is 4 % once settled, and 600 steps
    came to 0.08 to 0.31 (three seeds; at 0.001 to 0.16 to 0.51): such steps count at the length of those to come.
    A first step of 1 % with O of 1.35 led to ever lower losses; one of 1.4 % with 2.1 to 20, 0.8 and 1.6, from 6.9.
    Adam's second step in an LSTM, of 3.9 %, had 1.48, and the losses went 0.89, 0.92, 0.62, 0.68. So it takes three losses to
    be more than an aside, below an O of two, and of a short step below four. After a leap momentum coasts on: 16 % fell to 3 %
    over 15 steps, by 0.9 each, while the loss was back. Its own steps are judged, and till then whether they shrink.

    Twelve faults of the step's size had O of 1.3 at least. Two healthy trainings on raw data lay at 1.14, with a first step
    from 8.3 to 12.3, and at 1.76, with a rise that stayed below the start: hence what the overshoot alone has to come to.

    Momentum 0.95 at a rate of 0.3 made an MLP of three layers learn its task within 15 steps, to a twentieth of a constant
    prediction's loss. Then steps grew from 4 % to 10 and 20 % of the norm and the loss to 5,000 and more, and in the end all
    units of a layer were dead (three seeds). Steps on the way, tried again on their own batch, had O between 0.3 and 1.1: each
    alone was about right, and it is the growth that is the proof, not the probe.

    He-initialised plain nets of 14 layers with momentum 0.9 (three seeds each) blew up at rates of 0.1 and 0.2, after 28 to
    100 steps. In the steps before, the median matrix had moved by 2.4 to 4.8 %, which comes to 51 to 590 % over all layers; at
    0.02 it came to 6 %, and none blew up. An LSTM under Adam at 0.3 overshot in one of its first two steps (O of 1.35 to 1.5,
    steps of 66 % and more) and came to 2.1 to 2.2, where 0.005 comes to less: a warning until it has converged.

    ## What to do

    Where the overshoot was measured, lower the learning rate to lr / (4 O), which brings it to a quarter. Else lower it so that
    the first steps move the median matrix by a hundredth of its norm, and to an eighth at least; or warm it up over the first
    hundreds of steps. LBFGS finds the length of its steps by a line search.

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
    steps_before: int = 3  # sampled ones before a blow-up that are looked at
    most_start: float = 10.0  # times the loss of the best constant prediction, above which the scale is off from the start
    sustained_steps: int = 50  # of large steps whose loss does not come down
    sustained_frames: int = 10  # sampled ones among them
    scrambling_step: float = 0.15  # update ratio of five early steps, in the median
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
        blind = len(losses) < 2 or not len(timeline.frames) or not math.isfinite(losses[0])
        if blind or scale_is_off(timeline, self.most_start):
            return
        sizes = finite_steps(timeline)
        if begins_amid(timeline, sizes):
            return
        found = self._early(timeline, sizes) or self._lost(timeline, sizes) or self._late(timeline, sizes)
        found = found or self._geometric(timeline, sizes)
        found = found if found and not refuted(timeline, found.step, self.right_step) else None
        if not changed_by_hand(timeline) and not begins_tiny(timeline):
            found = found or self._sustained(timeline, sizes) or self._scrambled(timeline, sizes)
        found = self._measured(timeline, sizes, found)
        if found and not long_for_another_reason(timeline, found.step, self.large_step):
            yield self._hit(timeline, found)

    def _measured(self, timeline: Timeline, sizes: npt.NDArray[np.float64], found: _Overshoot | None) -> _Overshoot | None:
        """What was found, with the step that was measured to overshoot for no other reason; or that step alone."""
        probe = overshoot(timeline)
        if probe is None or any(without < 1 for without in probe.without.values()):
            return found
        rows = np.flatnonzero(timeline.steps == probe.step)
        if found is not None:
            near = abs(probe.step - found.step) <= self.early_steps or probe.step in found.long.steps
            if near and found.step <= self.early_steps and passing(timeline, sizes, probe):
                return replace(found, probe=probe, severity=Severity.INFO)
            return replace(found, probe=probe) if near else found
        late = probe.step > self.early_steps
        if not len(rows) or timeline.several_objectives or (late and not leads_nowhere(timeline, sizes[rows[0]], probe)):
            return None  # near the end of a training that works, a step may go up on its own batch
        if probe.overshoot < self.overshoot_alone or (probe.loss_after <= timeline.first_loss and not late):
            return None  # just past the valley, or not higher than where training began: it goes on
        story = f"the loss of that very batch went from {probe.loss_before:.3g} to {probe.loss_after:.3g}"
        far = bool((sizes[rows] >= self.large_step).any()) and not timeline.converged
        grave = Severity.WARNING if late else gravity_of(timeline, sizes, probe, far=far)
        return _Overshoot(LongSteps.at(timeline, sizes, rows), probe.step + 1, probe.loss_after, story, grave, probe=probe)

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
        step, story = int(steps[place]), f"the loss jumped from {start:.3g} to {{worst}}"
        far = reaches(sizes, compounded(timeline), self.large_step) & (timeline.steps < step)
        long = LongSteps.at(timeline, sizes, far)
        found = self._overshoot(timeline, long if len(long.steps) else None, step, story)
        return found and replace(found, severity=self._aftermath(timeline, sizes, step, start), at_once=step <= 2)

    def _aftermath(self, timeline: Timeline, sizes: npt.NDArray[np.float64], step: int, start: float) -> Severity:
        """Critical where the loss has not come down since, a warning where it has and training has yet to converge.

        Where the steps since are ordinary, that one was an accident: a warning until training works, and then an aside.
        """
        lone = accident(timeline, sizes, step)
        if not recovered(timeline, start):
            return (Severity.CRITICAL if stalled(timeline) else Severity.WARNING) if lone else Severity.CRITICAL
        return Severity.INFO if timeline.converged or (lone and works(timeline)) else Severity.WARNING

    def _late(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        onset = timeline.onset
        if onset is None or (self._rise(timeline) > self.rise and np.isfinite(timeline.loss).all()):
            return None
        return self._blown_up(timeline, sizes, onset, f"training blew up at step {onset}, to a loss of {{worst}}")

    def _lost(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        """A training that worked until the loss grew far above its start, and that has come back to a constant's loss at best.

        Where that is not known, the loss at the start stands for it. What such a model does later, up to NaN, is no onset.
        """
        alone = not timeline.several_objectives and not timeline.noisy_loss
        start, level = float(timeline.loss[0]), timeline.known_baseline or timeline.first_loss
        if not alone or not level > 0 or timeline.last_loss <= self.dead_loss * level:
            return None
        step = lost_at(timeline, worked=self.worked_loss * level, ceiling=start + self.rise * max(abs(start), level))
        if step is None or (timeline.onset is not None and timeline.onset <= step):
            return None
        back = f", and is back at {timeline.last_loss:.3g}" if math.isfinite(timeline.last_loss) else ""
        story = f"training blew up at step {step}, to a loss of {{worst}}{back}"
        return self._blown_up(timeline, sizes, step, story)

    def _blown_up(self, timeline: Timeline, sizes: npt.NDArray[np.float64], step: int, story: str) -> _Overshoot | None:
        long = (
            sampled_before(timeline, sizes, step, least=self.large_step, most=self.steps_before)
            or reckoned_before(timeline, step, least=self.large_step, most=self.steps_before)
            or risen_before(timeline, sizes, step)
        )
        return self._overshoot(timeline, long, step, story)

    def _overshoot(self, timeline: Timeline, long: LongSteps | None, step: int, story: str) -> _Overshoot | None:
        if long is None or not (grew(timeline, step, self.growth) or long.sizes.max() >= self.sudden_step):
            return None
        worst = worst_loss(timeline, step)
        return _Overshoot(long, step, worst, story.format(worst=f"{worst:.3g}" if math.isfinite(worst) else "NaN"))

    def _geometric(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        grown = grows_geometrically(timeline, self.growth)
        if grown is None or recovered(timeline, float(timeline.loss[0])):
            return None
        last = float(timeline.loss[grown.count - 1])
        rows = np.flatnonzero(timeline.steps < timeline.loss_steps[grown.count - 1])
        if not (sizes[rows[-3:]] >= self.large_step).any():
            return None
        story = f"the loss grew by a factor {grown.factor:.3g} in every step, from {timeline.loss[0]:.3g} to {last:.3g}"
        rows = rows[sizes[rows] >= self.large_step]
        return _Overshoot(LongSteps.at(timeline, sizes, rows), int(timeline.loss_steps[0]), last, story)

    def _sustained(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        rows = np.flatnonzero(np.isfinite(sizes))
        if len(rows) < self.sustained_frames or timeline.step_count < self.sustained_steps:
            return None
        gone = timeline.several_objectives or timeline.converged or timeline.progressing
        if gone or recovered(timeline, float(timeline.loss[0])) or not middles.median(sizes[rows]) >= self.large_step:
            return None
        story = f"the loss went from {timeline.first_loss:.3g} to {timeline.last_loss:.3g} in {timeline.step_count} steps"
        rows = rows[sizes[rows] >= self.large_step]
        long = LongSteps.at(timeline, sizes, rows)
        return _Overshoot(long, int(long.steps[0]), timeline.last_loss, story, Severity.WARNING)

    def _scrambled(self, timeline: Timeline, sizes: npt.NDArray[np.float64]) -> _Overshoot | None:
        """Early steps wiped out what the initialisation had laid out, and the loss has come half the way at most since."""
        baseline = constant_loss(timeline)
        enough = timeline.step_count >= self.scrambled_after and baseline > 0
        if not enough or timeline.several_objectives or not timeline.last_loss > self.scrambled_loss * baseline:
            return None
        rows = wiping(timeline, sizes, self.scrambling_step)
        if not len(rows):
            return None
        start, end, steps = timeline.first_loss, timeline.last_loss, timeline.step_count
        story = f"the loss went from {start:.3g} to {end:.3g} in {steps} steps, where a constant has {baseline:.3g}"
        long = LongSteps.at(timeline, sizes, rows)
        return _Overshoot(long, int(long.steps[0]), end, story, Severity.WARNING)

    def _rise(self, timeline: Timeline) -> float:
        """The jump that cannot be chance, given how many numbers a loss is the mean of."""
        return self.noisy_rise if timeline.noisy_loss else self.rise

    def _hit(self, timeline: Timeline, found: _Overshoot) -> Hit:
        long, probe = found.long, found.probe
        first, size = int(long.steps[0]), float(long.sizes[0])
        row = max(int(np.searchsorted(timeline.steps, first, side="right")) - 1, 0)
        rate = float(rates_at(timeline, np.array([first]))[0])
        better = long.borne or self._better(rate, long.sizes[:5])
        measured = probe is not None and math.isfinite(probe.overshoot) and probe.step <= found.step and not long.borne
        if probe is not None and measured:  # one after the blow-up would ask for too much
            rate = probe.learning_rate
            better = one_digit(rate * self.good_overshoot / probe.overshoot)
        owners = [
            timeline.parameters[s.path].module if s.path in timeline.parameters else s.path for s in timeline.schema.parameters
        ]
        return Hit(
            modules=largest(timeline.update_ratios[row], owners),
            first_step=min(first, found.step),
            last_step=int(long.steps[-1]),
            evidence={
                "update_ratio": plain(size),
                "healthy_update_ratio": self.good_step,
                "learning_rate": plain(rate),
                "learning_rate_raised": plain(long.raised),
                "first_loss": plain(float(timeline.loss[0])),
                "worst_loss": plain(found.loss),
                "onset": found.step,
                **({"overshoot": plain(probe.overshoot)} if probe else {}),
            },
            message=self._message(timeline, rate, found),
            remedy=slower(timeline, rate, better, source_of(long, measured=measured)),
            severity=found.severity,
            strength=5.0 if probe else 3.0 if found.at_once or knows_of_clearing(timeline) else 1.0,
        )

    def _message(self, timeline: Timeline, rate: float, found: _Overshoot) -> str:
        said = f"{said_of(timeline, found.long, rate)}, and {found.story}"
        if found.probe is None:
            return f"{said}."
        times = f"{found.probe.overshoot:.3g} times" if math.isfinite(found.probe.overshoot) else "more than 65,000 times"
        return f"{said}; tried again, step {found.probe.step} is {times} as long as it may be before its batch's loss goes up."

    def _better(self, rate: float, sizes: npt.NDArray[np.float64]) -> float:
        finite = sizes[np.isfinite(sizes)]
        factor = self.good_step / middles.median(finite) if len(finite) else 1e-3
        return one_digit(rate * min(factor, self.least_cut))
