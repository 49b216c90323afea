"""The proximal update of a batch whose rows stream through the moments.

Memory is ``O(d^2 + d k)`` and that of one part of the rows, in place of all of them in
float64: for the points of large grids.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.ridge import ProximalHead, like

Part = tuple[Tensor, Tensor, Tensor | None]


def streamed_update(
    parts: Iterable[Part],
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
) -> ProximalHead:
    """Solve the problem of ``proximal_update`` for a batch that comes in parts.

    Parameters
    ----------
    parts : iterable of (features (n, d), targets (n, k), sample_weight (n,) or None)
    weight : Tensor of shape (d, k)
        The last head's.
    bias : Tensor of shape (k,)
    alpha : float or Tensor of shape (k,)
    prox : float

    Returns
    -------
    head : ProximalHead
        Arbitrary where it is not ``solved``.
    """
    each = (_of_residual(part, weight, bias) for part in parts)
    moments = next(each)
    for part in each:
        moments = moments.merge(part)
    energy, mean, rest = moments.energy, moments.feature_mean, moments.target_mean
    pull = like(energy, prox) * energy
    ridge = like(energy, alpha).reshape(1, -1) * energy
    # The step (V, v) of least squares on the residual r, whose mean is the rest; with
    # v eliminated, what the mean's part keeps is its share.
    share = pull / (1 + pull)
    gram = moments.gram / moments.weight_sum + share * torch.outer(mean, mean)
    right_side = moments.cross / moments.weight_sum + share * torch.outer(mean, rest)
    step, solved = _solve(gram, ridge + pull, right_side - ridge * weight.to(gram))
    bias_step = (rest - mean @ step) / (1 + pull)
    return ProximalHead(weight + step.to(weight), bias + bias_step.to(bias), solved)


def _of_residual(part: Part, weight: Tensor, bias: Tensor) -> Moments:
    """Moments of features, and of targets less the last head's predictions."""
    features, targets, sample_weight = part
    wide = features.to(weight.dtype)
    residual = targets.to(weight.dtype) - torch.addmm(bias, wide, weight)
    return Moments.of(wide, residual, sample_weight)


def _solve(gram: Tensor, shift: Tensor, right_side: Tensor) -> tuple[Tensor, Tensor]:
    """Solve with the Gram matrix and a shift (1, 1), or (1, k): one for each output."""
    if shift.shape[1] > 1:
        values, vectors = torch.linalg.eigh(gram)
        shifted = values[:, None] + shift
        step = vectors @ ((vectors.mT @ right_side) / shifted)
        return step, (shifted > 0).all()
    gram.diagonal().add_(shift[0, 0])
    factor, info = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(right_side, factor), info == 0
