"""Which instruments there are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gradscope.capture.attention import AttentionProbe
from gradscope.capture.clipping import Clipping
from gradscope.capture.contract import Contract
from gradscope.capture.graphsize import GraphSize
from gradscope.capture.hooks import ForwardHooks
from gradscope.capture.instrument import Instrument
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.moments import Moments
from gradscope.capture.recurrent import Recurrence
from gradscope.capture.repetition import Repetition
from gradscope.capture.surroundings import Surroundings


def instruments(
    model: torch.nn.Module, modules: ModuleProbe, hooks: ForwardHooks, guard: Callable[[], None]
) -> tuple[Instrument, ...]:
    """Fresh instruments for one watch over ``model``.

    ``guard`` is called from an except clause, in hooks that the loop and not the watch calls: it reports the failure.
    """
    return (
        Contract(),
        AttentionProbe(model),
        GraphSize(),
        Surroundings(model, hooks),
        Clipping(model, guard),
        Recurrence(model, hooks, guard),
        Moments(model),
        Repetition(modules),
    )
