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
from sklearn_cfll._stream import moments_over, points_of, stream
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyMoments, AnyPath, merge, path_of
from sklearn_cfll.functional.posterior import HeadPosterior
from sklearn_cfll.net import CFLLNet

_N_FOLDS = 10

# Points whose errors are looked at one by one, where there are more; of 100 samples
# at least.
_MOST_POINTS = 2**20
_LEAST_SAMPLES = 100


def leaves_samples_out(problem: Problem) -> bool:
    """Whether errors are found by leaving out samples on a grid, not held-out ones."""
    return problem.held_out_batches is None and points_of(problem.batches) > 1


def fold_moments(
    net: CFLLNet, problem: Problem
) -> list[tuple[TensorBatches, AnyMoments]]:
    """Give each fold's samples and their moments, from one pass in all of a fit."""
    n_samples = problem.batches.n_samples
    n_folds = min(_N_FOLDS, n_samples)
    parts = [
        problem.batches.take(np.arange(first, n_samples, n_folds))
        for first in range(n_folds)
    ]
    if problem.fold_moments is None:
        problem.fold_moments = [moments_over(net, part) for part in parts]
    return list(zip(parts, problem.fold_moments, strict=True))


@torch.no_grad()
def moments_of_folds(net: CFLLNet, problem: Problem) -> AnyMoments:
    """Moments of all samples, as the sum of the folds'."""
    each = [moments for _, moments in fold_moments(net, problem)]
    return functools.reduce(merge, each)


@torch.no_grad()
def folds(
    net: CFLLNet, problem: Problem
) -> Iterator[tuple[TensorBatches, AnyMoments, AnyPath]]:
    """Yield each fold's samples and moments, and the ridge path of the other folds."""
    parts = fold_moments(net, problem)
    moments = [own for _, own in parts]
    for i, (part, own) in enumerate(parts):
        others = functools.reduce(merge, moments[:i] + moments[i + 1 :])
        yield part, own, path_of(others)


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
    """Yield residuals, leverages and weights of points under the other folds' heads.

    Of many samples some are taken, evenly.
    """
    points = points_of(problem.batches)
    most = max(_LEAST_SAMPLES, _MOST_POINTS // points) // _N_FOLDS
    for part, _, path in folds(net, problem):
        posterior = HeadPosterior.of(path, alpha)
        if part.n_samples > most:
            part = part.take(np.linspace(0, part.n_samples - 1, most))
        for features, targets, weight in stream(net, part):
            predicted = path.predict(path.project(features), alpha)
            residual = targets.to(predicted) - predicted
            weight = targets.new_ones(len(targets)) if weight is None else weight
            leverage = posterior.leverage(features.cpu())
            yield residual.cpu(), leverage, weight.to(residual).cpu()
