"""Batches whose labels are more alike than chance would have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import works
from gradscope.objective import given
from gradscope.objective import label_mixing
from gradscope.objective import sole_loss
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline


@final
@dataclass(frozen=True)
class UnshuffledData(Rule):
    """The data comes in order, so that each batch holds few of the classes that there are.

    ## What it does

    Compares the entropy of each sampled batch's class labels with that of all labels seen so far: what shuffled batches of
    that size would have at the least, be the classes as unevenly frequent as the total allows. It speaks where the mean over
    20 sampled steps or more is under half of that.

    ## Why it is bad

    A batch of one class pulls the model to that class, whatever the input; the next class undoes it. The loss falls within
    each class and jumps at its end, and what is left is a model of the last one. The numbers look good just before a jump, so
    that the loss does not tell.

    ## How it is told apart

    - Steps that are too long overshoot the batch that they were made from; here every step lowers the loss of its own batch
      and raises that of the next class.
    - Few classes, small batches and one frequent class make shuffled batches uniform, too: where less than 0.3 nats are to be
      expected nothing is said.
    - Labels of one picture's pixels are alike: of targets with several dimensions only the samples count.

    Measured on shuffled digits, batches of 64 have 0.97 of the entropy of all labels, and batches of 4 as much as four labels
    can have; sorted ones have 0.

    ## What to do

    Shuffle, anew in each epoch: `shuffle=True`, or a shuffle buffer of many batches where the data is a stream.

    ## Known false alarms

    Batches that are grouped on purpose: class-incremental learning, batches of a few identities in metric learning with a
    classifier, whole episodes in imitation learning.

    ## References

    Y. Bengio, "Practical recommendations for gradient-based training of deep architectures", 2012. L. Bottou,
    "Curiously fast convergence of some stochastic gradient descent algorithms", 2009.
    """

    family: ClassVar[str] = "data"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ("loss.label_entropy", "fact.loss")
    least_steps: ClassVar[int] = 20
    explains: ClassVar[tuple[str, ...]] = (
        "oscillating-loss", "gradient-spikes", "loss-divergence", "lr-too-high", "loss-plateau", "exploding-gradients",
        "outlier-batch", "dead-units", "collapsed-output", "adam-second-moment-lag", "output-logit-drift", "activation-growth",
        "labels-unrelated", "saturated-units",
    )  # fmt: skip

    least_frames: int = 20  # sampled steps with labels
    most_mixing: float = 0.5  # of the entropy that shuffled batches have at the least
    sure_mixing: float = 0.25  # under which a loss that has come down says nothing

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        loss = sole_loss(timeline)
        known = np.flatnonzero(np.isfinite(given(timeline, "label_entropy")))
        if loss is None or len(known) < self.least_frames:
            return
        mixing = label_mixing(timeline, loss)
        if mixing < self.most_mixing:
            yield self._hit(timeline, mixing, known)

    def _hit(self, timeline: Timeline, mixing: float, known: np.ndarray) -> Hit:
        batch = float(given(timeline, "label_entropy")[known].mean())
        seen = float(given(timeline, "label_entropy_seen")[known[-1]])
        return Hit(
            modules=(),
            first_step=int(timeline.steps[known[0]]),
            last_step=int(timeline.steps[known[-1]]),
            evidence={
                "batch_entropy": plain(batch),
                "entropy_of_all": plain(seen),
                "classes_in_a_batch": plain(float(np.exp(batch))),
                "share_of_shuffled": plain(mixing),
                "steps": len(known),
            },
            message=(
                f"The labels of a batch have an entropy of {batch:.3g} nats, as if they were {np.exp(batch):.2g} classes, and "
                f"those of all {len(known)} sampled batches together {seen:.3g} nats, as if they were {np.exp(seen):.2g}."
            ),
            remedy=Remedy(
                "Shuffle the data, anew in each epoch.",
                "loader = torch.utils.data.DataLoader(loader.dataset, batch_size=loader.batch_size, shuffle=True)",
            ),
            severity=self._severity(timeline, mixing),
            strength=5.0,
        )

    def _severity(self, timeline: Timeline, mixing: float) -> Severity:
        """Critical where training does not work; where it seems to, its loss counts only if batches are mixed a little."""
        if not works(timeline) and (timeline.onset is not None or not timeline.progressing):
            return Severity.CRITICAL
        return Severity.INFO if works(timeline) and mixing > self.sure_mixing else Severity.WARNING
