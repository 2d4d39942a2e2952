"""What the sub-run holds in TensorBoard's own formats, for people who look at it without the gradscope plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.scalar import metadata as scalars
from tensorboard.plugins.text import metadata as texts

from gradscope.logdir.values import array_value
from gradscope.records import HISTOGRAM_LOWEST
from gradscope.records import Array
from gradscope.records import Frame
from gradscope.records import Site

LAYOUT_TAG: str = custom_scalars.CONFIG_SUMMARY_TAG
HISTOGRAM_KINDS = ("activation", "activation_gradient", "weight_gradient")
HISTOGRAMS_EACH = 16

CHARTS = (
    ("Loss", "loss"),
    ("Gradient norm", "gradient_norm"),
    ("Learning rate", "learning_rate"),
    ("Update over weight: median and largest", "update_ratio_(median|max)"),
    ("Scale of activations: first, middle and last layer", "activation_rms_(first|middle|last)"),
    ("Scale of gradients: first, middle and last layer", "gradient_rms_(first|middle|last)"),
    ("Share of dead and of saturated units, worst layer", "(dead|saturated)_share_max"),
)


def scalar_value(tag: str, number: float) -> Summary.Value:
    """A point of a scalar chart."""
    tensor = TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=TensorShapeProto(), float_val=[number])
    return Summary.Value(tag=tag, tensor=tensor)


def scalar_metadata() -> SummaryMetadata:
    return _classed(scalars.create_summary_metadata("", ""), DATA_CLASS_SCALAR)


def text_metadata() -> SummaryMetadata:
    return _classed(texts.create_summary_metadata("", ""), DATA_CLASS_TENSOR)


def histogram_metadata(kind: str) -> SummaryMetadata:
    description = (
        f"log2 of the magnitude of the {kind.replace('_', ' ')}, in per cent of all sampled elements. "
        f"Zeros and magnitudes under 2^{HISTOGRAM_LOWEST + 1} are left out: what is missing to 100 is theirs."
    )
    return _classed(histograms.create_summary_metadata("", description), DATA_CLASS_TENSOR)


def layout_metadata() -> SummaryMetadata:
    return _classed(custom_scalars.create_summary_metadata(), DATA_CLASS_TENSOR)


def layout_value() -> Summary.Value:
    """The layout of the Custom Scalars dashboard: what belongs together in one chart."""
    charts = [
        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^gradscope/{names}$"]))
        for title, names in CHARTS
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="gradscope", chart=charts)])
    tensor = TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=TensorShapeProto())
    tensor.string_val.append(layout.SerializeToString())
    return Summary.Value(tag=LAYOUT_TAG, tensor=tensor)


@final
class HistogramSummaries:
    """The histograms of a few telling sites, the same ones throughout: spread over the depth, first and last included."""

    def __init__(self) -> None:
        self._chosen: dict[str, frozenset[Site]] = {}

    def values(self, frame: Frame) -> list[tuple[str, Summary.Value]]:
        """Kind and value of every histogram that ``frame`` has of the chosen sites."""
        made = []
        for kind in HISTOGRAM_KINDS:
            shares = frame.histograms.get(kind)
            if shares is None:
                continue
            sites = frame.schema.sites(kind)
            if kind not in self._chosen:
                self._chosen[kind] = _telling(sites, shares)
            for site, share in zip(sites, shares, strict=True):
                if site in self._chosen[kind] and (bars := _bars(share)) is not None:
                    made.append((kind, array_value(f"gradscope_{kind}/{site.name}", bars)))
        return made


def _telling(sites: Sequence[Site], shares: Array) -> frozenset[Site]:
    candidates = [site for site, share in zip(sites, shares, strict=True) if site.call == 0 and np.isfinite(share).all()]
    weights = [site for site in candidates if site.path.rpartition(".")[2] != "bias"] or candidates
    places = np.linspace(0, len(weights) - 1, min(HISTOGRAMS_EACH, len(weights)))
    return frozenset(weights[int(place)] for place in places.round())


def _bars(share: Array) -> Array | None:
    """Rows of (left, right, height) from the lowest to the highest bin that holds anything; None where none does."""
    held = np.flatnonzero(share[1:] > 0) + 1
    if not len(held) or not np.isfinite(share).all():
        return None
    bins = np.arange(held[0], held[-1] + 1)
    left = bins + HISTOGRAM_LOWEST
    return np.stack([left, left + 1, 100 * share[bins]], axis=1).astype(np.float32)


def _classed(metadata: SummaryMetadata, data_class: int) -> SummaryMetadata:
    metadata.data_class = data_class
    return metadata
