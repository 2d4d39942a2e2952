"""ReLU units that are never active."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.depth import plain
from gradscope.evidence import named
from gradscope.evidence import works
from gradscope.objective import REGRESSIONS
from gradscope.objective import given
from gradscope.objective import sole_loss
from gradscope.objective import targets
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Layer
from gradscope.timeline import Timeline
from gradscope.trends import median_of

HALF = 16  # units in each of the two columns


@dataclass(frozen=True)
class _Dead:
    module: str
    share: float  # of the sampled units
    first_row: int  # from here on they were never active
    layer: Layer | None
    rarely: bool = False  # active now and then, but in the median step so few for any input


@final
@dataclass(frozen=True)
class DeadUnits(Rule):
    """Units with a ReLU are never active, whatever the input, so they neither contribute nor learn.

    ## What it does

    Of up to 32 units of each layer with a ReLU it counts those that were above zero for no sample in any of the last 50
    sampled steps, of which there must be 20 (200 and 50 where a batch holds fewer than eight samples). It speaks where
    these are more than half. A layer none of whose units was active in the last five sampled steps, and whose weight's
    gradient was exactly zero in all of them, is called dead at once.

    Units that wake now and then may be as good as dead: after 100 steps a layer counts, too, of which in the median of the
    last five sampled steps more than 90 % were active for no sample, where a regression's output varies over the batch by less
    than a tenth of what its targets do.

    ## Why it is bad

    The gradient of a ReLU that is off is zero, so a unit that is off for all inputs never comes back. A layer that is
    dead as a whole cuts everything before it off from the loss.

    ## How it is told apart

    - Sparsity is not death: in healthy trainings 37 to 58 % of all activations are zero, but each unit is active for some
      inputs. Of 26 healthy small trainings the largest share of dead units was 2.3 %; faults showed 50 to 100 %.
    - What a normalisation stands before is judged behind it, at the ReLU itself.
    - Leaky ReLU, GELU and the like have a gradient everywhere; they are not counted.
    - Steps with activations that are not finite are left out.
    - A wide code of which each sample uses little is sparse, and its output varies as the targets do: by 0.9 of it in a
      sparse autoencoder, where a penalty 200 times as strong left 0.02 after 80 steps, 0.001 after 240. The whole loss had come
      down from 21 to 1 all the same, as it held the penalty; such a fall is not taken for progress.
    - It is a symptom: the usual cause is one step that was far too long, an input that is not normalised, or biases that
      start far below zero.

    ## What to do

    Remove the cause, then initialise the layer anew, as dead units do not recover; or use LeakyReLU, whose gradient is
    never zero.

    ## Known false alarms

    Large pretrained models with ReLU have many units for rare inputs; where training works, a share of dead units is no
    more than an aside. So it is where several models or optimizers play against one another: there no loss says whether
    training works, and the critic of a WGAN whose weights are clamped at 0.1 had more than half of a layer dead while its
    generator learned. A layer that is dead as a whole is a warning all the same.

    Of a layer of four units, as in a squeeze-and-excitation block, most may be dead by chance: the rule spoke in one of eight
    trainings of such a net, and all learned. Layers of fewer than eight units count only where training stands still.

    A share of dead units says nothing of the outcome before training has had its chance: a net on unscaled brightness had 56 %
    of a layer dead after 60 steps at a constant prediction's loss, and came to 0.68 of 1.61 in 300. In the first hundred steps
    only a layer that is dead as a whole is more than an aside.

    ## References

    L. Lu, Y. Shin, Y. Su, G. Karniadakis, "Dying ReLU and Initialization", 2019. G. Sokar and others, "The Dormant Neuron
    Phenomenon in Deep Reinforcement Learning", 2023.
    """

    family: ClassVar[str] = "activations"
    kind: ClassVar[str] = "symptom"
    needs: ClassVar[tuple[str, ...]] = ("activation.active_low", "activation.active_high")

    most_share: float = 0.5  # of the sampled units
    window: int = 50  # sampled steps that are looked back on
    least_frames: int = 20  # sampled steps in the window
    small_batch: int = 8  # samples, below which a step says little about a unit
    small_window: int = 200  # the window, for small batches
    small_least_frames: int = 50  # sampled steps in it
    least_units: int = 8  # of a layer; narrower ones are judged only where training stands still
    patience: int = 100  # steps after which it does, if it has not worked by then
    whole_frames: int = 5  # for a layer that is dead altogether
    most_idle: float = 0.9  # of the sampled units in the median step, where the output hardly varies over the batch
    most_output: float = 0.1  # of the targets' spread, under which a regression's output says nothing of its input

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        low, high = (self._bits(timeline, name) for name in ("active_low", "active_high"))
        if len(low) < self.whole_frames:
            return
        sites = _relu_sites(timeline)
        dead = [found for site, layer in sites.items() if (found := self._at(timeline, site, layer, low, high))]
        if dead:
            yield self._hit(timeline, dead)

    def _bits(self, timeline: Timeline, name: str) -> npt.NDArray[np.int32]:
        """The masks as integers, -1 (all active) where they were not captured or the activation is not finite."""
        values = timeline.column(f"activation.{name}")
        unknown = ~((values >= 0) & (values < 2**HALF)) | (timeline.column("activation.nonfinite") > 0)
        return np.where(
            unknown,
            -1,
            values,
        ).astype(np.int32)

    def _at(
        self, timeline: Timeline, site: int, layer: Layer | None, low: npt.NDArray[np.int32], high: npt.NDArray[np.int32]
    ) -> _Dead | None:
        known = np.flatnonzero(low[:, site] >= 0)
        if len(known) < self.whole_frames:
            return None
        module = timeline.schema.modules[site].path
        if layer is not None and layer.weight.shape[0] < self.least_units and not self._stands_still(timeline):
            return None
        if layer is not None and self._wholly(timeline, layer, known[-self.whole_frames :], site, low, high):
            active = np.flatnonzero((low[known, site] | high[known, site]) > 0)
            return _Dead(module, 1.0, int(known[active[-1] + 1] if len(active) else known[0]), layer)
        window, least = self._looked_back(timeline)
        share = 1 - _active(low[known[-window:], site], high[known[-window:], site]) / (2 * HALF)
        if len(known) >= least and share > self.most_share:
            return _Dead(module, share, self._since(known, site, low, high), layer)
        if window != self.window or timeline.step_count < self.patience or not self._silent(timeline):
            return None
        recent = known[-self.whole_frames :]
        idle = 1 - median_of((_bits_set(low[recent, site]) + _bits_set(high[recent, site])) / (2 * HALF))
        return _Dead(module, idle, int(recent[0]), layer, rarely=True) if idle > self.most_idle else None

    def _stands_still(self, timeline: Timeline) -> bool:
        """Whether a hundred steps have led nowhere: of a few units most may be dead by chance, and the rest will do."""
        return len(timeline.loss) >= self.patience and not works(timeline)

    def _silent(self, timeline: Timeline) -> bool:
        """Whether a regression's output hardly varies over the batch: a loss that came down was another term's, or a bias's."""
        loss = sole_loss(timeline)
        known = targets(timeline) if loss is not None and loss.kind in REGRESSIONS else None
        outputs = given(timeline, "input_signal")
        outputs = outputs[np.isfinite(outputs)][-self.whole_frames :]
        return known is not None and len(outputs) == self.whole_frames and bool((outputs < self.most_output * known.std).all())

    def _wholly(
        self,
        timeline: Timeline,
        layer: Layer,
        rows: npt.NDArray[np.intp],
        site: int,
        low: npt.NDArray[np.int32],
        high: npt.NDArray[np.int32],
    ) -> bool:
        still = timeline.column("weight_gradient.norm")[rows, layer.parameter] == 0
        return bool(still.all()) and not (low[rows, site] | high[rows, site]).any()

    def _looked_back(self, timeline: Timeline) -> tuple[int, int]:
        losses = timeline.info.wiring.losses if timeline.info.wiring else ()
        shapes = [loss.input_shape for loss in losses if loss.input_shape]
        small = bool(shapes) and shapes[0][0] < self.small_batch
        return (self.small_window, self.small_least_frames) if small else (self.window, self.least_frames)

    def _since(self, known: npt.NDArray[np.intp], site: int, low: npt.NDArray[np.int32], high: npt.NDArray[np.int32]) -> int:
        """The first row from which on more than the allowed share was never active."""
        later = [np.bitwise_or.accumulate(bits[known[::-1], site]) for bits in (low, high)]
        counts = _bits_set(later[0]) + _bits_set(later[1])
        enough = np.flatnonzero(1 - counts / (2 * HALF) > self.most_share)
        return int(known[::-1][enough[-1]])

    def _hit(self, timeline: Timeline, dead: list[_Dead]) -> Hit:
        whole = [found for found in dead if found.share == 1.0 and not found.rarely]
        names = tuple(dict.fromkeys(found.module for found in dead))
        learns = works(timeline) and not self._silent(timeline)
        works_all_the_same = learns or timeline.several_objectives  # where several play, no loss tells
        aside = works_all_the_same or timeline.step_count < self.patience  # so early the rest may yet do
        severity = Severity.INFO if aside else Severity.WARNING
        if whole:
            severity = Severity.WARNING if works_all_the_same else Severity.CRITICAL
        worst = max(dead, key=lambda found: found.share)
        first = int(timeline.steps[min(found.first_row for found in dead)])
        return Hit(
            modules=names,
            first_step=first,
            last_step=int(timeline.steps[-1]),
            evidence={"share": plain(worst.share), "layers": len(names), "wholly_dead": [found.module for found in whole]},
            message=(_what(worst, first) + (f"; so it is in {len(names)} layers: {named(names)}." if len(names) > 1 else ".")),
            remedy=_remedy(dead),
            severity=severity,
            strength=1.0,
        )


