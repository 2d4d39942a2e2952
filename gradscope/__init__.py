"""Watches a PyTorch training and names what goes wrong: ``gradscope.attach(model)``, then ``gradscope report LOGDIR``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from gradscope.failures import GradscopeWarning
from gradscope.version import __version__

if TYPE_CHECKING:
    from gradscope.records import Finding as Finding
    from gradscope.replay import read as read
    from gradscope.report import Report as Report
    from gradscope.scope import Scope as Scope
    from gradscope.scope import attach as attach

__all__ = ["Finding", "GradscopeWarning", "Report", "Scope", "__version__", "attach", "read"]


def __getattr__(name: str) -> Any:
    # Torch takes 1.7 s to import, and a report needs none of it; numpy 0.1 s, and `gradscope --help` needs none of that.
    if name in ("attach", "Scope"):
        from gradscope import scope

        return scope.Scope if name == "Scope" else scope.attach
    if name == "Finding":
        from gradscope.records import Finding

        return Finding
    if name == "Report":
        from gradscope.report import Report

        return Report
    if name == "read":
        from gradscope.replay import read

        return read
    raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
