"""Passes of a trained network over rows, without gradients, in bounded memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.chunks import chunk_slices
from sklearn_cfll.functional.paths import AnyMoments, merge, moments_of
from sklearn_cfll.head import rows_by_rows
from sklearn_cfll.net import CFLLNet

# Numbers in the features that are kept, 16 MB of them in float32.
_KEPT_NUMBERS = 2**22


def points_of(batches: TensorBatches) -> int:
    """Points of a sample's grid; one where there is none."""
    return math.prod(batches.encoded.shape[1:-1])


def stream(net: CFLLNet, batches: TensorBatches) -> Any:
    """Yield features, targets and weights of rows, or of points of grids, by chunks."""
    weight = batches.sample_weight
    for features, rows in _features(net, batches):
        targets = batches.encoded[rows]
        own = None if weight is None else weight[rows]
        yield from rows_by_rows(features, targets, own)


def _features(net: CFLLNet, batches: TensorBatches) -> Iterator[tuple[Tensor, slice]]:
    """Yield the backbone's features (n, ..., d) by chunks of rows."""
    n_features, n_outputs = net.module_.head.weight.shape
    numbers = n_features + n_outputs
    weight = batches.sample_weight
    if net.output_weight is not None or (weight is not None and weight.ndim > 1):
        numbers = n_features * n_outputs  # features in each output's own basis
    numbers *= points_of(batches)
    if batches.features is None:
        for X, rows in batches.chunks(numbers):
            yield net.module_.backbone(X), rows
        return
    for rows in chunk_slices(batches.n_samples, numbers, batches.device):
        yield batches.features[rows], rows


@torch.no_grad()
def keep_features(net: CFLLNet, batches: TensorBatches) -> None:
    """Run the backbone, which is as it stays, once for all passes to come.

    Where the features are many numbers they aren't kept, and each pass runs it.
    """
    numbers = points_of(batches) * net.module_.head.weight.shape[0]
    if batches.features is None and batches.n_samples * numbers <= _KEPT_NUMBERS:
        kept: Tensor | None = None
        for features, rows in _features(net, batches):
            if kept is None:
                kept = features.new_empty((batches.n_samples, *features.shape[1:]))
            kept[rows] = features
        batches.features = kept


def moments_over(net: CFLLNet, batches: TensorBatches) -> AnyMoments:
    """Second moments of features and targets of all rows."""
    parts = (
        moments_of(features, targets, net.row_weights(targets, weight))
        for features, targets, weight in stream(net, batches)
    )
    return functools.reduce(merge, parts)
