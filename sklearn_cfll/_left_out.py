"""Samples on a grid, left out of the head in folds.

The points of one sample resemble each other, so that a head that has seen its other
points has seen the point: samples are left out whole. A fold's errors follow from its
moments and those of the other folds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import moments_over, stream
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyMoments, AnyPath, merge, path_of
from sklearn_cfll.functional.posterior import HeadPosterior
from sklearn_cfll.net import CFLLNet

_N_FOLDS = 10


@torch.no_grad()
def folds(
    net: CFLLNet, problem: Problem
) -> Iterator[tuple[TensorBatches, AnyMoments, AnyPath]]:
    """Yield each fold's samples and moments, and the ridge path of the other folds."""
    n_samples = problem.batches.n_samples
    n_folds = min(_N_FOLDS, n_samples)
    parts = [
        problem.batches.take(np.arange(first, n_samples, n_folds))
        for first in range(n_folds)
    ]
    moments = [moments_over(net, part) for part in parts]
    for i, part in enumerate(parts):
        others = functools.reduce(merge, moments[:i] + moments[i + 1 :])
        yield part, moments[i], path_of(others)


def left_out_errors(net: CFLLNet, problem: Problem, alphas: Any) -> Tensor:
    """Mean squared errors (n_alphas, k) of samples under the other folds' heads."""
    errors: Any = 0.0
    total: Any = 0.0
    for _, moments, path in folds(net, problem):
        of_fold = [moments.error_of(*path.solve(alpha)) for alpha in alphas]
        errors = errors + moments.weight_sum * torch.stack(of_fold)
        total = total + moments.weight_sum
    return errors / total


@torch.no_grad()
def left_out_rows(
    net: CFLLNet, problem: Problem, alpha: Any
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield residuals, leverages and weights of points under the other folds' heads."""
    for part, _, path in folds(net, problem):
        posterior = HeadPosterior.of(path, alpha)
        for features, targets, weight in stream(net, part):
            predicted = path.predict(path.project(features), alpha)
            residual = targets.to(predicted) - predicted
            weight = targets.new_ones(len(targets)) if weight is None else weight
            leverage = posterior.leverage(features.cpu())
            yield residual.cpu(), leverage, weight.to(residual).cpu()
