"""The exact head over all training rows, once the backbone is trained."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.errors import PathErrors
from sklearn_cfll.functional.moments import Moments, RidgePath
from sklearn_cfll.head import as_rows
from sklearn_cfll.network import Network

# Relative to the mean feature energy, thus the same for every backbone.
ALPHA_PATH = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 5))


def stream(network: Network, batches: TensorBatches) -> Any:
    """Yield features, targets and weights, chunk by chunk, without gradients."""
    head = network.head
    for X, rows in batches.chunks(sum(head.weight.shape)):
        features = network.backbone(X)
        weight = batches.sample_weight
        targets = batches.encoded[rows]
        yield as_rows(features, targets, None if weight is None else weight[rows])


@torch.no_grad()
def training_path(network: Network, batches: TensorBatches) -> RidgePath:
    """Ridge path over all training rows, streamed through the moments."""
    parts = (Moments.of(*rows) for rows in stream(network, batches))
    moments = functools.reduce(Moments.merge, parts)
    if not all(part.isfinite().all() for part in vars(moments).values()):
        raise FloatingPointError(
            "the trained backbone's features of the training rows are not finite, or "
            "their squares overflow; decrease lr, or scale X."
        )
    path = RidgePath(moments)
    if path.values.amax() <= path.floor and _varies(batches):
        warnings.warn(
            "the trained backbone gives all training rows the same features, so that "
            "predictions are the mean of y; its units may be dead: decrease lr, scale "
            "X, widen the backbone, or choose an activation other than ReLU.",
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
    network: Network,
    path: RidgePath,
    held_out: TensorBatches,
    alphas: Any,
    pooled: bool,
) -> tuple[Tensor, Tensor]:
    """Mean squared errors on held-out rows: of each alpha, and of the head as it is.

    Returns
    -------
    errors : Tensor of shape (n_alphas, k), or (n_alphas, 1) where pooled
    current : Tensor of shape (k,)
    """
    path_errors = PathErrors(path, pooled=pooled)
    total = path.cross.new_zeros(())
    errors, current = total, total
    for features, targets, weight in stream(network, held_out):
        targets = targets.to(path.cross)
        weight = _row_weights(weight, targets)
        squares = path_errors.squares(path.project(features), targets, alphas)
        errors = errors + torch.stack([weight @ square for square in squares])
        gap = network.head(features).to(targets) - targets
        current = current + weight @ gap.square_()
        total = total + weight.sum()
    return errors / total, current / total


@torch.no_grad()
def leave_one_out(
    network: Network, path: RidgePath, batches: TensorBatches, alpha: Any, unit: float
) -> Any:
    """Yield targets, their leave-one-out predictions, and weights, by chunks.

    A weight is taken as a count: what is left out is one unit of it, or the whole row
    where its weight is less, so that integer weights equal repeated rows.

    Parameters
    ----------
    unit : float
        One unit in terms of ``batches.sample_weight``.
    """
    for features, targets, weight in stream(network, batches):
        targets = targets.to(path.cross)
        weight = _row_weights(weight, targets)
        projected = path.project(features)
        for i, a in enumerate(alpha):
            kept = _kept(weight, path.leverage(projected, a), unit)
            residual = path.predict(projected, a).sub_(targets)
            yield i, targets, residual.div_(kept).add_(targets), weight


@torch.no_grad()
def leave_one_out_errors(
    network: Network,
    path: RidgePath,
    batches: TensorBatches,
    alphas: tuple[float, ...],
    unit: float,
    pooled: bool,
) -> Tensor:
    """Mean squared leave-one-out errors over the training rows.

    Returns
    -------
    errors : Tensor of shape (n_alphas, k), or (n_alphas, 1) where pooled
    """
    path_errors = PathErrors(path, pooled=pooled)
    errors = path.cross.new_zeros(())
    for features, targets, weight in stream(network, batches):
        weight = _row_weights(weight, targets.to(path.cross))
        projected = path.project(features)
        leverage = path.leverage(projected, torch.tensor(alphas, dtype=torch.float64))
        share = weight[:, None] / _kept(weight, leverage, unit).square()
        squares = path_errors.squares(projected, targets, alphas)
        errors = errors + torch.stack(
            [one @ square for one, square in zip(share.mT, squares, strict=True)]
        )
    return errors / path.moments.weight_sum


def _kept(weight: Tensor, leverage: Tensor, unit: float) -> Tensor:
    """Share of a row's residual that is left when one unit of it is left out."""
    left_out = weight.clamp_max(unit)[:, None] * leverage
    return (1 - left_out).clamp_min(1e-10)


def solve_head(
    network: Network,
    train: TensorBatches,
    held_out: TensorBatches | None,
    *,
    alpha: Any,
    pooled: bool,
    unit: float,
) -> tuple[RidgePath, Any]:
    """Replace the head by the exact one, unless held-out rows get worse.

    Parameters
    ----------
    alpha : float, array of shape (k,) or "auto"
    pooled : bool
        Whether "auto" chooses one alpha for all outputs.
    unit : float
        One unit of weight, see :func:`leave_one_out`.

    Returns
    -------
    path : RidgePath
    alpha : float, array of shape (k,) or None
        The exact head's ridge; None where the head of the training was kept.
    """
    network.eval()
    path = training_path(network, train)
    automatic = isinstance(alpha, str)
    candidates = ALPHA_PATH if automatic else [alpha]
    current = None
    if held_out is not None:
        shared = pooled and automatic
        errors, current = held_out_errors(network, path, held_out, candidates, shared)
    elif automatic:
        errors = leave_one_out_errors(network, path, train, ALPHA_PATH, unit, pooled)
    if automatic:
        best = _largest_of_the_best(errors)
        alpha = torch.tensor(ALPHA_PATH, dtype=torch.float64)[best.cpu()]
        errors = errors.gather(0, best[None])
    head = network.head
    if current is not None and not errors.mean() <= current.mean():
        # Few held-out rows may like a head that fits nothing.
        moments = path.moments
        usual = moments.target_square.mean() / moments.weight_sum
        if moments.error_of(head.weight, head.bias).mean() <= usual:
            return path, None
    weight, bias = path.solve(alpha)
    head.weight, head.bias = weight.to(head.weight), bias.to(head.bias)
    alpha = np.asarray(alpha, dtype=float).ravel()
    return path, float(alpha[0]) if alpha.size == 1 else alpha


def _largest_of_the_best(score: Tensor) -> Tensor:
    """Row of the largest alpha whose score is the least, to a thousandth.

    Where the features interpolate, all small alphas score alike, and rounding alone
    would choose among them.
    """
    good = score <= score.amin(0) * (1 + 1e-3) + 1e-6
    order = torch.arange(len(score), device=score.device)[:, None]
    return torch.where(good, order, 0).amax(0)


def _row_weights(weight: Tensor | None, targets: Tensor) -> Tensor:
    if weight is None:
        return targets.new_ones(len(targets))
    return weight.to(targets)
