"""Which statistics the tab offers, how their colours are scaled, and the one that is worked out here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from gradscope.records import STATISTICS
from gradscope.tensorboard.view import Table
from gradscope.tensorboard.view import View

DEAD = "activation.dead"
HALF = 16  # units whose bits one of the two columns has

_MAIN = {
    "activation.rms": "Activation scale",
    "activation_gradient.rms": "Gradient scale",
    "update.ratio": "Update over weight",
    DEAD: "Dead units",
    "activation.saturated": "Saturated share",
    "activation.nonfinite": "Not finite",
}
_DEAD_TEXT = "share of the sampled units with no element above zero in that step, where a ReLU follows"
_HIDDEN = frozenset(("activation.active_low", "activation.active_high"))
_OF_THE_REST = frozenset("mean rms absmax signal".split())  # of a kind's finite elements
_SHARES = frozenset(
    "nonfinite repeated zero saturated dead carried unchanged epsilon_share target_nonfinite entropy evaluating "
    "untouched_statistics".split()
)
_LOGARITHMIC = frozenset(
    "rms absmax signal norm ratio outside_change second_moment_ratio logit_max input_rms input_signal target_rms target_signal "
    "target_count log_partition graph_nodes clip_norm clip_limit weight row_spread".split()
)


@final
@dataclass(frozen=True)
class Statistic:
    name: str
    title: str
    text: str

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def scale(self) -> str:
        """``log``, ``share`` or ``linear``."""
        last = self.name.partition(".")[2]
        return "share" if last in _SHARES else "log" if last in _LOGARITHMIC else "linear"

    @property
    def is_main(self) -> bool:
        return self.name in _MAIN


def statistics_of(view: View) -> list[Statistic]:
    """Those that the run has, the tab's own six first."""
    there = {name for part in view.parts for name in part.tags if view.schema.sites(name.partition(".")[0])}
    if there >= _HIDDEN and _rectified(view).any():
        there.add(DEAD)
    return [statistic for statistic in _all() if statistic.name in there]


def find_statistic(view: View, name: str) -> Statistic | None:
    return next((statistic for statistic in statistics_of(view) if statistic.name == name), None)


def table_of(view: View, statistic: Statistic) -> Table:
    """[sampled steps, sites] float32."""
    return _dead(view) if statistic.name == DEAD else table_named(view, statistic.name)


def table_named(view: View, name: str) -> Table:
    """[sampled steps, sites] float32 of what was recorded; a magnitude is infinite where anything at its site was not finite.

    The record has the magnitude of the rest, 0 where there is none: all NaN would look like all zero.
    """
    table = view.table(name)
    kind, _, last = name.partition(".")
    if last not in _OF_THE_REST:
        return table
    broken = view.table(f"{kind}.nonfinite").at(table.steps) > 0
    return Table(table.steps, np.where(broken, np.float32(np.inf), table.values)) if broken.any() else table


def _all() -> Iterator[Statistic]:
    texts = {f"{kind}.{name}": text for kind, names in STATISTICS.items() for name, text in names.items()} | {DEAD: _DEAD_TEXT}
    for name, title in _MAIN.items():
        yield Statistic(name, title, texts[name])
    for name, text in texts.items():
        if name not in _MAIN and name not in _HIDDEN:
            kind, _, last = name.partition(".")
            yield Statistic(name, f"{kind.replace('_', ' ').capitalize()}: {last.replace('_', ' ')}", text)


def _rectified(view: View) -> npt.NDArray[np.bool_]:
    """The module sites whose sign decides whether a ReLU passes."""
    paths = {module.path for module in view.info.modules if module.activation == "relu" or module.type == "ReLU"}
    return np.array([site.path in paths for site in view.schema.modules], dtype=bool)


def _dead(view: View) -> Table:
    low, high, broken = (view.table(f"activation.{name}") for name in ("active_low", "active_high", "nonfinite"))
    steps = low.steps[np.isin(low.steps, high.steps)]
    bits = [table.at(steps) for table in (low, high)]
    known = np.logical_and.reduce([(mask >= 0) & (mask < 2**HALF) for mask in bits]) & _rectified(view)
    known &= ~(broken.at(steps) > 0)
    counts = sum(_bits_set(np.where(known, mask, 0).astype("<u2")) for mask in bits)
    return Table(steps, np.where(known, 1 - counts / (2 * HALF), np.nan).astype(np.float32))


def _bits_set(masks: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """How many bits are set in each of these masks of 16."""
    pairs = np.ascontiguousarray(masks)[..., None].view(np.uint8)
    counts: npt.NDArray[np.int64] = np.unpackbits(pairs, axis=-1).sum(axis=-1, dtype=np.int64)
    return counts
