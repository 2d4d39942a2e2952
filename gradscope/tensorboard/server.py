"""Answers what the page asks: finds the run, hands it to the route."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from typing import final

from tensorboard.data import provider as data

from gradscope.tensorboard.judging import Judge
from gradscope.tensorboard.judging import Judgement
from gradscope.tensorboard.reading import Memory
from gradscope.tensorboard.reading import Reading
from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import as_json
from gradscope.tensorboard.routes import histogram
from gradscope.tensorboard.routes import matrix
from gradscope.tensorboard.routes import profile
from gradscope.tensorboard.routes import report
from gradscope.tensorboard.routes import runs
from gradscope.tensorboard.routes import scalars
from gradscope.tensorboard.routes import schema
from gradscope.tensorboard.routes import text
from gradscope.tensorboard.shelf import Shelf
from gradscope.tensorboard.source import Asker
from gradscope.tensorboard.source import Listing
from gradscope.tensorboard.source import Source
from gradscope.tensorboard.source import etag_of
from gradscope.tensorboard.view import View

MOST_VIEWS = 16  # runs of which more is kept than what was read

_OF_VIEWS: Mapping[str, Callable[[View, Mapping[str, str]], Reply]] = {
    "schema": schema.answer,
    "matrix": matrix.answer,
    "histogram": histogram.answer,
    "scalars": scalars.answer,
}


@final
class Server:
    """All that lies between the page and the data provider; ``samples`` is how many records of a tag that holds, 0 for all."""

    def __init__(self, provider: data.DataProvider, *, samples: int) -> None:
        self._source = Source(provider)
        self._memory = Memory()
        self._views: Shelf[View] = Shelf(MOST_VIEWS, lambda _: 1)
        self._judge = Judge()
        self._samples = samples

    def answer(self, route: str, asker: Asker, arguments: Mapping[str, str]) -> Reply:
        """Raises Failure."""
        listing = self._source.listing(asker)
        if route == "runs":
            return self._runs(asker, listing)
        view = self._view(asker, listing, arguments.get("run"))
        if route in _OF_VIEWS:
            return _OF_VIEWS[route](view, arguments)
        key = (asker[1], view.run)
        if route == "profile":
            return profile.answer(view, arguments, self._judge.known(key))
        judgement = self._judgement(key, view)
        return report.answer(view, judgement) if route == "report" else text.answer(view, arguments, judgement)

    def _judgement(self, key: tuple[str, str], view: View) -> Judgement | None:
        """None where nothing but the report that the training wrote is there."""
        if not len(view.steps) and not view.pulses and not view.described and view.written_report is not None:
            return None
        return self._judge.judged(key, view)

    def _view(self, asker: Asker, listing: Listing, run: str | None) -> View:
        if run is None:
            raise Failure(400, "Expected the parameter run, found none.")
        if run not in listing.runs:
            raise Failure(404, f"There is no run {run!r} with data of gradscope's.")
        tags = listing.runs[run]

        def made() -> View:
            return View(Reading(self._source, self._memory, asker, run, tags, samples=self._samples))

        view = self._views.get((asker[1], run), made, version=etag_of(tags))
        if view.error is not None:
            raise Failure(409, view.error)
        return view

    def _runs(self, asker: Asker, listing: Listing) -> Reply:
        known = {run: (self._views.held((asker[1], run)), self._judge.known((asker[1], run))) for run in listing.runs}
        return Reply(as_json(runs.document(listing, known)), "application/json")
