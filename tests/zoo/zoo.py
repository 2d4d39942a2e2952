"""All programs of the zoo, by name."""

from __future__ import annotations

from tests.zoo import data_faults
from tests.zoo import healthy
from tests.zoo import healthy_loops
from tests.zoo import healthy_models
from tests.zoo import healthy_objectives
from tests.zoo import healthy_recipes
from tests.zoo import loop_faults
from tests.zoo import loss_faults
from tests.zoo import number_faults
from tests.zoo import scale_faults
from tests.zoo import sequence_faults
from tests.zoo import step_faults
from tests.zoo import wiring_faults
from tests.zoo.program import Fault
from tests.zoo.program import Healthy

_HEALTHY = (
    *healthy.PROGRAMS,
    *healthy_models.PROGRAMS,
    *healthy_loops.PROGRAMS,
    *healthy_objectives.PROGRAMS,
    *healthy_recipes.PROGRAMS,
)
_FAULTS = (
    *wiring_faults.PROGRAMS,
    *loop_faults.PROGRAMS,
    *loss_faults.PROGRAMS,
    *data_faults.PROGRAMS,
    *scale_faults.PROGRAMS,
    *step_faults.PROGRAMS,
    *sequence_faults.PROGRAMS,
    *number_faults.PROGRAMS,
)

HEALTHY: dict[str, Healthy] = {program.name: program for program in _HEALTHY}
FAULTS: dict[str, Fault] = {program.name: program for program in _FAULTS}
