"""How far one may go along a step until the loss is above where it began, found with few forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence

TOLERANCE = 1e-5  # relative rise that counts; at 1e-7 the noise of float32 looked like an overshoot
DEEPEST = 8  # quarterings of the step that are tried: to 1.5e-5 of it
BISECTIONS = 4  # in the logarithm, which leaves 4.5 % of doubt
BEYOND = (2.0, 8.0, 64.0)  # multiples that are tried where the step itself does not go up
INSIDE = (0.25, 0.0625)  # fractions of it that are tried then, where it is long: behind the valley the loss may be flat


def overshoot(
    phi: Callable[[float], float],
    before: float,
    after: float,
    *,
    inside: Sequence[float] = (),
    deepest: int = DEEPEST,
    bisections: int = BISECTIONS,
    tolerance: float = TOLERANCE,
) -> float:
    """O = 1 / s_c with s_c = inf {s > 0: phi(s) > phi(0)}; ``before`` is phi(0), ``after`` phi(1).

    At most ``deepest + bisections`` calls of ``phi`` where phi(1) is above phi(0), and no more than that where it is not.
    Infinite where every length that was tried goes up, 0 where not even 64 steps do. A loss that is not finite is above all.
    """

    def up(value: float) -> bool:
        return not value <= before + tolerance * abs(before)

    high = 1.0 if up(after) else next((s for s in inside if up(phi(s))), None)
    if high is not None:
        low = next((s for k in range(1, deepest + 1) if not up(phi(s := high * 0.25**k))), 0.0)
        return _between(phi, up, low, 4 * low, bisections) if low else math.inf
    low = 1.0
    for multiple in BEYOND:
        if up(phi(multiple)):
            return _between(phi, up, low, multiple, bisections // 2)
        low = multiple
    return 0.0


def _between(phi: Callable[[float], float], up: Callable[[float], bool], low: float, high: float, bisections: int) -> float:
    for _ in range(bisections):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if up(phi(middle)) else (middle, high)
    return 1 / math.sqrt(low * high)
