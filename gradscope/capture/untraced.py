"""Functions that torch's compiler lets alone where it runs a training loop: it would compile gradscope's own code, and count
what that does as breaks of the user's graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

_Mark = Callable[[CodeType, bool], None]


def leave_out(*functions: Callable[..., Any], all_within: bool = True) -> None:
    """Have the compiler run these functions as they are, with ``all_within`` everything that they call as well.

    It is their code that is marked, for good; to call them costs no more than before.
    """
    for function in functions:
        _mark(function.__code__, all_within)


def _marking() -> _Mark:
    try:
        from torch._C._dynamo.eval_frame import _FrameAction
        from torch._C._dynamo.eval_frame import _FrameExecStrategy
        from torch._C._dynamo.eval_frame import set_code_exec_strategy
    except ImportError:  # before torch 2.7 a compiled training step counts gradscope's own code
        return lambda code, all_within: None
    skip, default = _FrameAction.SKIP, _FrameAction.DEFAULT
    return lambda code, all_within: set_code_exec_strategy(code, _FrameExecStrategy(skip, skip if all_within else default))


_mark = _marking()
