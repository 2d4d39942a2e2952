"""The names under which gradscope's own records stand in an event file, and the version of their format."""

from __future__ import annotations

import hashlib

from gradscope.logdir.codec import dumps
from gradscope.records import Schema

VERSION = 1  # raised when an older gradscope would misread the records
PLUGIN = "gradscope"

STATS = "gradscope/stats/"  # + <schema8>/<kind>.<statistic>: float32 [sites]
HISTOGRAMS = "gradscope/hist/"  # + <schema8>/<kind>: float16 [sites, bins]
SCHEMA = "gradscope/schema/"  # + <schema8>: JSON of the Schema
PULSE = "gradscope/pulse"  # float64 [steps, fields]; the record's step is the last row's
META = "gradscope/meta"  # JSON of the RunInfo
REPORT = "gradscope/report"  # Markdown, for people


def schema8(schema: Schema) -> str:
    """Eight hexadecimal digits that tell this schema from others."""
    return hashlib.sha256(dumps(schema).encode()).hexdigest()[:8]
