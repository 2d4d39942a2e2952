"""All programs of the zoo, by name."""

from __future__ import annotations

from tests.zoo import healthy
from tests.zoo import healthy_loops
from tests.zoo import healthy_models
from tests.zoo import healthy_objectives
from tests.zoo import scale_faults
from tests.zoo import wiring_faults
from tests.zoo.program import Fault
from tests.zoo.program import Healthy

_HEALTHY = (*healthy.PROGRAMS, *healthy_models.PROGRAMS, *healthy_loops.PROGRAMS, *healthy_objectives.PROGRAMS)
_FAULTS = (*wiring_faults.PROGRAMS, *scale_faults.PROGRAMS)

HEALTHY: dict[str, Healthy] = {program.name: program for program in _HEALTHY}
FAULTS: dict[str, Fault] = {program.name: program for program in _FAULTS}
