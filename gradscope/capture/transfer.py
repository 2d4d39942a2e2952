"""Bringing small tensors from the host to a device, or back, without waiting for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch

from gradscope.capture.shards import estimate_of

Arrays = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Letter:
    host: tuple[torch.Tensor, ...]  # flat float32, one per device
    arrived: tuple[torch.Event, ...]
    unpack: Callable[[Sequence[torch.Tensor]], Arrays]
    deliver: Callable[[Arrays], None]


@final
class Mailbox:
    """Sends tensors to the host and hands them over, in order, once they are there. Never blocks but in ``drain``."""

    def __init__(self) -> None:
        self._letters: deque[_Letter] = deque()

    def send(self, tensors: Sequence[torch.Tensor], deliver: Callable[[Arrays], None]) -> None:
        """Copy float tensors to the host, one copy per device, and call ``deliver`` with them as float32 arrays.

        On the CPU the call comes at once; for an accelerator it comes from a later ``poll``.
        """
        if all(tensor.device.type == "cpu" for tensor in tensors) and not self._letters:
            _deliver(deliver, [tensor.detach().to(torch.float32).numpy() for tensor in tensors])
            return
        devices = list(dict.fromkeys(tensor.device for tensor in tensors))
        groups = {device: [i for i, tensor in enumerate(tensors) if tensor.device == device] for device in devices}
        shapes = [tensor.shape for tensor in tensors]
        packed = [torch.cat([tensors[i].detach().reshape(-1).float() for i in groups[device]]) for device in devices]
        host = tuple(_to_host(flat) for flat in packed)
        arrived = tuple(_mark(device) for device in devices if device.type != "cpu")

        def unpack(flats: Sequence[torch.Tensor]) -> Arrays:
            arrays: dict[int, npt.NDArray[np.float32]] = {}
            for device, flat in zip(devices, flats, strict=True):
                parts = torch.split(flat, [shapes[i].numel() for i in groups[device]])
                arrays.update({i: part.reshape(shapes[i]).numpy() for i, part in zip(groups[device], parts, strict=True)})
            return [arrays[i] for i in range(len(shapes))]

        self._letters.append(_Letter(host, arrived, unpack, deliver))

    def poll(self) -> None:
        """Hand over what has arrived."""
        while self._letters and all(event.query() for event in self._letters[0].arrived):
            self._hand_over(self._letters.popleft())

    def drain(self) -> None:
        """Wait for everything that is on its way and hand it over."""
        while self._letters:
            letter = self._letters.popleft()
            for event in letter.arrived:
                event.synchronize()
            self._hand_over(letter)

    def _hand_over(self, letter: _Letter) -> None:
        _deliver(letter.deliver, letter.unpack(letter.host))


def _deliver(deliver: Callable[[Arrays], None], arrays: Arrays) -> None:
    with np.errstate(all="ignore"):  # infinity is an answer here; numpy's warning would speak in the user's program
        deliver(arrays)


def number_at_hand(value: torch.Tensor | float) -> float | None:
    """A number, or a tensor's only element where it is on the host; None where to read it would wait for a device.

    Of one that ranks hold together, what this one knows of it.
    """
    if not isinstance(value, torch.Tensor):
        return float(value)
    here = estimate_of(value)
    return float(here.item()) if here.is_cpu and here.numel() == 1 else None


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, on a device that goes on with its work meanwhile; itself where it is there already."""
    if tensor.device == device:  # ``Tensor.to`` takes ten times as long to find that out
        return tensor
    if device.type == "cpu" or not tensor.is_cpu:
        return tensor.to(device, non_blocking=True)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from pageable memory may wait


def together(scalars: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scalars of one type as one vector, float32 on the host without any.

    On the first of their devices that is not the host: to bring them there would wait for the others.
    """
    if not scalars:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
    devices = {scalar.device for scalar in scalars}
    if len(devices) > 1:
        home = next(scalar.device for scalar in scalars if not scalar.is_cpu)
        scalars = [to_device(scalar, home) for scalar in scalars]
    return torch.stack(list(scalars))


def _to_host(flat: torch.Tensor) -> torch.Tensor:
    if flat.device.type == "cpu":
        return flat
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)  # pageable memory would make the copy wait
    return host.copy_(flat, non_blocking=True)


def _mark(device: torch.device) -> torch.Event:
    event = torch.Event(device)
    event.record(torch.accelerator.current_stream(device) if device.type != "cpu" else None)
    return event
