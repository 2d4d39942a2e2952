"""Names from outside, fit to be shown."""

from __future__ import annotations

from gradscope.legible import one_line
from gradscope.records import Site


def shown_name(site: Site) -> str:
    return one_line(site.name) or "(no name)"


def shown_path(path: str) -> str:
    return one_line(path) or "(model)"
