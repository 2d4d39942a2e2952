"""What one watch is made of, handed from where it is put together to where its steps are heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradscope.capture.blackbox import BlackBox
from gradscope.capture.describe import Description
from gradscope.capture.holdings import Holdings
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.pulses import PulseMaker
from gradscope.capture.sampled import SampledSteps
from gradscope.capture.schedule import Governor
from gradscope.capture.sink import Sink
from gradscope.capture.transfer import Mailbox


@dataclass(frozen=True)
class Parts:
    """What a watch is made of, as far as its steps go."""

    model: Callable[[], torch.nn.Module | None]
    governor: Governor
    mailbox: Mailbox
    modules: ModuleProbe
    pulses: PulseMaker
    description: Description
    holdings: Holdings
    sampled: SampledSteps
    blackbox: BlackBox
    sink: Sink
