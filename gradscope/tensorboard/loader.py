"""Where TensorBoard enters: every start of TensorBoard imports this, so it imports next to nothing and never raises."""

from __future__ import annotations

import argparse
from typing import final

from tensorboard.plugins import base_plugin

NAME = "gradscope"
SAMPLES = 2048  # sampled steps that TensorBoard holds of a run: as many as the report goes by


@final
class Loader(base_plugin.TBLoader):  # type: ignore[misc]
    """Gives TensorBoard the tab, or nothing: whatever is wrong with gradscope, TensorBoard starts."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Have both of TensorBoard's loaders hold more than their 10 or 100 records of a tag; what the user asked for wins."""
        samples = vars(flags).get("samples_per_plugin")
        if isinstance(samples, dict):
            samples.setdefault(NAME, SAMPLES)

    def load(self, context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
        # Imported here: an error in an entry point's module would keep TensorBoard from starting.
        try:
            from gradscope.tensorboard.plugin import Plugin

            return Plugin(context)
        except Exception:
            return _apologetic(context)


def _apologetic(context: base_plugin.TBContext) -> base_plugin.TBPlugin | None:
    try:
        from gradscope.tensorboard.apology import Apology
    except Exception:
        return None
    return Apology(context)
