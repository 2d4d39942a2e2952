"""Names from outside, fit to be shown."""

from __future__ import annotations

from gradscope.records import Site
from gradscope.report.cleaning import one_line


def shown_name(site: Site) -> str:
    return one_line(site.name) or "(no name)"


def shown_path(path: str) -> str:
    return one_line(path) or "(model)"
