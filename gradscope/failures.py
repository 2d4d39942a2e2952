"""Gradscope's own warnings: each has a slug with a paragraph in docs/messages.md."""

from __future__ import annotations

import sys
import warnings


class GradscopeWarning(UserWarning):
    """Something about the watching, not about the training: what happened and what goes on without it."""


def warn(slug: str, message: str) -> None:
    """Show one warning that ends with its slug, by which docs/messages.md explains it."""
    text = f"{message} [gradscope:{slug}]"
    try:
        warnings.warn(text, GradscopeWarning, stacklevel=3)
    except GradscopeWarning:  # where warnings are errors, a training must not end by one of ours
        print(text, file=sys.stderr)
