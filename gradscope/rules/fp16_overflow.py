"""Numbers that are too large for float16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar
from typing import final

import numpy as np

from gradscope.depth import plain
from gradscope.evidence import gravity
from gradscope.evidence import named
from gradscope.evidence import worse_since
from gradscope.records import Hit
from gradscope.records import Remedy
from gradscope.records import Severity
from gradscope.rule import Rule
from gradscope.timeline import Timeline

LARGEST = 65504.0  # finite number of float16

# Operations whose result is infinite only by its size, where all that goes in is finite.
_GROWING = frozenset(
    f"{name}Backward"
    for name in "Exp Exp2 Expm1 Pow Mul Add Sub Sum Cumsum Prod Mm Addmm Bmm Baddbmm Mv Linear Convolution Cosh Sinh".split()
)


@dataclass(frozen=True)
class _Overflow:
    """What overflows, since when, and what shows it."""

    modules: tuple[str, ...]
    first: int
    last: int
    evidence: dict[str, float | int | str | None]
    message: str
    lost: bool  # it is infinite already, or steps are lost to it, or what was learned is


@final
@dataclass(frozen=True)
class Fp16Overflow(Rule):
    """Activations or gradients outgrow float16, whose largest number is 65,504.

    ## What it does

    It speaks in four cases. The loss scale of a GradScaler comes down by a factor of eight or more within 100 steps, after
    step 100 (each halving stands for a step that was thrown away), or falls below 1. Or a module whose output is in float16
    puts out numbers above 30,000, or infinite ones. Or the run's first value that is not finite came out of an operation in
    float16 that makes such values of finite ones by their size alone, as `exp`, a power and a product do. Or 80 % and more of
    what a module puts out in float16 is exactly zero, a quarter more than of what went in, whose squares or their sum exceed
    65,504: divided by such a norm, which is infinite, everything is zero, and nothing that is infinite is left to see.

    ## Why it is bad

    One infinite activation makes the loss infinite or NaN. A scaler throws away each step whose gradients are not finite,
    and lowers its scale until small gradients are lost instead.

    ## How it is told apart

    - While a scaler looks for its scale it throws away up to sixteen steps: the first 100 steps are not judged.
    - It doubles its scale now and then to see whether it can: halvings count beyond the doublings between them.
    - A division, a root and a logarithm may be infinite whatever the format: there `nonfinite-origin` speaks alone.
    - Activation functions and dropout put out zeros of their own: they are not taken for a norm that overflowed.
    - Outputs in bfloat16 and float32 reach 3e38. What is infinite there is `nonfinite-origin`.
    - Where numbers grow because steps are too long, weights too large or inputs not normalised, those explain this
      finding: with a scale below 1 the gradients themselves have blown up.

    A norm by hand in float16 put out 49 to 53 % zeros, as many as the ReLU in front of it, up to the step at which the
    inputs grew thirtyfold, and 91 to 100 % from there on; the loss went from 0.06 to 2.2, where float32 stays at 0.02. A loss
    that got worse with it, by half and by a tenth of the loss at the start, and that has not come back, makes it a warning,
    though it may still lie below a constant prediction's.

    ## What to do

    Use bfloat16, which has the range of float32 and needs no scaler; or keep in float32 what overflows: the loss, a softmax,
    a norm, a product over many features.

    ## Known false alarms

    A model that has large outputs by design, and near 65,504 never any: while training works and nothing is infinite the
    finding is for information.

    ## References

    P. Micikevicius et al., "Mixed Precision Training", 2018. S. Zhang et al., "OPT: Open Pre-trained Transformer Language
    Models", 2022, section 2.5: a loss scale that fell to 0 announced each crash.
    """

    family: ClassVar[str] = "numerics"
    kind: ClassVar[str] = "cause"
    needs: ClassVar[tuple[str, ...]] = ()
    explains: ClassVar[tuple[str, ...]] = (
        "nonfinite-origin", "nonfinite-gradients", "nonfinite-loss", "weights-not-moving", "gradient-spikes",
        "loss-divergence", "loss-plateau", "bf16-stalled-updates", "collapsed-output",
    )  # fmt: skip

    halvings: int = 3  # beyond doublings, within the window
    window: int = 100  # steps
    search: int = 100  # first steps, in which the scaler looks for its scale
    least_scale: float = 1.0  # below which the gradients themselves have blown up
    largest: float = 3e4  # activation
    least_base: float = 40.0  # of a power that overflows; its cube is 64,000
    zeros: float = 0.8  # share of a module's output
    more_zeros: float = 0.25  # than in what goes in
    harm_steps: int = 20  # before and after, whose losses are compared
    harm: float = 1.5  # times the median loss before
    least_harm: float = 0.1  # of the loss at the start, by which it is higher

    def obstacle(self, timeline: Timeline) -> str | None:
        if _half_sites(timeline) or np.isfinite(timeline.pulse("loss_scale")).any():
            return Rule.obstacle(self, timeline)
        return "neither a GradScaler nor a module whose output is in float16 was seen"

    def check(self, timeline: Timeline) -> Iterator[Hit]:
        found = (
            self._by_scale(timeline)
            or self._by_activation(timeline)
            or self._by_operation(timeline)
            or self._by_zeros(timeline)
        )
        if found is not None:
            yield self._hit(timeline, found)

    def _by_scale(self, timeline: Timeline) -> _Overflow | None:
        scales, steps = timeline.pulse("loss_scale"), timeline.pulse("step")
        known = np.isfinite(scales) & (scales > 0)
        scales, steps = scales[known], steps[known].astype(np.int64)
        judged = steps >= self.search
        logs = np.log2(scales[judged])
        low = np.flatnonzero((scales < self.least_scale) & (np.maximum.accumulate(scales) >= self.least_scale))
        fallen = np.flatnonzero(_fall(logs, self.window) >= self.halvings)
        if not len(low) and not len(fallen):
            return None
        at = int(low[0]) if len(low) else int(np.flatnonzero(judged)[fallen[0]])
        recent = scales[max(at - self.window, 0) : at + 1]
        before = float(recent.max())
        return _Overflow(
            modules=self._largest(timeline),
            first=int(steps[at - int(np.argmax(recent[::-1]))]),
            last=int(steps[-1]),
            evidence={
                "scale_before": before,
                "scale": float(scales[at]),
                "lowest_scale": float(scales.min()),
                "step": int(steps[at]),
            },
            message=(
                f"The loss scale fell from {before:g} to {scales[at]:g} by step {steps[at]}, and each halving stands for a "
                "step that was thrown away because its gradients were not finite in float16."
            ),
            lost=True,
        )

    def _largest(self, timeline: Timeline) -> tuple[str, ...]:
        """The module in float16 that puts out the largest numbers."""
        sites = _half_sites(timeline)
        seen = timeline.column("activation.absmax")[:, sites]
        peaks = np.max(seen, axis=0, initial=0.0, where=np.isfinite(seen))
        return _modules(timeline, [sites[int(np.argmax(peaks))]]) if peaks.any() else ()

    def _by_activation(self, timeline: Timeline) -> _Overflow | None:
        sites = _half_sites(timeline)
        if not sites or not len(timeline.frames):
            return None
        largest = timeline.column("activation.absmax")[:, sites]
        infinite = np.isinf(largest) | (timeline.column("activation.nonfinite")[:, sites] > 0)
        rows, places = np.nonzero((largest > self.largest) | infinite)
        if not len(rows):
            return None
        row, place = int(rows[0]), int(places[0])
        before = largest[: row + 1, place]
        finite = float(np.max(before[np.isfinite(before)], initial=0.0))
        lost = bool(infinite[rows, places].any()) or self._worse(timeline, row)
        if finite <= self.largest and not self._finite_before(timeline, row, sites[place]):
            return None  # it was infinite before it came here
        step = int(timeline.steps[row])
        name = timeline.schema.modules[sites[place]].path
        what = "infinite numbers" if infinite[row, place] else f"{finite:,.0f}"
        return _Overflow(
            modules=_modules(timeline, [sites[p] for p in places[rows == row]]),
            first=step,
            last=int(timeline.steps[rows[-1]]),
            evidence={"module": name, "largest": plain(finite), "limit": LARGEST, "step": step},
            message=f"At step {step} {name}, whose output is in float16, put out {what}; float16 ends at 65,504.",
            lost=lost,
        )

    def _finite_before(self, timeline: Timeline, row: int, site: int) -> bool:
        """Whether inputs, weights and all that ran before are finite, so that the numbers overflow just here."""
        earlier = timeline.column("activation.nonfinite")[row, :site]
        inputs, weights = timeline.column("input.nonfinite")[row], timeline.held("weight.nonfinite")[row]
        return not any(bool((share > 0).any()) for share in (earlier, inputs, weights))

    def _by_operation(self, timeline: Timeline) -> _Overflow | None:
        """The operation that the first infinity came out of, where its size alone can have made it so."""
        told = timeline.info.origin
        if told is None or told.step > timeline.step_count or told.dtype != "float16" or told.node is None:
            return None
        if told.place not in ("forward", "between", "loss") or told.node.removesuffix("0") not in _GROWING:
            return None
        if told.node.startswith("Pow") and not (told.largest or 0.0) >= self.least_base:
            return None  # zero to a negative power
        modules = tuple(path for path in (told.before, told.module) if path)
        where = f", {'in' if told.place == 'forward' else 'before'} {told.module}" if told.module else ""
        return _Overflow(
            modules=modules,
            first=told.step,
            last=told.step,
            evidence={"operation": told.node, "largest": told.largest, "limit": LARGEST, "step": told.step},
            message=(
                f"At step {told.step} {told.node}{where} made infinite numbers of finite ones in float16, which ends at 65,504."
            ),
            lost=True,
        )

    def _by_zeros(self, timeline: Timeline) -> _Overflow | None:
        """A module that divides by a norm that is infinite in float16: finite numbers go in, and hardly anything comes out."""
        sites = [site for site in _half_sites(timeline) if site > 0 and self._may_divide(timeline, site)]
        if not sites:
            return None
        zero, rms, peak = (timeline.column(f"activation.{name}") for name in ("zero", "rms", "absmax"))
        front = np.array(sites) - 1
        widths = np.array([_width(timeline, site) for site in front], dtype=np.float64)
        rooms = (peak[:, front].astype(np.float64) ** 2 > LARGEST) | (rms[:, front].astype(np.float64) ** 2 * widths > LARGEST)
        empty = (zero[:, sites] >= self.zeros) & (zero[:, sites] - zero[:, front] >= self.more_zeros)
        rows, places = np.nonzero(rooms & empty & np.isfinite(peak[:, front]))
        if not len(rows):
            return None
        row, site = int(rows[0]), sites[int(places[0])]
        step, name = int(timeline.steps[row]), timeline.schema.modules[site].path
        share, before, largest = (float(x) for x in (zero[row, site], zero[row, site - 1], peak[row, site - 1]))
        return _Overflow(
            modules=(name,),
            first=step,
            last=int(timeline.steps[rows[-1]]),
            evidence={
                "module": name,
                "zero": plain(share),
                "zero_before": plain(before),
                "largest": plain(largest),
                "step": step,
            },
            message=(
                f"At step {step} {100 * share:.0f} % of what {name} put out in float16 was zero, with {100 * before:.0f} % of "
                f"what went in, and squares of that, which reached {largest:.3g}, exceed 65,504 or add up to more: divided by "
                "a norm that is infinite, everything is zero."
            ),
            lost=self._worse(timeline, row),
        )

    def _worse(self, timeline: Timeline, row: int) -> bool:
        """Whether the loss got worse between the sampled step before this one and this, and has not come back since."""
        good, bad = int(timeline.steps[max(row - 1, 0)]), int(timeline.steps[row])
        return row > 0 and worse_since(timeline, good, bad, steps=self.harm_steps, times=self.harm, least=self.least_harm)

    def _may_divide(self, timeline: Timeline, site: int) -> bool:
        module = timeline.modules.get(timeline.schema.modules[site].path)
        return module is not None and module.role in ("norm", "other")

    def _hit(self, timeline: Timeline, found: _Overflow) -> Hit:
        grave = gravity(timeline)
        return Hit(
            modules=found.modules,
            first_step=found.first,
            last_step=found.last,
            evidence=found.evidence,
            message=found.message,
            remedy=_remedy(timeline, found.modules),
            severity=max(grave, Severity.WARNING) if found.lost else grave,
            strength=4.0,
        )


def _width(timeline: Timeline, site: int) -> int:
    """Features of what stands at a site: as many as the last matrix layer up to there puts out, one where there is none."""
    return next((layer.weight.shape[0] for layer in reversed(timeline.layers) if layer.site <= site), 1)


def _fall(logs: np.ndarray, window: int) -> np.ndarray:
    """By how much each value lies below the largest of the ``window`` values up to it."""
    if not len(logs):
        return logs
    padded = np.concatenate([np.full(window - 1, -np.inf), logs])
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, window).max(axis=1) - logs)


def _half_sites(timeline: Timeline) -> list[int]:
    """Module sites whose output is in float16."""
    half = {module.path for module in timeline.info.modules if module.dtype == "float16"}
    return [i for i, site in enumerate(timeline.schema.modules) if site.path in half] if half else []


def _modules(timeline: Timeline, sites: list[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(timeline.schema.modules[site].path for site in sites))


def _remedy(timeline: Timeline, modules: tuple[str, ...]) -> Remedy:
    device = timeline.info.device.partition(":")[0]
    where = f"; or keep {named(modules)} in float32" if modules else ""
    return Remedy(
        f"Use bfloat16 in place of float16, without a GradScaler{where}.",
        f"{_before_the_loop(timeline, device)}# and in the forward pass:\n"
        f'with torch.autocast("{device}", dtype=torch.bfloat16):\n    output = model(x)',
    )


def _before_the_loop(timeline: Timeline, device: str) -> str:
    """What the loop starts with: a scaler that scales nothing where there is one, weights in float32 where they are not."""
    scaled = np.isfinite(timeline.pulse("loss_scale")).any()
    halved = any(parameter.dtype == "float16" for parameter in timeline.info.parameters)
    return "".join(
        line
        for line, holds in (
            ("model.float()  # before the optimizer is made\n", halved),
            (f'scaler = torch.amp.GradScaler("{device}", enabled=False)  # bfloat16 has the range of float32\n', scaled),
        )
        if holds
    )
