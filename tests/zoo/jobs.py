"""One program, one seed, one cadence: the work that scripts/zoo spreads over the cores, and what comes back from it."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

from gradscope.diagnosis import ONSET_SLACK
from gradscope.rule import all_rules
from tests.zoo.baselines import fired
from tests.zoo.program import Fault
from tests.zoo.running import LOOKS
from tests.zoo.running import Seen
from tests.zoo.running import finds
from tests.zoo.running import judged
from tests.zoo.running import names
from tests.zoo.running import timeline
from tests.zoo.running import watched
from tests.zoo.running import watched_fault
from tests.zoo.zoo import FAULTS
from tests.zoo.zoo import HEALTHY

KINDS = ("fault", "twin", "healthy")


@dataclass(frozen=True, order=True)
class Job:
    kind: str  # one of KINDS
    program: str
    seed: int
    every: int | None  # None: the default budget


@dataclass(frozen=True)
class Result:
    """What gradscope said of one run. Names that do not count, such as a twin's diagnosis, are there all the same."""

    job: Job
    diagnosis: str | None
    findings: tuple[str, ...]
    alarms: tuple[str, ...]  # rules at warning or above, at the end or on the way
    trained: bool = True  # a twin: whether it ended where a healthy one has to, by its own measure and not by gradscope's
    named: bool = False  # the right name on top, at the end
    found: bool = False  # the right name in any place, at the end
    named_after: int | None = None  # steps from the fault's beginning to the first look that names it
    replays: tuple[str | None, ...] = ()  # the diagnosis from the steps up to the blow-up alone, and from those after it
    baselines: Mapping[str, tuple[str, ...]] | None = None

    @property
    def wrong(self) -> bool:
        """An alarm where nothing is wrong, or a fault that is not named, or not by its name."""
        return not self.named if self.job.kind == "fault" else bool(self.alarms) and self.trained

    @property
    def misleads(self) -> bool:
        """Whether a cause stands on top of a fault that is not there."""
        return self.job.kind == "fault" and not self.named and self.diagnosis is not None


def jobs(seeds: Sequence[int], cadences: Iterable[int | None], *, only: Iterable[str] | None = None) -> list[Job]:
    programs = [("healthy", name) for name in HEALTHY] + [(kind, name) for name in FAULTS for kind in ("fault", "twin")]
    wanted = set(only) if only is not None else {name for _, name in programs}
    return [Job(kind, name, seed, every) for every in cadences for kind, name in programs for seed in seeds if name in wanted]


def run(job: Job) -> Result:
    if job.kind == "healthy":
        return _result(job, watched(HEALTHY[job.program].train, job.seed, every=job.every, looks=LOOKS), None)
    fault = FAULTS[job.program]
    faulty = job.kind == "fault"
    seen = watched_fault(fault, job.seed, every=job.every, faulty=faulty, looks=True)
    result = _result(job, seen, fault if faulty else None)
    return result if faulty else replace(result, trained=seen.outcome.fell(fault.falls_to))


def _result(job: Job, seen: Seen, fault: Fault | None) -> Result:
    baselines = [fired(timeline(recorded)) for recorded in seen.recorded]
    result = Result(
        job=job,
        diagnosis=next(iter(seen.diagnoses), None),
        findings=tuple(dict.fromkeys(finding.rule for report in seen.runs for finding in report.findings)),
        alarms=tuple(dict.fromkeys(finding.rule for _, finding in seen.alarms)),
        baselines={name: tuple(rule for said in baselines for rule in said[name]) for name in baselines[0]},
    )
    if fault is None:
        return result
    return replace(
        result,
        named=all(names(fault, report) for report in seen.runs),
        found=any(finds(fault, report) for report in seen.runs),
        named_after=seen.named_after(fault),
        replays=replays(seen),
    )


def replays(seen: Seen) -> tuple[str | None, ...]:
    """The diagnoses without the steps after the blow-up, and with these alone; empty where nothing blew up."""
    recorded = seen.recorded[0]
    onset = timeline(recorded).onset
    if onset is None:
        return ()
    after = onset + 1 + ONSET_SLACK
    return judged(recorded, until=after).diagnosis, judged(recorded, since=after).diagnosis


def invents(fault: Fault, diagnosis: str | None) -> bool:
    """Whether a diagnosis is a cause that is not there. A symptom is none, nor is where the first NaN stood: that is seen."""
    causes = {rule.name for rule in all_rules() if rule.kind == "cause"} - {"nonfinite-origin"}
    return diagnosis in causes - set(fault.rules)
