"""The exact head over all training rows, once the backbone is trained."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll._left_out import (
    leaves_samples_out,
    left_out_errors,
    moments_of_folds,
)
from sklearn_cfll._problem import Problem
from sklearn_cfll._stream import (
    keep_features,
    loss_weight,
    moments_over,
    removed_weight,
    rows_weight,
    stream,
)
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.outputs import weighted_sum
from sklearn_cfll.functional.paths import (
    AnyMoments,
    AnyPath,
    errors_of,
    path_of,
)
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.net import CFLLNet

# Relative to the mean feature energy, thus the same for every backbone.
ALPHA_PATH = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 5))

# Predictions that leave-one-out makes for each ridge; rows are sampled from there on.
_MOST_LEFT_OUT = 2**20
_LEAST_SAMPLE = 1_000


@torch.no_grad()
def training_moments(net: CFLLNet, batches: TensorBatches) -> AnyMoments:
    """Moments of the backbone's features and of the targets, over all rows."""
    return _finite(moments_over(net, batches))


def _finite(moments: AnyMoments) -> AnyMoments:
    """Give the moments, or raise where they are not finite."""
    if not moments.finite:
        raise FloatingPointError(
            "the trained backbone's features of the training rows are not finite, or "
            "their squares overflow; decrease lr, or scale X."
        )
    return moments


