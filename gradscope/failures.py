"""Gradscope's own warnings: each has a slug with a paragraph in docs/messages.md."""

from __future__ import annotations

import warnings


class GradscopeWarning(UserWarning):
    """Something about the watching, not about the training: what happened and what goes on without it."""


def warn(slug: str, message: str) -> None:
    """Show one warning that ends with its slug, by which docs/messages.md explains it."""
    warnings.warn(f"{message} [gradscope:{slug}]", GradscopeWarning, stacklevel=3)