def _what(worst: _Dead, first: int) -> str:
    if worst.rarely:
        return (
            f"In the median step since step {first} {100 * worst.share:.0f} % of the units of {worst.module} are active for no "
            "input of the batch, and the output hardly varies over it"
        )
    return (
        f"{100 * worst.share:.0f} % of the units of {worst.module} have not been active for any input since step {first}, "
        "where 2 % is the most that healthy trainings show"
    )


def _relu_sites(timeline: Timeline) -> dict[int, Layer | None]:
    """Sites whose sign decides whether a ReLU passes: layers that one follows, and ReLUs that follow no such layer."""
    found: dict[int, Layer | None] = {x.site: x for x in timeline.layers if x.module.activation == "relu"}
    for index, site in enumerate(timeline.schema.modules):
        module = timeline.modules.get(site.path)
        if module and module.type == "ReLU" and module.role == "activation" and found.get(index - 1) is None:
            found[index] = None
    return found


def _active(low: npt.NDArray[np.int32], high: npt.NDArray[np.int32]) -> int:
    """Units that were active at least once."""
    return sum(int(np.bitwise_or.reduce(bits)).bit_count() for bits in (low, high))


def _bits_set(masks: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """How many bits are set in each of these masks of 16; [masks]."""
    pairs = masks.astype("<u2").view(np.uint8).reshape(-1, 2)
    return np.asarray(np.unpackbits(pairs, axis=1).sum(axis=1), dtype=np.int64)


def _remedy(dead: list[_Dead]) -> Remedy:
    layers = [found.module for found in dead if found.layer is not None]
    if not layers:
        return Remedy(
            "Use torch.nn.LeakyReLU(0.01) in place of torch.nn.ReLU there, or initialise the layers before anew.", None
        )
    return Remedy(
        f"Remove what killed them, then initialise {named(layers)} anew: dead units do not recover.",
        f"for name in {layers!r}:\n    layer = model.get_submodule(name)\n"
        '    torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")\n    torch.nn.init.zeros_(layer.bias)',
    )
