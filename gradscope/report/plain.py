"""Values of any kind as what JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np


def plain(value: Any, mapping: Callable[[Iterable[tuple[str, Any]]], Any]) -> Any:
    """What JSON can hold of ``value``.

    NaN becomes null, an infinity the string ``inf`` or ``-inf``, anything unknown its ``str``. ``mapping`` makes of a mapping's
    keys and plain values what is to stand for it: ``dict`` an object, ``list`` pairs.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else (None if math.isnan(value) else str(value))
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item, mapping) for item in value]
    if isinstance(value, Mapping):
        return mapping((str(key), plain(item, mapping)) for key, item in value.items())
    return str(value)
