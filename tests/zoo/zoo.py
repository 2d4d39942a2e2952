"""All programs of the zoo, by name, and who wrote them when: what a figure is worth depends on that."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

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
from tests.zoo import street_faults_byhand
from tests.zoo import street_faults_criteria
from tests.zoo import street_faults_pipelines
from tests.zoo import street_faults_rates
from tests.zoo import street_faults_starts
from tests.zoo import street_faults_wiring
from tests.zoo import street_healthy_signals
from tests.zoo import street_healthy_tables
from tests.zoo import town_faults_layers
from tests.zoo import town_faults_numbers
from tests.zoo import town_faults_rates
from tests.zoo import town_faults_scales
from tests.zoo import town_faults_sequences
from tests.zoo import town_faults_weights
from tests.zoo import town_healthy_records
from tests.zoo import town_healthy_worlds
from tests.zoo import village_faults_losses
from tests.zoo import village_faults_modes
from tests.zoo import village_faults_order
from tests.zoo import village_faults_steps
from tests.zoo import village_faults_wiring
from tests.zoo import village_healthy_aims
from tests.zoo import village_healthy_teachers
from tests.zoo import village_healthy_turns
from tests.zoo import wiring_faults
from tests.zoo.program import Fault
from tests.zoo.program import Healthy


@dataclass(frozen=True)
class Hand:
    """Programs that were written together."""

    title: str
    healthy: tuple[ModuleType, ...]
    faults: tuple[ModuleType, ...]


HANDS = (
    Hand(
        "written with the rules",
        (healthy, healthy_models, healthy_loops, healthy_objectives, healthy_recipes),
        (
            wiring_faults, loop_faults, loss_faults, data_faults, scale_faults, step_faults, sequence_faults, number_faults,
            drift_faults,
        ),
    ),
    Hand(
        "by a second hand, blind; at first 51 % were right on top",
        (field_healthy_vision, field_healthy_sequences, field_healthy_science, field_healthy_loops),
        (
            field_faults_vision, field_faults_sequences, field_faults_losses, field_faults_loops, field_faults_numbers,
        ),
    ),
    Hand(
        "by a third hand, blind; at first 82 % were right on top, and alarms came in 2 of 72 sound runs",
        (street_healthy_tables, street_healthy_signals),
        (
            street_faults_rates, street_faults_starts, street_faults_criteria, street_faults_wiring, street_faults_pipelines,
            street_faults_byhand,
        ),
    ),
    Hand(
        "by two further hands, blind; at first 72 % were right on top, and alarms came in 1 of 96 sound runs",
        (
            town_healthy_worlds, town_healthy_records,
            village_healthy_aims, village_healthy_teachers, village_healthy_turns,
        ),
        (
            town_faults_rates, town_faults_weights, town_faults_layers, town_faults_sequences, town_faults_scales,
            town_faults_numbers,
            village_faults_losses, village_faults_modes, village_faults_order, village_faults_steps, village_faults_wiring,
        ),
    ),
)  # fmt: skip

HEALTHY: dict[str, Healthy] = {p.name: p for hand in HANDS for module in hand.healthy for p in module.PROGRAMS}
FAULTS: dict[str, Fault] = {p.name: p for hand in HANDS for module in hand.faults for p in module.PROGRAMS}
HAND_OF: dict[str, str] = {
    program.name: hand.title for hand in HANDS for module in (*hand.healthy, *hand.faults) for program in module.PROGRAMS
}
