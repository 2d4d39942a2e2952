"""What each fault of the zoo has to show in the tests, and which faults these run."""

from __future__ import annotations

from tests.zoo.jobs import invents
from tests.zoo.jobs import replays
from tests.zoo.program import Fault
from tests.zoo.program import Outcome
from tests.zoo.running import TESTING
from tests.zoo.running import Seen
from tests.zoo.running import alone
from tests.zoo.running import names
from tests.zoo.running import watched_fault
from tests.zoo.zoo import FAULTS

SEED = TESTING

# Of each truth the first program whose remedy is tried, else the first; `scripts/zoo` runs all.
TREATED = {fault.truth: fault for fault in reversed(FAULTS.values()) if fault.remedy}
UNTREATED = {fault.truth: fault for fault in reversed(FAULTS.values()) if fault.truth not in TREATED}


def proven(fault: Fault) -> tuple[Seen, Outcome]:
    """The run and its healthy twin's, once it is shown that the fault is one, and that it is named.

    Also from the steps up to a blow-up alone; and from those after it alone no cause is invented.
    """
    twin = alone(lambda watch: fault.train(watch, False), SEED)
    seen = watched_fault(fault, SEED, every=1)
    assert twin.fell(fault.falls_to)
    assert fault.proof(seen.outcome, twin)
    assert [report.diagnosis for report in seen.runs if not names(fault, report)] == []
    for before, after in [replays(seen)] if replays(seen) else []:
        assert before in fault.rules
        assert not invents(fault, after), after
    return seen, twin
