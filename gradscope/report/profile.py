"""The depth profile: which layers are shown, and bars on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.report.glyphs import Glyphs
from gradscope.run_report import ProfileRow

LEAST_DECADES = 4.0  # a full bar stands for at least so many, so that layers of one scale look alike
MOST_ROWS = 16
ENDS = 5  # layers shown of each end of a longer net


@dataclass(frozen=True)
class Gap:
    """Layers that are left out."""

    layers: int


def shown(rows: Sequence[ProfileRow]) -> list[ProfileRow | Gap]:
    """All rows of a short net; of a longer one both ends and the first marked ones between, with the gaps counted."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    marked = [i for i in range(ENDS, len(rows) - ENDS) if rows[i].marked][: MOST_ROWS - 2 * ENDS]
    kept = [*range(ENDS), *marked, *range(len(rows) - ENDS, len(rows))]
    result: list[ProfileRow | Gap] = []
    for before, index in zip([-1, *kept], kept, strict=False):
        if index - before > 1:
            result.append(Gap(index - before - 1))
        result.append(rows[index])
    return result


@dataclass(frozen=True)
class Scale:
    """Bars for numbers over several decades: empty at ``low``, full at ``high``, both log10."""

    low: float
    high: float

    @staticmethod
    def over(values: Iterable[float]) -> Scale:
        logs = [math.log10(value) for value in values if 0 < value < math.inf]
        if not logs:
            return Scale(0.0, LEAST_DECADES)
        return Scale(max(logs) - max(LEAST_DECADES, 1.05 * (max(logs) - min(logs))), max(logs))

    def bar(self, value: float, *, width: int, glyphs: Glyphs) -> str:
        """At most ``width`` cells; empty for zero and for what was not captured, full for infinity."""
        if math.isnan(value) or value <= 0:
            return ""
        share = 1.0 if math.isinf(value) else (math.log10(value) - self.low) / (self.high - self.low)
        parts = len(glyphs.bar)
        filled = max(1, round(min(share, 1.0) * width * parts))
        full, rest = divmod(filled, parts)
        return glyphs.bar[-1] * full + (glyphs.bar[rest - 1] if rest else "")
