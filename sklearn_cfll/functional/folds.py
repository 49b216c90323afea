"""Residuals of rows that are left out of the head, from one decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_cfll.functional.paths import AnyPath, RidgePathByOutput
from sklearn_cfll.functional.plain import check_rows
from sklearn_cfll.functional.ridge import like
from sklearn_cfll.functional.ridge_path import RidgePath

# Least share of a direction's weight that must stay when a fold leaves.
_LEAST_LEFT = 1e-10


def leave_one_out_residuals(
    path: AnyPath,
    features: Tensor,
    targets: Tensor,
    alpha: float | Tensor,
    removed: Tensor | None = None,
) -> Tensor:
    """Errors of the heads that are solved without each of the rows.

    The penalty, in sums over the rows, stays as rows leave.

    Parameters
    ----------
    path : RidgePath or RidgePathByOutput
        Of moments that hold the rows.
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    alpha : float or Tensor of shape (k,)
    removed : Tensor of shape (n,) or (n, k), default=None
        The weight that is left out: that of each row, or less. None is 1.

    Returns
    -------
    residual : Tensor of shape (n, k)
        Targets less predictions.
    """
    check_rows(features, targets)
    projected = path.project(features)
    residual: Tensor = targets.to(projected) - path.predict(projected, alpha)
    pull = path.leverage(projected, alpha)
    if removed is not None:
        pull = removed.reshape(len(residual), -1).to(pull) * pull
    # A row that alone spans a direction, at alpha 0, leaves nothing to predict it by.
    return residual / (1 - pull).clamp_min(_LEAST_LEFT)


def kfold_residuals(
    path: AnyPath,
    features: Tensor,
    targets: Tensor,
    folds: Tensor,
    alpha: float | Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """Errors of the heads that are solved without each of the folds.

    Exact, without a solve over the other rows: a fold costs the least of ``b^3`` and
    ``b d^2 + d^3`` for its b rows and d features, and for each alpha.

    The penalty, in sums over the rows, stays as rows leave.

    Parameters
    ----------
    path : RidgePath or RidgePathByOutput
        Of moments that hold the rows with these weights.
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    folds : int Tensor of shape (n,)
        The number of each row's fold.
    alpha : float or Tensor of shape (k,)
    sample_weight : Tensor of shape (n,) or (n, k), default=None

    Returns
    -------
    residual : Tensor of shape (n, k)
        Targets less predictions by the head of the other folds.

    Raises
    ------
    ValueError
        Where a fold holds all rows that span a direction, and alpha is 0.
    """
    check_rows(features, targets)
    if isinstance(path, RidgePathByOutput):
        alphas = like(features, alpha).reshape(-1).expand(len(path.paths))
        weights = [None] * len(alphas) if sample_weight is None else sample_weight.mT
        columns = zip(path.paths, targets.mT[..., None], alphas, weights, strict=True)
        residuals = [
            kfold_residuals(part, features, own, folds, one, weight)
            for part, own, one, weight in columns
        ]
        return torch.cat(residuals, 1)
    projected = path.project(features)
    residual = targets.to(projected) - path.predict(projected, alpha)
    if sample_weight is None:
        sample_weight = projected.new_ones(len(projected))
    weight = sample_weight.to(projected)
    alphas, groups = torch.unique(
        like(projected, alpha).reshape(-1), return_inverse=True
    )
    groups = groups.expand(targets.shape[1])
    for group, one in enumerate(alphas):
        outputs = (groups == group).nonzero()[:, 0]
        root = _root(path, projected, one)
        for fold in torch.unique(folds):
            rows = (folds == fold).nonzero()[:, 0]
            part = residual[rows[:, None], outputs]
            left_out = _without(root[rows], part, weight[rows], int(fold), float(one))
            residual[rows[:, None], outputs] = left_out
    return residual


def _root(path: RidgePath, projected: Tensor, alpha: Tensor) -> Tensor:
    """Rows (n, d + 1) whose inner products are the pulls of rows on one another."""
    root = projected * path.inverse(alpha)[:, 0].sqrt()
    root = torch.cat([root, torch.ones_like(root[:, :1])], 1)
    return root / path.moments.weight_sum.sqrt()


def _without(
    root: Tensor, residual: Tensor, weight: Tensor, fold: int, alpha: float
) -> Tensor:
    """Residual of a fold's rows once they have left."""
    share = weight[:, None].sqrt()
    weighted = share * root
    # With pulls H = U U', the residuals are e = (I - H W)^-1 r, of which the system on
    # the weighted rows, or by Woodbury's formula on the features, is symmetric.
    if len(root) <= root.shape[1]:
        pulled = _solve(weighted @ weighted.mT, share * residual, fold, alpha)
        return residual + root @ (weighted.mT @ pulled)
    pulled = _solve(
        weighted.mT @ weighted, weighted.mT @ (share * residual), fold, alpha
    )
    return residual + root @ pulled


def _solve(pull: Tensor, right_side: Tensor, fold: int, alpha: float) -> Tensor:
    """Solve with the identity less a pull; the eigenvalues say what is left."""
    left, vectors = torch.linalg.eigh(
        torch.eye(len(pull), dtype=pull.dtype, device=pull.device) - pull
    )
    if left[0] < _LEAST_LEFT:
        raise ValueError(
            f"fold {fold} holds all rows that span some direction of the features, so "
            f"that the others can't predict it; increase alpha (now {alpha:g})."
        )
    solution: Tensor = vectors @ ((vectors.mT @ right_side) / left[:, None])
    return solution
