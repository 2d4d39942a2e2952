"""Which instruments there are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.instruments.attention import AttentionProbe
from gradscope.capture.instruments.clipping import Clipping
from gradscope.capture.instruments.contract import Contract
from gradscope.capture.instruments.graphsize import GraphSize
from gradscope.capture.instruments.instrument import Instrument
from gradscope.capture.instruments.moments import Moments
from gradscope.capture.instruments.recurrent import Recurrence
from gradscope.capture.instruments.repetition import Repetition
from gradscope.capture.instruments.reuse import Reuse
from gradscope.capture.instruments.surroundings import Surroundings
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.pulses import PulseMaker


def instruments(
    model: torch.nn.Module, modules: ModuleProbe, hooks: ForwardHooks, pulses: PulseMaker, guard: Callable[[], None]
) -> tuple[Instrument, ...]:
    """Fresh instruments for one watch over ``model``.

    ``guard`` is called from an except clause, in hooks that the loop and not the watch calls: it reports the failure.
    """
    return (
        Contract(pulses),
        AttentionProbe(model),
        GraphSize(),
        Surroundings(model, hooks),
        Clipping(model, pulses, guard),
        Recurrence(model, hooks, guard),
        Reuse(model, guard),
        Moments(model),
        Repetition(modules),
    )
