"""A CUDA graph that is captured amid a watched training: left as it is, and said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture import cuda_graphs
from tests.capture.watching import step
from tests.capture.watching import watching


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures a real CUDA graph, which needs a CUDA device")
def test_a_captured_step_is_what_it_is_with_nobody_watching(tmp_path):
    """Warm-up, capture, replays: the same weights, and the steps that ``scope.step()`` tells of are counted."""
    alone, watched = (_replayed(logdir) for logdir in (None, tmp_path))
    assert all(torch.equal(left, right) for left, right in zip(alone, watched, strict=True))
    assert gradscope.read(tmp_path).runs[0].steps == 3 + 10


def _replayed(logdir):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, capturable=True)
    inputs, graph = torch.randn(16, 8, device="cuda"), torch.cuda.CUDAGraph()
    scope = gradscope.attach(model, logdir, every=1) if logdir is not None else None

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step(model, optimizer, inputs)
    torch.cuda.current_stream().wait_stream(aside)
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        model(inputs).square().mean().backward()
        optimizer.step()
    for _ in range(10):
        graph.replay()
        if scope is not None:
            scope.step()
    if scope is not None:
        scope.close()
    return [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.fixture
def capturing(monkeypatch):
    """Torch's word for a capture under way, to be switched on: without a device none can be."""
    state = {"on": False}
    monkeypatch.setattr(cuda_graphs.CAPTURES, "possible", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["on"])
    monkeypatch.setattr(cuda_graphs.CAPTURES, "_told", False)
    return state


def test_nothing_is_gathered_counted_or_clipped_during_a_capture_and_one_warning_says_so(capturing, recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(8, 4)
    with watching(model) as seen:
        step(model, optimizer, inputs)
        capturing["on"] = True
        for _ in range(2):
            step(model, optimizer, inputs)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        capturing["on"] = False
        seen.watch.manual_step()
    assert ["[gradscope:cuda-graph]" in str(warning.message) for warning in recwarn.list] == [True]
    assert [pulse["step"] for pulse in seen.pulses] == [0, 1]
    assert seen.pulses[1]["backwards"] == 0
    assert seen.get("activation.rms", "0", step=0) > 0


def test_a_training_without_one_is_told_nothing(capturing, recwarn):
    model = nn.Linear(4, 1)
    with watching(model) as seen:
        step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 4))
    assert len(seen.pulses) == 1
    assert not recwarn.list
