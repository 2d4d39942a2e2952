"""What TensorBoard holds of gradscope's records, asked of its data provider and of nothing else."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from time import thread_time
from typing import Any
from typing import final

from tensorboard.data import provider as data

from gradscope.logdir.errors import LogdirError
from gradscope.logdir.replay import check_version
from gradscope.logdir.tags import META
from gradscope.logdir.tags import PLUGIN
from gradscope.logdir.tags import REPORT
from gradscope.tensorboard.blocks import MOST_STEPS
from gradscope.tensorboard.replies import Failure

Asker = tuple[Any, str]  # the context of a request and the experiment that it is about
Tags = Mapping[str, data.TensorTimeSeries]

ALL = 10**6  # records: TensorBoard would thin them once more, at random
TEXT_PLUGIN = "text"
REST = 10.0  # times as long as a listing took, until the next
LEAST_REST, MOST_REST = 0.25, 5.0  # seconds

_log = logging.getLogger("gradscope.tensorboard")


@final
class Unsound(Exception):
    """A tag has a record that is no tensor: TensorBoard then gives none of the tag's."""


@dataclass(frozen=True)
class Listing:
    runs: Mapping[str, Tags]  # those with anything of ours
    all_runs: tuple[str, ...]


@final
class Source:
    """Asks the data provider; what it lists is asked for at most as often as leaves it time for other things."""

    def __init__(self, provider: data.DataProvider) -> None:
        self._provider = provider
        self._lock = Lock()
        self._listings: dict[str, tuple[Listing, float]] = {}  # and until when each is good

    def listing(self, asker: Asker) -> Listing:
        with self._lock:
            held = self._listings.get(asker[1])
            if held is not None and monotonic() < held[1]:
                return held[0]
            began = thread_time()  # what it took itself: while TensorBoard loads, it waits for long
            listing = self._list(asker)
            rest = min(max(REST * (thread_time() - began), LEAST_REST), MOST_REST)
            self._listings = {asker[1]: (listing, monotonic() + rest)}
            return listing

    def read(self, asker: Asker, run: str, tag: str) -> list[data.TensorDatum]:
        """Every record of a tag that TensorBoard holds, in the order in which it gives them. Raises Failure and Unsound."""
        return list(self.read_several(asker, run, [tag]).get(tag, ()))

    def read_several(self, asker: Asker, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[data.TensorDatum]]:
        """The records of several tags with one request; they are statistics where they are more than one."""
        plugin = TEXT_PLUGIN if tags[0] == REPORT else PLUGIN
        chosen = data.RunTagFilter(runs=[run], tags=tags)
        try:
            found = self._provider.read_tensors(
                asker[0], experiment_id=asker[1], plugin_name=plugin, downsample=ALL, run_tag_filter=chosen
            )
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            reason = _first_line(error)
            raise Unsound(f"{tags[0]}: a record's tensor is not sound ({reason}); none of them can be shown.") from error
        except Exception as error:
            _log.warning("TensorBoard could not give %r of %r: %r", tags[0], run, error)
            raise Failure(503, f"TensorBoard could not give {tags[0]}: {_first_line(error)}.") from error
        of_run: Mapping[str, Sequence[data.TensorDatum]] = found.get(run, {})
        return of_run

    def _list(self, asker: Asker) -> Listing:
        context, experiment = asker
        try:
            own = self._provider.list_tensors(context, experiment_id=experiment, plugin_name=PLUGIN)
            only_report = data.RunTagFilter(tags=[REPORT])
            texts = self._provider.list_tensors(
                context, experiment_id=experiment, plugin_name=TEXT_PLUGIN, run_tag_filter=only_report
            )
            names = tuple(run.run_name for run in self._provider.list_runs(context, experiment_id=experiment))
        except Exception as error:
            raise Failure(503, f"TensorBoard could not list its runs: {_first_line(error)}.") from error
        merged = {run: {**own.get(run, {}), **texts.get(run, {})} for run in {**own, **texts}}
        return Listing({run: tags for run, tags in sorted(merged.items()) if tags}, names)


def etag_of(tags: Tags) -> str:
    """Another one whenever a record has come."""
    states = "\n".join(f"{tag} {series.max_step} {series.max_wall_time!r}" for tag, series in sorted(tags.items()))
    return hashlib.sha256(states.encode("utf-8", "replace")).hexdigest()[:16]


def newer(tags: Tags) -> str | None:
    """What to do where a newer gradscope wrote the records, as a sentence."""
    try:
        for tag, series in tags.items():
            if tag != REPORT:
                check_version(series.plugin_content)
    except LogdirError as error:
        return str(error)
    return None


def max_step(tags: Tags) -> int | None:
    """The last step of which anything is known."""
    steps = [series.max_step for tag, series in tags.items() if tag != META]  # a run is described before its first step
    return max((step for step in steps if step is not None and 0 <= step < MOST_STEPS), default=None)


def begun(tags: Tags) -> float | None:
    """About when the run began, seconds since the epoch: when its description was written last, which is early."""
    wall = tags[META].max_wall_time if META in tags else None
    return wall if wall is not None and math.isfinite(wall) else None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
