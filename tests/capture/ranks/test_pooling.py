"""One frame from those of many ranks: what all of their elements together would have given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradscope.capture.ranks import pooling
from gradscope.capture.ranks.packing import MISSING
from gradscope.capture.ranks.packing import Packer
from gradscope.capture.ranks.packing import Unpacker
from gradscope.capture.ranks.packing import packed
from gradscope.capture.ranks.packing import unpacked
from gradscope.capture.ranks.pooling import Form
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import Schema
from gradscope.records import Site
from tests.capture.ranks.fabric import reduced

SCHEMA = Schema((Site("x"),), (Site("a"), Site("b")), (Site("a.weight"), Site("b.weight")))
NONE = np.zeros(2, dtype=bool)


def together(frames: list[Frame], split: Array = NONE) -> Frame:
    form = Form(SCHEMA, split, ~split, histograms=any(frame.histograms for frame in frames))
    given = []
    for rank, frame in enumerate(frames):
        packer = Packer(rank)
        pooling.pack(packer, frame, form)
        given.append(packer.done())
    return pooling.unpack(Unpacker(reduced(given)), frames[0], form, len(frames))


def of(**columns: list[float]) -> Frame:
    named = {name.replace("__", "."): np.array(values, dtype=np.float32) for name, values in columns.items()}
    return Frame(3, SCHEMA, named)


@pytest.mark.parametrize("ranks", [2, 8, 1000])
def test_a_number_and_its_rank_survive_the_packing(ranks: int) -> None:
    values = (np.random.default_rng(0).standard_normal(ranks) * 10.0 ** np.arange(ranks).clip(0, 30)).astype(np.float32)
    tops = np.concatenate([packed(value, rank) for rank, value in enumerate(values)])
    back, owners = unpacked(tops)
    assert back.astype(np.float32).tolist() == values.tolist()
    assert owners.tolist() == list(range(ranks))
    assert unpacked(tops.max(keepdims=True))[1] == values.argmax()


def test_what_is_missing_is_less_than_anything_else() -> None:
    assert packed(math.nan, 5)[0] == MISSING
    assert packed(-math.inf, 0)[0] > MISSING
    assert np.isnan(unpacked(packed(math.nan, 5))).all()
    assert unpacked(packed([math.inf, -math.inf], 1))[0].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("ranks", [2, 8, 1000])
def test_pooled_numbers_are_those_of_all_elements(ranks: int) -> None:
    x = np.random.default_rng(1).standard_normal((ranks, 64)).astype(np.float32)
    frames = [
        of(
            activation__mean=[one.mean(), math.nan],
            activation__rms=[np.sqrt((one**2).mean()), math.nan],
            activation__absmax=[np.abs(one).max(), math.nan],
            activation__zero=[0.25, math.nan],
        )
        for one in x
    ]
    found = together(frames).columns
    assert found["activation.mean"][0] == pytest.approx(x.mean(), abs=1e-6)
    assert found["activation.rms"][0] == pytest.approx(np.sqrt((x.astype(np.float64) ** 2).mean()), rel=1e-6)
    assert found["activation.absmax"][0] == np.abs(x).max()
    assert found["activation.zero"][0] == 0.25
    assert all(np.isnan(found[name][1]) for name in ("activation.mean", "activation.rms", "activation.absmax"))


def test_bits_are_those_that_any_rank_has() -> None:
    found = together([of(activation__active_low=[0b0101, 0]), of(activation__active_low=[0b0011, math.nan])]).columns
    assert found["activation.active_low"].tolist() == [0b0111, 0]


def test_histograms_are_shares_of_all() -> None:
    def with_share(share: float) -> Frame:
        shares = np.zeros((2, 64), dtype=np.float32)
        shares[:, 3], shares[:, 4] = share, 1 - share
        return Frame(3, SCHEMA, {}, {"activation": shares})

    found = together([with_share(0.2), with_share(0.6)]).histograms
    assert found["activation"][0, 3] == pytest.approx(0.4)
    assert found["activation"].sum(1).tolist() == pytest.approx([1, 1])
    assert set(found) == {"activation"}


def test_the_norm_of_a_split_weight_is_the_whole_one_s() -> None:
    parts = np.array([[3.0, 0.0], [4.0, 0.0]])
    scale = math.sqrt(2)  # what each rank says of the whole: its part's norm times the root of the number of parts
    frames = [of(weight__norm=[scale * np.linalg.norm(part), 7.0]) for part in parts]
    found = together(frames, np.array([True, False])).columns["weight.norm"]
    assert found.tolist() == pytest.approx([5.0, 7.0])


def test_one_that_holds_none_of_a_split_weight_adds_nothing() -> None:
    frames = [of(weight__norm=[math.sqrt(2) * 5.0, 7.0]), of(weight__norm=[math.nan, 7.0])]
    assert together(frames, np.array([True, False])).columns["weight.norm"][0] == pytest.approx(5.0)


def test_what_is_the_same_everywhere_is_the_first_rank_s() -> None:
    frames = [of(update__ratio=[0.1, 0.2]), of(update__ratio=[0.3, 0.4])]
    assert together(frames).columns["update.ratio"].tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("ranks", [3, 8, 1000])
def test_the_rank_whose_weights_differ_is_named(ranks: int) -> None:
    norms = [of(weight__norm=[2.0, 3.0 + (0.01 if rank == ranks // 2 else 0.0)]) for rank in range(ranks)]
    found = together(norms).columns
    assert found["weight.ranks_apart"][0] == 0
    assert found["weight.ranks_apart"][1] == pytest.approx(0.01 / 3, rel=1e-3)
    assert found["weight.ranks_apart_rank"][1] == ranks // 2


def test_rounding_is_no_difference() -> None:
    norms = [of(weight__norm=[2.0, np.nextafter(np.float32(3), np.float32(4))]), of(weight__norm=[2.0, 3.0])]
    assert together(norms).columns["weight.ranks_apart"].tolist() == [0, 0]


@pytest.mark.parametrize("ranks", [3, 8, 1000])
def test_the_rank_that_stands_apart_does_not_hide_in_its_own_spread(ranks: int) -> None:
    draws = np.random.default_rng(2).normal(0, 0.01, ranks)
    draws[1] += 1.5
    found = together([of(activation__rms=[10.0**draw, math.nan]) for draw in draws]).columns
    assert found["activation.apart_rank"][0] == 1
    assert found["activation.apart"][0] == pytest.approx(1.5, abs=0.05)
    assert found["activation.apart_spread"][0] == pytest.approx(np.delete(draws, 1).std(), rel=0.01)


def test_of_two_ranks_the_second_is_named_and_nothing_is_said_of_the_spread() -> None:
    for rms in (0.01, 100.0):
        found = together([of(input__rms=[1.0]), of(input__rms=[rms])]).columns
        assert found["input.apart"][0] == pytest.approx(math.log10(rms))
        assert found["input.apart_rank"][0] == 1
        assert np.isnan(found["input.apart_spread"][0])


def test_one_rank_with_nan_is_told() -> None:
    found = together([of(input__nonfinite=[0.0]), of(input__nonfinite=[0.0]), of(input__nonfinite=[0.1])]).columns
    assert found["input.broken_ranks"][0] == 1
    assert found["input.broken_rank"][0] == 2
    assert found["input.nonfinite"][0] == pytest.approx(0.1 / 3)
