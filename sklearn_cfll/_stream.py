"""Passes of a trained network over rows, without gradients, in bounded memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_cfll._problem import Problem
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


def rows_weight(weight: Tensor | None, targets: Tensor) -> Tensor:
    """Weights of the rows; ones where there are none."""
    return targets.new_ones(len(targets)) if weight is None else weight.to(targets)


def loss_weight(net: CFLLNet, targets: Tensor, weight: Tensor) -> Tensor:
    """Weights (n,) or (n, k) as loss and solves have them."""
    weights = net.row_weights(targets, weight)
    assert weights is not None
    return weights


def removed_weight(
    net: CFLLNet, problem: Problem, targets: Tensor, weight: Tensor
) -> Tensor:
    """Weight, as the solves have it, that leave-one-out takes from each row."""
    return loss_weight(net, targets, weight.clamp_max(problem.removed))


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


@contextmanager
def naming_features(net: CFLLNet, problem: Problem) -> Iterator[None]:
    """Say so, where a fit fails since the backbone gives what is not finite.

    Only then is it run again, at the last state whose losses were finite.
    """
    try:
        yield
    except FloatingPointError as error:
        rows = _rows_not_finite(net, problem)
        if len(rows) == 0:
            raise
        raise FloatingPointError(
            f"the backbone returned features that are not finite for {len(rows)} of "
            f"{len(problem.train)} training rows, first for row {rows[0]} of X; mend "
            "the rows, or the backbone (which may take a logarithm of zero, say)."
        ) from error


@torch.no_grad()
def _rows_not_finite(net: CFLLNet, problem: Problem) -> NDArray[np.intp]:
    """Find the training rows, by their place in X, whose features are not finite."""
    recovery = getattr(net, "recovery_", None)
    if recovery is not None and recovery.has_state:
        recovery.restore(net)
    net.module_.eval()
    finite = [
        features.isfinite().reshape(len(features), -1).all(1).cpu().numpy()
        for features, _ in _features(net, problem.batches)
    ]
    rows = np.flatnonzero(~np.concatenate(finite))
    return rows if problem.train.index is None else problem.train.index[rows]


def moments_over(net: CFLLNet, batches: TensorBatches) -> AnyMoments:
    """Second moments of features and targets of all rows."""
    parts = (
        moments_of(features, targets, net.row_weights(targets, weight))
        for features, targets, weight in stream(net, batches)
    )
    return functools.reduce(merge, parts)
