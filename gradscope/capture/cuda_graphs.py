"""CUDA graphs that a user captures: meanwhile nothing of ours may run on the device, be recorded, or wait for it."""

from __future__ import annotations

from typing import final

import torch

from gradscope.failures import warn


@final
class Captures:
    """The process's captures, as far as watched models meet them. One instance, in this module."""

    def __init__(self) -> None:
        self.possible: bool = torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]  # elsewhere torch cannot be asked
        self._told = False

    def running(self) -> bool:
        """Whether one is under way on the current stream. Says so the first time; never waits for the device.

        What is recorded runs again with every replay, with none of Python's calls: a gather recorded once would be paid for
        at every replay and told to nobody, and a copy to the host would break the capture off.
        """
        if not self.possible or not torch.cuda.is_current_stream_capturing():
            return False
        if not self._told:
            self._told = True
            warn(
                "cuda-graph",
                "Expected a training whose every step Python runs; found a CUDA graph being captured, which is left as it is. "
                "Its replays call no hooks: neither layers nor losses nor steps are seen in them. Call scope.step() after each "
                "replay, and scope.observe(loss=...) with its loss: then gradients, weights and updates are watched.",
            )
        return True


CAPTURES = Captures()
