"""Where there is room for copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradscope.capture.probe import room
from gradscope.capture.probe.room import Needs
from gradscope.capture.probe.room import Room
from gradscope.capture.probe.room import obstacle
from gradscope.capture.probe.room import room_on

CPU = torch.device("cpu")
MB = 1 << 20


def test_what_is_spare_does_not_come_on_top():
    need = Needs(weights=100, state=30)
    assert need.beyond(0, again=False) == 200
    assert need.beyond(150, again=False) == 50
    assert need.beyond(0, again=True) == 430
    assert need.beyond(10_000, again=True) == 230  # its backward pass takes what is spare


@pytest.mark.parametrize(("again", "beyond"), [(False, 30), (True, 240)])
def test_it_is_told_how_much_is_lacking(again, beyond, monkeypatch):
    monkeypatch.setattr(room, "room_on", lambda _: Room(spare=170 * MB, beyond=beyond * MB))
    assert obstacle({CPU: Needs(100 * MB, 40 * MB)}, again=again) is None or again
    told = obstacle({CPU: Needs(101 * MB, 40 * MB)}, again=again)
    wanted = 101 * 4 - 170 + 40 if again else 2 * 101 - 170
    assert f"would take {wanted} MB of cpu memory beyond the training's own, and at most {beyond} MB are taken" in told


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a system that tells")
def test_memory_that_was_let_go_is_spare():
    held = torch.ones(64 * MB // 4)
    before = room_on(CPU)
    del held
    assert room_on(CPU).spare >= before.spare + 60 * MB
    assert before.beyond > 0


def test_without_a_word_from_the_system_little_is_taken(monkeypatch):
    monkeypatch.setattr(room, "_STATUS", Path("/nowhere"))
    assert room_on(CPU).spare == 0
    assert 0 < room_on(CPU).beyond <= room.LEAST
