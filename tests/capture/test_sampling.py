from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradscope.capture.sampling import ELEMENTS
from gradscope.capture.sampling import SAMPLES
from gradscope.capture.sampling import UNITS
from gradscope.capture.sampling import VECTOR_SAMPLES
from gradscope.capture.sampling import Axes
from gradscope.capture.sampling import block
from gradscope.capture.sampling import parameter_block
from gradscope.capture.sampling import parameter_grid
from gradscope.capture.sampling import runs
from gradscope.capture.sampling import spread

CPU = torch.device("cpu")


@given(st.integers(1, 100_000), st.integers(1, 1024))
def test_indices_are_different_where_there_are_enough(size, count):
    found = spread(size, count)
    assert len(found) == count
    assert found.min() >= 0
    assert found.max() < size
    assert len(set(found.tolist())) == min(size, count)


@pytest.mark.parametrize("size", [1 << 16, 50_000, 4097])
def test_indices_fill_the_whole_evenly(size):
    found = sorted(spread(size, 1024).tolist())
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps) < 4 * size / 1024
    assert found[0] < 4 * size / 1024
    assert found[-1] > size - 4 * size / 1024


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 8, 64])
def test_the_block_is_batch_by_position_by_unit(batch):
    tensor = torch.arange(batch * 50 * 7 * 5).view(batch, 50, 7, 5)
    found = block(tuple(tensor.shape), tensor.stride(), Axes(unit=1, batch=0), SAMPLES, CPU)
    picked = tensor.flatten()[found.index].view(found.batch, SAMPLES // found.batch, UNITS)
    b, c, place = picked // 1750, picked % 1750 // 35, picked % 35
    assert (c == c[:1, :1]).all()  # one unit in each column
    assert (place == place[:1, :, :1]).all()  # one position in each row, the same for its whole group
    assert all(len(set(group.tolist())) == found.batch for group in b[:, :, 0].T)
    assert found.batch == max(n for n in (1, 2, 4, 8) if n <= batch)


@given(st.integers(1, 100_000), st.sampled_from([8, 32, 1024]))
def test_runs_are_of_neighbours_and_different_where_there_are_enough(size, count):
    found = runs(size, count)
    assert len(found) == count
    assert 0 <= found.min() <= found.max() < size
    assert len(set(found.tolist())) == min(size, count)
    if size >= count:
        run = count // 4
        assert (found.reshape(-1, run) - found[::run, None] == range(run)).all()


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES // 4])
@pytest.mark.parametrize("shape", [(40, 50), (64, 3, 5, 5), (3, 1000), (500, 2)])
def test_a_parameters_block_has_one_row_in_each_column(shape, samples):
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    picked = tensor.flatten()[parameter_block(shape, tensor.stride(), samples, CPU).index].view(samples, UNITS)
    rows, columns = picked // tensor.stride(0), picked % tensor.stride(0)
    assert (rows == rows[:1]).all()
    assert (columns == columns[:, :1]).all()
    assert len(set(rows[0].tolist())) == min(shape[0], UNITS)
    assert len(set(columns[:, 0].tolist())) == min(tensor.stride(0), samples)


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES // 2, SAMPLES // 4])
@pytest.mark.parametrize("shape", [(32, 32), (40, 50), (64, 3, 5, 5), (1000, 33)])
def test_a_parameters_grid_has_one_row_in_each_column(shape, samples):
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    grid = parameter_grid(shape, tensor.stride(), samples)
    picked = tensor.as_strided(grid.shape, grid.strides).reshape(samples, UNITS)
    rows, columns = picked // tensor.stride(0), picked % tensor.stride(0)
    assert (rows == rows[:1]).all()
    assert (columns == columns[:, :1]).all()
    assert len(set(rows[0].tolist())) == UNITS
    assert len(set(columns[:, 0].tolist())) == samples


@pytest.mark.parametrize(
    "tensor", [torch.zeros(31, 99), torch.zeros(99, 31), torch.zeros(99), torch.zeros(64, 3, 5, 5).permute(0, 2, 3, 1)]
)
def test_a_parameter_that_is_small_or_laid_out_otherwise_has_no_grid(tensor):
    assert parameter_grid(tuple(tensor.shape), tensor.stride(), SAMPLES) is None


@given(st.lists(st.integers(1, 9), max_size=4), st.randoms(use_true_random=False))
def test_offsets_stay_inside_in_any_layout(shape, random):
    order = random.sample(range(len(shape)), len(shape))
    tensor = torch.zeros([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
    assert list(tensor.shape) == shape
    axes = Axes(unit=len(shape) - 1 if shape else None, batch=0 if len(shape) > 1 else None)
    for found in (
        block(tuple(shape), tensor.stride(), axes, SAMPLES, CPU),
        parameter_block(tuple(shape), tensor.stride(), SAMPLES, CPU),
    ):
        assert found.index.shape[0] in (ELEMENTS, VECTOR_SAMPLES * UNITS)
        assert 0 <= int(found.index.min()) <= int(found.index.max()) < found.flat[0] <= max(tensor.numel(), 1)
