"""The files that the page is made of, read once; nothing but these is ever served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import final

from gradscope.tensorboard.replies import Reply

FOLDER = Path(__file__).with_name("page")

# By name and not by the machine's own table, which can be wrong: a browser runs no module of another type.
_TYPES = {
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
    "png": "image/png",
    "woff2": "font/woff2",
    "json": "application/json",
}


@final
class PageFiles:
    """Files below ``page/`` whose endings are known, by their path."""

    def find(self, path: str) -> Reply | None:
        return self._files.get(path)

    @cached_property
    def _files(self) -> dict[str, Reply]:
        return dict(_below(FOLDER))


def _below(folder: Path) -> Iterator[tuple[str, Reply]]:
    for path in sorted(folder.rglob("*")):
        media_type = _TYPES.get(path.suffix[1:])
        if media_type is not None and path.is_file():
            with suppress(OSError):  # what cannot be read is missing, and the page says so
                yield path.relative_to(folder).as_posix(), Reply(path.read_bytes(), media_type)
