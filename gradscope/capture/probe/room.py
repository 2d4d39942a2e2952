"""How much memory there is for copies: what the training has had itself and does not use at the moment, and a little beyond."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

LEAST = 32 << 20  # bytes beyond the training's own peak that copies may take in any case,
SHARE = 0.04  # or this share of the peak, where that is more,
OF_FREE = 0.25  # but never more than this share of what the system has left
_STATUS = Path("/proc/self/status")
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Room:
    """What copies may take on one device, in bytes."""

    spare: int  # the training has had it, at its peak, and does not use it now
    beyond: int  # may be taken on top of that peak


@dataclass(frozen=True)
class Needs:
    """What a replay takes on one device, in bytes."""

    weights: int  # one copy of what the optimizer holds
    state: int  # one copy of its state, 0 where no step is made again

    def beyond(self, spare: int, *, again: bool) -> int:
        """What comes on top of the peak that the training has had.

        To measure a step takes two copies of the weights at once: those before it, and those somewhere along it. To make it
        ``again`` takes a backward pass, which needs what is spare for its activations, beside a copy of the weights and one of
        their gradient; and then two more, for the weights that the step leads to.
        """
        return max(2 * self.weights, 4 * self.weights - spare) + self.state if again else 2 * self.weights - spare


def obstacle(needs: Mapping[torch.device, Needs], *, again: bool) -> str | None:
    """Why there is no room for a replay, as a clause; None where there is. Waits for no device."""
    for device, need in needs.items():
        room = room_on(device)
        beyond = need.beyond(room.spare, again=again)
        if beyond > room.beyond:
            taken, most = (f"{size / _MEGABYTE:.0f} MB" for size in (beyond, room.beyond))
            return (
                f"its copies would take {taken} of {device.type} memory beyond the training's own, and at most {most} are taken"
            )
    return None


def room_on(device: torch.device) -> Room:
    """What copies may take there."""
    peak, spare = _of_accelerator(device) if device.type in ("cuda", "xpu") else _of_process()
    return Room(spare, int(min(max(LEAST, SHARE * peak), OF_FREE * _free_bytes(device))))


def _of_accelerator(device: torch.device) -> tuple[int, int]:
    """The most that was allocated there so far, and how much more that is than now."""
    module = torch.get_device_module(device)
    peak = int(module.max_memory_allocated(device))
    return peak, peak - int(module.memory_allocated(device))


def _of_process() -> tuple[int, int]:
    """The same of the host's memory, 0 where the system does not tell.

    An allocator keeps what is freed, so that the process seems to need it still: what it keeps is spare, too.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0, 0
    told = {
        name: int(value.split()[0]) << 10 for name, _, value in (s.partition(":") for s in lines) if name in ("VmHWM", "VmRSS")
    }
    peak = told.get("VmHWM", 0)
    kept, used = _kept_by_allocator()
    return peak, max(min(kept + peak - told.get("VmRSS", peak), peak - used), 0)


@final
class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _kept_by_allocator() -> tuple[int, int]:
    """Bytes that the C library's allocator holds free, and that it has given out; (0, 0) of a library that does not tell."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return 0, 0
    ask.restype = _Mallinfo2
    told = ask()
    return int(told.fordblks), int(told.uordblks + told.hblkhd)


def _free_bytes(device: torch.device) -> int:
    if device.type in ("cuda", "xpu"):
        return int(torch.get_device_module(device).mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not told on this system
        return round(LEAST / OF_FREE)
