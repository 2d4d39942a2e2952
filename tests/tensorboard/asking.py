"""The server half without a server: TensorBoard's own data provider over a log directory, and what our routes answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext

from gradscope.tensorboard.replies import Failure
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.server import Server
from tests.tensorboard.board import unpacked

ASKER = (RequestContext(), "")


class Asking:
    """What TensorBoard's Python loader has read of ``logdir`` so far, asked directly."""

    def __init__(self, logdir: Path, *, keep: int = 0) -> None:
        """``keep`` is how many records of a tag it holds, 0 for all."""
        multiplexer = EventMultiplexer(tensor_size_guidance={"gradscope": keep})
        multiplexer.AddRunsFromDirectory(str(logdir))
        multiplexer.Reload()
        self.provider = MultiplexerDataProvider(multiplexer, str(logdir))
        self.server = Server(self.provider, samples=keep)

    def ask(self, route: str, **parameters: Any) -> Reply:
        return self.server.answer(route, ASKER, {name: str(value) for name, value in parameters.items()})

    def json(self, route: str, **parameters: Any) -> Any:
        return json.loads(self.ask(route, **parameters).content)

    def numbers(self, route: str, **parameters: Any) -> tuple[Any, np.ndarray]:
        return unpacked(self.ask(route, **parameters).content)

    def failure(self, route: str, **parameters: Any) -> tuple[int, str]:
        """Status and sentence of a request that cannot be answered."""
        try:
            reply = self.ask(route, **parameters)
        except Failure as failure:
            return failure.status, str(failure)
        raise AssertionError(reply.content)
