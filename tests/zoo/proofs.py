"""What shows without gradscope that a fault did what it should."""

from __future__ import annotations

import math

from tests.zoo import data
from tests.zoo.program import Outcome
from tests.zoo.program import Proof


def learned_nothing(fault: Outcome, twin: Outcome) -> bool:
    """The loss ended where ten classes guessed at random have it, above that, or is not finite."""
    return not fault.end < 0.9 * math.log(data.CLASSES)


def worse(factor: float) -> Proof:
    """The loss ended above this many times the twin's, or is not finite."""
    return lambda fault, twin: not fault.end < factor * twin.end


def not_finite(fault: Outcome, twin: Outcome) -> bool:
    return not math.isfinite(fault.end)


def still(*names: str) -> Proof:
    """These parameters stayed bit for bit, and the twin's did not."""
    return lambda fault, twin: all(fault.moved[name] == 0 < twin.moved[name] for name in names)


def fact(name: str, *, least: float, most: float) -> Proof:
    """What the program measured is ``least`` or more with the fault, or not finite, and under ``most`` without it."""
    return lambda fault, twin: twin.facts[name] < most <= least and not fault.facts[name] < least


def both(*proofs: Proof) -> Proof:
    return lambda fault, twin: all(proof(fault, twin) for proof in proofs)
