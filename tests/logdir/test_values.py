from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from hypothesis.extra.numpy import arrays
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.util import tensor_util

from gradscope.logdir.values import array_of
from gradscope.logdir.values import array_value


@settings(derandomize=True, deadline=None)
@given(arrays(st.sampled_from([np.float16, np.float32, np.float64]), array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_and_tensorboard_reads_the_same(array):
    tensor = array_value("tag", array).tensor
    np.testing.assert_array_equal(array_of(tensor), array)
    if array.size:
        np.testing.assert_array_equal(tensor_util.make_ndarray(tensor), array)


@pytest.mark.parametrize("shape", [[], [1], [3], [-1], [-1, -2], [-1, 2], [2**62, 2**62], [2**40], [0], [1] * 500 + [2]])
def test_a_shape_is_not_believed(shape):
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    assert array_of(TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=dims, tensor_content=bytes(8))) is None


def test_a_type_that_is_not_ours_is_left_out():
    dims = TensorShapeProto(dim=[TensorShapeProto.Dim(size=2)])
    assert array_of(TensorProto(dtype=types_pb2.DT_INT32, tensor_shape=dims, tensor_content=bytes(8))) is None
    assert array_of(TensorProto(dtype=999, tensor_shape=dims, tensor_content=bytes(8))) is None
