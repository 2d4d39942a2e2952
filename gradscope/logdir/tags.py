"""The names under which gradscope's own records stand in an event file, and the version of their format."""

from __future__ import annotations

import hashlib

VERSION = 1  # raised when an older gradscope would misread the records
PLUGIN = "gradscope"

STATS = "gradscope/stats/"  # + <schema8>/<kind>.<statistic>: float32 [sites]
HISTOGRAMS = "gradscope/hist/"  # + <schema8>/<kind>: float16 [sites, bins]
SCHEMA = "gradscope/schema/"  # + <schema8>: JSON of the Schema, whose digest8 schema8 is
PULSE = "gradscope/pulse"  # float64 [steps, fields]; the record's step is the last row's
META = "gradscope/meta"  # JSON of the RunInfo
REPORT = "gradscope/report"  # Markdown, for people


def digest8(schema: bytes) -> str:
    """Eight hexadecimal digits that tell this schema, given as JSON, from others."""
    return hashlib.sha256(schema).hexdigest()[:8]
