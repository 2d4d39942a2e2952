"""What of rich a report is made with.

rich numbers its styles from a random number that it draws when it is imported, out of Python's own generator: a training that
asks for a report half-way would go on with other numbers. So all of it is imported here, and the generator put back.
"""

from __future__ import annotations

import random

_BEFORE = random.getstate()

import rich.segment  # noqa: E402
import rich.style  # noqa: E402, F401
from rich.cells import cell_len as cell_len  # noqa: E402
from rich.cells import set_cell_size as set_cell_size  # noqa: E402
from rich.text import Text as Text  # noqa: E402

random.setstate(_BEFORE)
