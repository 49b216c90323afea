"""Passes of a trained network over rows, without gradients, in bounded memory."""

from __future__ import annotations

import functools
import math
from typing import Any

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyMoments, merge, moments_of
from sklearn_cfll.head import rows_by_rows
from sklearn_cfll.net import CFLLNet


def points_of(batches: TensorBatches) -> int:
    """Points of a sample's grid; one where there is none."""
    return math.prod(batches.encoded.shape[1:-1])


def stream(net: CFLLNet, batches: TensorBatches) -> Any:
    """Yield features, targets and weights of rows, or of points of grids, by chunks."""
    network = net.module_
    n_features, n_outputs = network.head.weight.shape
    numbers = n_features + n_outputs
    weight = batches.sample_weight
    if net.output_weight is not None or (weight is not None and weight.ndim > 1):
        numbers = n_features * n_outputs  # features in each output's own basis
    for X, rows in batches.chunks(points_of(batches) * numbers):
        features = network.backbone(X)
        targets = batches.encoded[rows]
        own = None if weight is None else weight[rows]
        yield from rows_by_rows(features, targets, own)


def moments_over(net: CFLLNet, batches: TensorBatches) -> AnyMoments:
    """Second moments of features and targets of all rows."""
    parts = (
        moments_of(features, targets, net.row_weights(targets, weight))
        for features, targets, weight in stream(net, batches)
    )
    return functools.reduce(merge, parts)
