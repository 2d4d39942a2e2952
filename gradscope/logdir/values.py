"""Puts arrays and texts into TensorBoard's summary values, and takes them out again without believing their shapes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from gradscope.logdir.tags import PLUGIN
from gradscope.logdir.tags import VERSION

MOST_DIMENSIONS = 8  # of an array: ours have two

_DTYPES: dict[int, np.dtype[Any]] = {
    types_pb2.DT_HALF: np.dtype("<f2"),
    types_pb2.DT_FLOAT: np.dtype("<f4"),
    types_pb2.DT_DOUBLE: np.dtype("<f8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def array_value(tag: str, array: npt.NDArray[Any]) -> Summary.Value:
    """A float16, float32 or float64 array, bytes packed."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in array.shape])
    tensor = TensorProto(dtype=_CODES[little.dtype], tensor_shape=shape, tensor_content=little.tobytes())
    return Summary.Value(tag=tag, tensor=tensor)


def text_value(tag: str, text: str) -> Summary.Value:
    """One string of rank 0."""
    tensor = TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=TensorShapeProto())
    tensor.string_val.append(text.encode("utf-8", "replace"))
    return Summary.Value(tag=tag, tensor=tensor)


def own_metadata(**facts: Any) -> SummaryMetadata:
    """What makes a value gradscope's own: the plugin's name and, as JSON, the version of the format and ``facts``."""
    content = json.dumps({"version": VERSION, **facts}).encode()
    data = SummaryMetadata.PluginData(plugin_name=PLUGIN, content=content)
    return SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)


def array_of(tensor: TensorProto) -> npt.NDArray[Any] | None:
    """The array in ``tensor`` as a read-only view, or None where its bytes are not what its type and shape claim."""
    dtype = _DTYPES.get(tensor.dtype)
    if len(tensor.tensor_shape.dim) > MOST_DIMENSIONS:
        return None
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if dtype is None or math.prod(shape) * dtype.itemsize != len(tensor.tensor_content):
        return None
    try:
        array: npt.NDArray[Any] = np.frombuffer(tensor.tensor_content, dtype=dtype).reshape(shape)
    except ValueError:
        return None  # several negative sizes, or more dimensions than numpy takes
    return array


def text_of(tensor: TensorProto) -> bytes | None:
    """The string in ``tensor``, or None where it holds none."""
    if tensor.dtype != types_pb2.DT_STRING or len(tensor.string_val) != 1:
        return None
    return bytes(tensor.string_val[0])


def scalar_of(value: Summary.Value) -> float | None:
    """The single number in ``value`` in any of the forms that logging libraries write, or None."""
    if value.WhichOneof("value") == "simple_value":
        return float(value.simple_value)
    if value.WhichOneof("value") != "tensor":
        return None
    tensor = value.tensor
    if tensor.tensor_content:
        array = array_of(tensor)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
    for numbers in (tensor.float_val, tensor.double_val):
        if len(numbers) == 1:
            return float(numbers[0])
    return None
