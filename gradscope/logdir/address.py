"""Log directories that are no directories of this machine: ``s3://bucket/run``, and whatever else fsspec has a name for."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

MIRRORS = Path("runs")  # TensorBoard's habit
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*(?:::[A-Za-z][\w+.-]*)*)://(?P<rest>.*)", re.DOTALL)
_LOGIN = re.compile(r"(://)[^/@\s]*@")
_QUERY = re.compile(r"(://[^\s?]*)\?\S*")
_SECRETIVE = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL|CONNECTION_STRING")
_SHORTEST_SECRET = 6
_PRIVATE = frozenset({"memory", "cached", "blockcache", "filecache", "simplecache"})  # only the process that wrote it reads it
_EXTRA = "pip install 'gradscope-torch[remote]'"


def is_address(logdir: object) -> TypeGuard[str]:
    """Whether ``logdir`` is an address rather than a path."""
    return isinstance(logdir, str) and _ADDRESS.fullmatch(logdir) is not None


@dataclass(frozen=True, repr=False)
class Address:
    """Where a store keeps a log directory. As text it is shown without login and query, which may be secret."""

    text: str

    def __str__(self) -> str:
        return without_secrets(self.text)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def __truediv__(self, name: str) -> Address:
        return self if name in ("", ".") else Address(f"{self.text.rstrip('/')}/{name}")

    @property
    def scheme(self) -> str:
        match = _ADDRESS.fullmatch(self.text)
        return match["scheme"] if match else ""

    @property
    def mirror(self) -> Path:
        """The directory of this machine in which the same is recorded first, relative to the working directory."""
        place = str(self).partition("://")[2]
        names = [re.sub(r"[^\w.=+@-]", "_", name) for name in place.split("/") if name not in ("", ".", "..")]
        if "/".join(names) != place.rstrip("/"):  # two addresses must not share a mirror
            names.append(hashlib.sha256(str(self).encode()).hexdigest()[:8])
        return MIRRORS.joinpath(self.scheme.replace("::", "+"), *names)


def missing(address: Address) -> str | None:
    """What this machine lacks to reach ``address``: what was found and what to do, or None where nothing is missing."""
    from fsspec import available_protocols  # fsspec is imported only where an address is given
    from fsspec.registry import known_implementations

    known = available_protocols()
    for protocol in address.scheme.split("::"):
        if protocol not in known:
            return f"fsspec knows no store called {protocol}://; it knows s3, gs, az, file and others that a package adds"
        package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
        if importlib.util.find_spec(package) is None:
            how = _EXTRA if package == "s3fs" else f"pip install {package}"
            return f"{protocol}:// needs the package {package}, which is not installed: {how}"
    return None


def unfit(address: Address) -> str | None:
    """Why a training cannot ship its record to ``address``, or None where it can."""
    first = address.scheme.partition("::")[0]
    if first in _PRIVATE:
        return f"{first}:// is seen by one process alone, so no report could read it: give a path, or the address of a store"
    return missing(address)


def without_secrets(text: str) -> str:
    """``text`` without logins and queries in its addresses, and without what the environment holds as keys and tokens."""
    text = _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRETIVE.search(name.upper()):
            text = text.replace(value, "***")
    return text