@torch.no_grad()
def training_path(net: CFLLNet, problem: Problem) -> AnyPath:
    """Ridge path over all training rows, streamed through the moments."""
    if leaves_samples_out(problem):
        path = path_of(_finite(moments_of_folds(net, problem)))
    else:
        path = path_of(training_moments(net, problem.batches))
    if path.flat and _varies(problem.batches):
        warnings.warn(
            "the trained backbone gives all training rows the same features, so that "
            "predictions are the mean of y; its units may be dead, or it may end in a "
            "LayerNorm of one feature: decrease lr, scale X, widen the backbone, or "
            "choose an activation other than ReLU.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return path


def _varies(batches: TensorBatches) -> bool:
    """Whether any column of X varies by more than rounding."""
    mean, deviation = batches.column_moments()
    spacing = torch.finfo(mean.dtype).eps * batches.n_samples
    return bool((deviation > spacing * mean.abs()).any())


@torch.no_grad()
def held_out_errors(
    net: CFLLNet, path: AnyPath, held_out: TensorBatches, alphas: Any, pooled: bool
) -> tuple[Tensor, Tensor]:
    """Mean squared errors on held-out rows: of each alpha, and of the head as it is.

    Their mean over the outputs is the mean over all weights.

    Returns
    -------
    errors : Tensor of shape (n_alphas, k), or (n_alphas, 1) where pooled
    current : Tensor of shape (k,)
    """
    path_errors = errors_of(path, pooled=pooled)
    errors: Any = 0.0
    current: Any = 0.0
    total: Any = 0.0
    for features, targets, weight in stream(net, held_out):
        targets = targets.to(wide_dtype(features.device))
        weight = loss_weight(net, targets, rows_weight(weight, targets))
        squares = path_errors.squares_of_rows(features, targets, alphas)
        errors = errors + torch.stack([weighted_sum(weight, one) for one in squares])
        gap = net.module_.head(features).to(targets) - targets
        current = current + weighted_sum(weight, gap.square_())
        total = total + weight.sum(0).mean()
    return errors / total, current / total


@torch.no_grad()
def leave_one_out(net: CFLLNet, path: AnyPath, problem: Problem, alpha: Any) -> Any:
    """Yield targets, their leave-one-out predictions, and weights, by chunks.

    A weight is taken as a count: what is left out is one unit of it, or the whole row
    where its weight is less, so that integer weights equal repeated rows.
    """
    for features, targets, weight in stream(net, problem.batches):
        projected = path.project(features)
        targets = targets.to(projected)
        weight = rows_weight(weight, targets)
        unit = removed_weight(net, problem, targets, weight)
        for i, a in enumerate(alpha):
            kept = _kept(unit, path.leverage(projected, a))
            residual = path.predict(projected, a).sub_(targets)
            yield i, targets, residual.div_(kept).add_(targets), weight


@torch.no_grad()
def leave_one_out_errors(
    net: CFLLNet, path: AnyPath, problem: Problem, alphas: Any, pooled: bool
) -> Tensor:
    """Mean squared leave-one-out errors over the training rows.

    Returns
    -------
    errors : Tensor of shape (n_alphas, k), or (n_alphas, 1) where pooled
    """
    path_errors = errors_of(path, pooled=pooled)
    errors: Any = 0.0
    batches = _sample(problem.batches)
    for features, targets, weight in stream(net, batches):
        projected = path.project(features)
        targets = targets.to(projected)
        weight = rows_weight(weight, targets)
        unit = removed_weight(net, problem, targets, weight)
        weight = loss_weight(net, targets, weight)
        sums = [
            weighted_sum(_by_row(weight) / _kept(unit, leverage).square(), square)
            for leverage, square in zip(
                path.leverages(projected, alphas),
                path_errors.squares(projected, targets, alphas),
                strict=True,
            )
        ]
        errors = errors + torch.stack(sums)
    share = batches.n_samples / problem.batches.n_samples
    return errors / (share * path.moments.weight_sum)


def _sample(batches: TensorBatches) -> TensorBatches:
    """Rows that are enough to choose a ridge, where the outputs are many."""
    most = max(_LEAST_SAMPLE, _MOST_LEFT_OUT // batches.encoded.shape[-1])
    if batches.n_samples <= most:
        return batches
    return batches.take(np.linspace(0, batches.n_samples - 1, most))


def _kept(unit: Tensor, leverage: Tensor) -> Tensor:
    """Share of a row's residual that is left when one unit of it is left out."""
    return (1 - _by_row(unit) * leverage).clamp_min(1e-10)


def solve_head(
    net: CFLLNet,
    problem: Problem,
    *,
    alpha: Any,
    pooled: bool,
    loss_unit: float,
    leave_out: bool = False,
) -> tuple[AnyPath, Any, dict[str, Tensor] | None]:
    """Replace the head by the exact one, unless held-out rows get worse.

    Parameters
    ----------
    alpha : float, array of shape (k,) or "auto"
    pooled : bool
        Whether "auto" chooses one alpha for all outputs.
    loss_unit : float
        Squared error of targets that are not predicted at all, about.
    leave_out : bool, default=False
        Whether to take the path's leave-one-out errors where held-out rows choose, too.

    Returns
    -------
    path : RidgePath or RidgePathByOutput
    alpha : float or array of shape (k,)
        The exact head's ridge, where the head of the training was kept, too: rows that
        come later are solved with it.
    errors : dict of Tensors of shape (n_alphas, k), or (n_alphas, 1) where pooled
        Errors of the path on "held_out" rows and by "leave_one_out", or on a grid by
        "cross_validation" over the samples, as far as they were taken; None where
        ``alpha`` is not "auto".
    """
    net.module_.eval()
    for rows in (problem.batches, problem.held_out_batches):
        if rows is not None:
            keep_features(net, rows)
    path = training_path(net, problem)
    automatic = isinstance(alpha, str)
    candidates = ALPHA_PATH if automatic else [alpha]
    current = None
    taken: dict[str, Tensor] = {}
    if problem.held_out_batches is not None:
        errors, current = held_out_errors(
            net, path, problem.held_out_batches, candidates, pooled and automatic
        )
        taken["held_out"] = errors
    if automatic and leaves_samples_out(problem):
        taken["cross_validation"] = left_out_errors(net, problem, candidates)
    elif automatic and (leave_out or current is None):
        left_out = leave_one_out_errors(net, path, problem, candidates, pooled)
        taken["leave_one_out"] = left_out
    if automatic:
        errors = next(iter(taken.values()))
        score = errors.mean(1, keepdim=True) if pooled else errors
        # What no held-out row has a target for follows the other outputs.
        unknown = (score == 0).all(0)
        score = torch.where(unknown, score.mean(1, keepdim=True), score)
        best = largest_of_the_best(score / loss_unit)
        alpha = torch.tensor(ALPHA_PATH, dtype=torch.float64)[best.cpu()]
        errors = errors.gather(0, best.expand(errors.shape[1])[None])
    head = net.module_.head
    if current is not None and not errors.mean() <= current.mean():
        # Few held-out rows may like a head that fits nothing.
        error = path.moments.error_of(head.weight, head.bias)
        if error.mean() <= path.moments.error_of_mean.mean():
            return path, as_parameter(alpha), taken if automatic else None
    weight, bias = path.solve(alpha)
    head.weight, head.bias = weight.to(head.weight), bias.to(head.bias)
    return path, as_parameter(alpha), taken if automatic else None


def as_parameter(alpha: Any) -> Any:
    """Give one ridge as a float, and one for each output as an array."""
    alpha = np.asarray(alpha, dtype=float).ravel()
    return float(alpha[0]) if alpha.size == 1 else alpha


def described_path(errors: dict[str, Tensor] | None) -> dict[str, Any] | None:
    """Give the path of alpha and its errors as arrays."""
    if errors is None:
        return None
    arrays = {name: values.cpu().double().numpy() for name, values in errors.items()}
    return {"alphas": np.array(ALPHA_PATH), **arrays}


def largest_of_the_best(score: Tensor) -> Tensor:
    """Row of the largest alpha whose score is the least, to a thousandth.

    Where the features interpolate, all small alphas score alike, and rounding alone
    would choose among them.
    """
    good = score <= score.amin(0) * (1 + 1e-3) + 1e-6
    order = torch.arange(len(score), device=score.device)[:, None]
    return torch.where(good, order, 0).amax(0)


def _by_row(weight: Tensor) -> Tensor:
    """Give weights (n,) or (n, k) two axes."""
    return weight.reshape(len(weight), -1)
