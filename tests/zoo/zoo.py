"""All programs of the zoo, by name."""

from __future__ import annotations

from tests.zoo import healthy
from tests.zoo import healthy_more
from tests.zoo import scale_faults
from tests.zoo import wiring_faults
from tests.zoo.program import Fault
from tests.zoo.program import Healthy

HEALTHY: dict[str, Healthy] = {program.name: program for program in (*healthy.FIRST, *healthy_more.MORE)}
FAULTS: dict[str, Fault] = {program.name: program for program in (*wiring_faults.FAULTS, *scale_faults.FAULTS)}
