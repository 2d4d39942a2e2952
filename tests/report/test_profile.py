from __future__ import annotations

import math

import pytest

from gradscope.report.glyphs import ASCII
from gradscope.report.glyphs import UNICODE
from gradscope.report.profile import MOST_ROWS
from gradscope.report.profile import Gap
from gradscope.report.profile import Scale
from gradscope.report.profile import shown
from tests.report.examples import rows


def test_a_net_of_up_to_sixteen_layers_is_shown_whole():
    assert shown(rows(MOST_ROWS)) == list(rows(MOST_ROWS))


def test_of_a_deep_net_both_ends_and_what_is_marked_are_shown():
    net = rows(60, marked=(20, 41))
    expected = [*net[:5], Gap(15), net[20], Gap(20), net[41], Gap(13), *net[55:]]
    assert shown(net) == expected


@pytest.mark.parametrize("count", [17, 18, 60, 1000])
@pytest.mark.parametrize("marked", [(), (0, 5, 6), tuple(range(1000))])
def test_shown_layers_and_gaps_make_up_the_net(count, marked):
    result = shown(rows(count, marked=marked))
    assert sum(row.layers if isinstance(row, Gap) else 1 for row in result) == count
    assert sum(not isinstance(row, Gap) for row in result) <= MOST_ROWS


def test_a_tenfold_number_has_a_bar_longer_by_the_same_length():
    scale = Scale.over([1e-4, 1.0])
    lengths = [len(scale.bar(10.0**power, width=42, glyphs=ASCII)) for power in (-4, -3, -2, -1, 0)]
    assert lengths == [2, 12, 22, 32, 42]


def test_layers_of_one_scale_look_alike():
    scale = Scale.over([0.5, 1.0, 2.0])
    assert len(scale.bar(0.5, width=12, glyphs=UNICODE)) >= 10


@pytest.mark.parametrize(
    ("value", "bar"),
    [(math.nan, ""), (0.0, ""), (1e-30, "▏"), (1.0, "████"), (math.inf, "████")],
)
def test_bars_at_the_edges(value, bar):
    assert Scale.over([1.0, math.inf, math.nan, 0.0]).bar(value, width=4, glyphs=UNICODE) == bar


def test_a_bar_ends_in_a_part_of_a_cell():
    assert Scale(0.0, 4.0).bar(10**2.5, width=4, glyphs=UNICODE) == "██▌"


def test_a_scale_over_nothing_draws_infinity_full():
    assert Scale.over([math.nan, math.inf]).bar(math.inf, width=3, glyphs=ASCII) == "###"
