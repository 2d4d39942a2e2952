"""All programs of the zoo, by name."""

from __future__ import annotations

from tests.zoo import data_faults
from tests.zoo import drift_faults
from tests.zoo import field_faults_loops
from tests.zoo import field_faults_losses
from tests.zoo import field_faults_numbers
from tests.zoo import field_faults_sequences
from tests.zoo import field_faults_vision
from tests.zoo import field_healthy_loops
from tests.zoo import field_healthy_science
from tests.zoo import field_healthy_sequences
from tests.zoo import field_healthy_vision
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
    *field_healthy_vision.PROGRAMS,
    *field_healthy_sequences.PROGRAMS,
    *field_healthy_science.PROGRAMS,
    *field_healthy_loops.PROGRAMS,
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
    *drift_faults.PROGRAMS,
    *field_faults_vision.PROGRAMS,
    *field_faults_sequences.PROGRAMS,
    *field_faults_losses.PROGRAMS,
    *field_faults_loops.PROGRAMS,
    *field_faults_numbers.PROGRAMS,
)

HEALTHY: dict[str, Healthy] = {program.name: program for program in _HEALTHY}
FAULTS: dict[str, Fault] = {program.name: program for program in _FAULTS}
