"""What scripts/bench holds gradscope to."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass

from bench_catalogue import OURS
from bench_catalogue import WAYS
from bench_figures import Result
from bench_governor import Governed
from bench_memory import MEGABYTE
from bench_memory import Footprint
from bench_trainings import CASES

HOST = "cpu"
LIMITS = {  # of the median step's processor time, for either of OURS
    "mlp-1ms": (1.6, 1.03),
    "mlp-6ms": (1.15, 1.025),
    "gpt-5m": (1.04, 1.02),
    "resnet": (1.04, 1.02),
    "lstm": (1.04, 1.02),
    "gpt-30m": (1.02, 1.02),
    "deep": (1.5, 1.025),
}
MOST_EXTRA = {"gpt-30m": 64 * MEGABYTE}
TIMES_CHEAPER = {"gpt-5m": 10.0, "resnet": 10.0}  # at every step, than wandb
BUDGET = 0.02
OVER_BUDGET = 1.25  # times it that a whole run may cost
AGREEMENT = 0.005  # between the account of the steps after the first ones and what was measured of them
_LEAST_COST = 1e-4  # below which a cost is not to be told from none

Results = Mapping[tuple[str, str, str], Result]  # by device, case and way
Footprints = Mapping[tuple[str, str, str], Footprint]  # by device, case and "bare" or "watched"
Governors = Mapping[tuple[str, str], Governed]  # by case and scenario


@dataclass(frozen=True)
class Check:
    """One limit against what was measured; ``strict`` where going over it fails the run."""

    sentence: str
    kept: bool
    strict: bool = True


def checks(results: Results, footprints: Footprints, governed: Governors) -> Iterator[Check]:
    """Of times on the host alone, and of memory."""
    found = {(case, way): result for (device, case, way), result in results.items() if device == HOST}
    for case, way in found:
        if case in LIMITS and way in OURS:
            most, median = LIMITS[case][OURS.index(way)], found[case, way].median
            said = f"{_title(case, way)}: a median of at most {most:.3f} is wanted, {median:.3f} was measured"
            yield Check(said, median <= most)
    for case, most in MOST_EXTRA.items():
        if (HOST, case, "watched") in footprints:
            extra = footprints[HOST, case, "watched"].host - footprints[HOST, case, "bare"].host
            said = f"at most {most // MEGABYTE} MB of further memory is wanted, {extra / MEGABYTE:.0f} MB was measured"
            yield Check(f"{CASES[case].title}: {said}", extra <= most)
    for case, least in TIMES_CHEAPER.items():
        if (case, "every") in found and (case, "wandb") in found:
            times = (found[case, "wandb"].median - 1) / max(found[case, "every"].median - 1, _LEAST_COST)
            said = f"at least {least:.0f} times the cost of gradscope at every step is expected, {times:.1f} times was measured"
            yield Check(f"{_title(case, 'wandb')}: {said}", times >= least, strict=False)
    for case in (case for case, way in found if way == "budget"):
        apart = found[case, "budget"].told - found[case, "budget"].mean
        said = f"an account within {AGREEMENT:.3f} of the measured mean is wanted, {apart:+.3f} from it was told"
        yield Check(f"{_title(case, 'budget')}: {said}", abs(apart) <= AGREEMENT, strict=False)
    yield from _budgets(governed)
    yield from _waits(footprints)


def _budgets(governed: Governors) -> Iterator[Check]:
    for (case, scenario), found in governed.items():
        most, apart = 1 + OVER_BUDGET * BUDGET, found.told - found.mean
        said = f"{CASES[case].title}, {scenario}: at most {most:.3f} is wanted, {found.mean:.3f} was measured"
        yield Check(said, found.mean <= most, strict=False)
        said = f"an account within {AGREEMENT:.3f} of that is wanted, {apart:+.3f} from it was told"
        yield Check(f"{CASES[case].title}, {scenario}: {said}", abs(apart) <= AGREEMENT, strict=False)


def _waits(footprints: Footprints) -> Iterator[Check]:
    """Whether the host waits for an accelerator more often than it does in the bare training."""
    for (device, case, kind), taken in footprints.items():
        if device != HOST and kind == "watched":
            more = taken.waits - footprints[device, case, "bare"].waits
            yield Check(
                f"{CASES[case].title}: no further wait for the device is wanted, {more:.1f} a step were counted", more <= 0
            )


def _title(case: str, way: str) -> str:
    return f"{CASES[case].title}, {WAYS[way].title}"
