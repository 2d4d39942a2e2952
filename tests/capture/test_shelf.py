"""Frames keep their numbers in few pieces of memory."""

from __future__ import annotations

import numpy as np

from gradscope.capture.shelf import PIECE
from gradscope.capture.shelf import Shelf


def test_numbers_stay_as_they_are_and_lie_together():
    shelf = Shelf()
    given = [{"a": np.arange(i, i + 3, dtype=np.float32), "b": np.full((2, 4), i, dtype=np.float32)} for i in range(5)]
    placed = [shelf.put(arrays) for arrays in given]
    for arrays, held in zip(given, placed, strict=True):
        assert held.keys() == arrays.keys()
        for name in arrays:
            np.testing.assert_array_equal(held[name], arrays[name])
            assert held[name].base is placed[0]["a"].base


def test_a_new_piece_leaves_the_old_one_alone():
    shelf = Shelf()
    first = shelf.put({"a": np.ones(PIECE - 1, dtype=np.float32)})
    second = shelf.put({"a": np.zeros(2, dtype=np.float32), "none": np.zeros(0, dtype=np.float32)})
    large = shelf.put({"a": np.full(2 * PIECE, 3, dtype=np.float32)})
    assert (first["a"] == 1).all()
    assert second["a"].tolist() == [0, 0]
    assert second["none"].shape == (0,)
    assert (large["a"] == 3).all()
