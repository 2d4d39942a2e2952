"""The model's parameters as they are now, and which of them each optimizer holds."""

from __future__ import annotations

import weakref
from typing import final

import torch
from torch.optim.optimizer import Optimizer

from gradscope.capture.describe import Description
from gradscope.capture.gathered import holds_gathered_gradients
from gradscope.capture.modules import ModuleProbe
from gradscope.capture.naming import names_of
from gradscope.capture.naming import parameters_of
from gradscope.capture.parameters import ParameterProbe
from gradscope.capture.roles import nonzero_counts
from gradscope.capture.transfer import Arrays
from gradscope.capture.transfer import Mailbox


@final
class Holdings:
    """Looks at the model when its first step begins, and again where its parameters have changed."""

    def __init__(
        self, model: torch.nn.Module, modules: ModuleProbe, description: Description, mailbox: Mailbox, *, places: int
    ) -> None:
        self._model = weakref.ref(model)
        self._modules = modules
        self._description = description
        self._mailbox = mailbox
        self._places = places
        self._parameters: ParameterProbe | None = None
        # How many tensors each optimizer holds, and which of them are ours.
        self._owned: weakref.WeakKeyDictionary[Optimizer, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()

    @property
    def known(self) -> ParameterProbe | None:
        """The probe of the parameters, where one was made."""
        return self._parameters

    def parameters(self) -> ParameterProbe:
        """The probe of the parameters. Raises RuntimeError where the model is gone."""
        model = self._model()
        if self._parameters is None and model is not None:  # not at attach: parameters may be lazy, or still move to a device
            self._modules.refresh(model)
            self._parameters = ParameterProbe(dict(parameters_of(model)), names_of(model), places=self._places)
            self._description.model(model)
            self._modules.unsupported.described(model)
            self._ask_start_values(model)
        if self._parameters is None:
            raise RuntimeError("the watched model was deleted within a step")
        return self._parameters

    def _ask_start_values(self, model: torch.nn.Module) -> None:
        counts = nonzero_counts(model)
        names = tuple(counts)

        def arrived(arrays: Arrays) -> None:
            self._description.start_values({name: not count for name, count in zip(names, arrays, strict=True)})

        if counts:
            self._mailbox.send(list(counts.values()), arrived)

    @property
    def cleared(self) -> bool:
        """Whether no parameter holds a gradient, nor waits for one that is there; see ``ParameterProbe.cleared``."""
        model = self._model()
        return self.parameters().cleared and not (model is not None and holds_gathered_gradients(model))

    def have_changed(self, *, thorough: bool) -> bool:
        """Whether a parameter was resized or moved since it was looked at last, or, if thorough, added or replaced."""
        model = self._model()
        if self._parameters is None or model is None:
            return False
        return not (self._parameters.describes(model) if thorough else self._parameters.fits)

    def start_afresh(self) -> None:
        """Look at the model again when its parameters are asked for next."""
        self._parameters = None
        self._owned.clear()

    def names(self, optimizer: Optimizer) -> tuple[str, ...]:
        """Which of the model's parameters an optimizer holds."""
        return self._held(optimizer)[1]

    def strangers(self, optimizer: Optimizer) -> int:
        """How many tensors it holds that are not the model's."""
        count, names = self._held(optimizer)
        return count - len(names)

    def held(self) -> set[int]:
        """``id`` of each tensor that any optimizer of the process holds which has stepped."""
        return {id(tensor) for optimizer in self._owned for tensor in tensors_of(optimizer)}

    def release(self) -> None:
        """Let go of the model's memory."""
        self._parameters = None

    def _held(self, optimizer: Optimizer) -> tuple[int, tuple[str, ...]]:
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._owned.get(optimizer)
        if known is None or known[0] != count:
            known = self._owned[optimizer] = (count, self.parameters().names(tensors_of(optimizer)))
        return known


def tensors_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """All tensors that an optimizer holds."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
