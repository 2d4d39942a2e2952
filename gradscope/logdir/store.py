"""A directory in a store that fsspec reaches: its files are listed, read and put; nothing is ever appended or removed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from typing import final

from gradscope.logdir.address import Address
from gradscope.logdir.address import without_secrets

_LONGEST = 200  # characters of an error's own text that a message repeats
_UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ClientConnectorError", "ConnectionError")
_NO_LOGIN = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
# Stores that have no directories; to make one could make a bucket.
_OBJECTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"})


@dataclass(frozen=True)
class Stored:
    """A file in a store."""

    path: PurePosixPath  # below the store's directory
    size: int


@final
class Store:
    """One directory of a store. What its methods raise differs from store to store; ``why`` puts it into words."""

    def __init__(self, address: Address) -> None:
        from fsspec.core import url_to_fs  # here, because importing it takes longer than a report of a local directory has

        self._fs, root = url_to_fs(address.text, **_options(address.scheme))
        self._root = root.rstrip("/")
        self._with_directories = address.scheme not in _OBJECTS
        self.path = PurePosixPath(self._root)

    def put(self, name: str, data: bytes) -> None:
        """Put a file there, whole; one of the same name is replaced."""
        if self._with_directories:
            self._fs.makedirs(self._root, exist_ok=True)
        self._fs.pipe_file(self._place(name), data)

    def names(self) -> frozenset[str]:
        """What the files directly in the directory are called; none where it does not exist."""
        try:
            found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return frozenset()
        return frozenset(path.rstrip("/").rpartition("/")[2] for path in found)

    def files(self) -> list[Stored]:
        """Every file in the directory and below it."""
        found = self._fs.find(self._root, detail=True)
        return [
            Stored(PurePosixPath(path.removeprefix(self._root).lstrip("/")), int(entry.get("size") or 0))
            for path, entry in found.items()
        ]

    def missing(self) -> bool:
        """Whether not even the bucket, or the topmost directory, is there."""
        top = self._root if self._with_directories else self._root.split("/")[0]
        return not self._fs.exists(top)

    def read(self, path: PurePosixPath, start: int, end: int) -> bytes:
        """Some bytes of a file."""
        return bytes(self._fs.cat_file(self._place(str(path)), start=start, end=end))

    def read_whole(self, paths: list[PurePosixPath]) -> Mapping[PurePosixPath, bytes | Exception]:
        """Several files at once, as quickly as the store gives them; in a file's place the error that it brought."""
        places = {self._place(str(path)): path for path in paths}
        found = self._fs.cat(list(places), on_error="return", recursive=False)
        if not isinstance(found, dict):
            found = dict.fromkeys(places, found)
        return {path: found.get(place, FileNotFoundError(place)) for place, path in places.items()}

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"


def why(error: BaseException) -> str:
    """What a store's error means, in a few words and without secrets."""
    text = " ".join(without_secrets(str(error)).split())[:_LONGEST]
    names = {kind.__name__ for kind in type(error).__mro__}
    if names.intersection(_NO_LOGIN):
        return "no credentials for the store (expected in the environment or in its own configuration, as for its command line)"
    if names.intersection(_UNREACHABLE) or isinstance(error, TimeoutError):
        return f"the store cannot be reached ({text or type(error).__name__})"
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or directory ({text})"
    if isinstance(error, PermissionError):
        return f"the store denies access ({text})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "file":
        return {}
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        # A request that hangs is given up, and tried again by whoever sent it.
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
        if "S3_ENDPOINT" in os.environ:  # what TensorBoard goes by
            options["endpoint_url"] = os.environ["S3_ENDPOINT"]
    return options
