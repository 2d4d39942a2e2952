"""Turns frozen dataclasses into JSON and back, going by the types of their fields.

Unknown keys are ignored and missing ones take the field's default, so that records of an older or a newer gradscope of the
same version of the format can be read. Numbers that are not finite stand as strings, which every JSON parser takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING
from dataclasses import Field
from dataclasses import fields
from dataclasses import is_dataclass
from functools import cache
from types import NoneType
from types import UnionType
from typing import Any
from typing import TypeVar
from typing import Union
from typing import get_args
from typing import get_origin
from typing import get_type_hints

T = TypeVar("T")

MOST_BYTES = 16 * 2**20  # of one text: a model of 10,000 modules has some 10 MB

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


class CodecError(ValueError):
    """The text is not JSON, or not that of the dataclass that was asked for."""


def dumps(value: Any) -> str:
    """``value``, a dataclass of dataclasses, tuples, mappings, strings, numbers and None, as JSON on one line."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":"))


def loads(kind: type[T], text: str | bytes) -> T:
    """The ``kind`` that ``text`` is the JSON of. Raises CodecError, also where it is longer than any run's."""
    if len(text) > MOST_BYTES:
        raise CodecError(f"expected {MOST_BYTES:,} bytes at most, found {len(text):,}")
    try:
        return build(kind, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not the JSON of {kind.__name__}: {error}") from None


def plain(value: Any) -> Any:
    """``value`` as dicts, lists and scalars that JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(value.__dict__[field.name]) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def build(kind: type[T], value: Any) -> T:
    """The ``kind`` that ``plain`` made ``value`` from. Raises CodecError."""
    built: T = _convert(kind, value)
    return built


def _convert(kind: Any, value: Any) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _convert_union(get_args(kind), value)
    if origin is tuple:
        return _convert_tuple(get_args(kind), value)
    if origin is Mapping:
        item = get_args(kind)[1]
        return {str(key): _convert(item, held) for key, held in _expect(dict, value).items()}
    if is_dataclass(kind):
        return _convert_dataclass(kind, _expect(dict, value))
    if kind is float:
        return _convert_float(value)
    return _expect(kind, value)


def _convert_union(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and NoneType in kinds:
        return None
    chosen = [kind for kind in kinds if kind is not NoneType]
    return _convert(chosen[0], value)


def _convert_tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    items = _expect(list, value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_convert(kinds[0], item) for item in items)
    if len(items) != len(kinds):
        raise CodecError(f"expected {len(kinds)} items, found {len(items)}")
    return tuple(_convert(kind, item) for kind, item in zip(kinds, items, strict=True))


def _convert_float(value: Any) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CodecError(f"expected a number, found {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise CodecError("a number is too large") from None


def _convert_dataclass(kind: Any, value: dict[str, Any]) -> Any:
    types = _types(kind)
    given = {field.name: _convert(types[field.name], value[field.name]) for field in fields(kind) if field.name in value}
    lacking = [field.name for field in fields(kind) if field.name not in value and not _has_default(field)]
    if lacking:
        raise CodecError(f"{kind.__name__} lacks {', '.join(lacking)}")
    return kind(**given)


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _expect(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CodecError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
