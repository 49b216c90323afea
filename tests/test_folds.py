"""Rows that are left out: one decomposition against refits by brute force."""

import re

import pytest
import torch
from small_models import draw

from sklearn_cfll.functional import kfold_residuals, leave_one_out_residuals
from sklearn_cfll.functional.paths import moments_of, path_of

SHAPES = pytest.mark.parametrize(
    ("n_rows", "n_features"), [(30, 4), (9, 15)], ids=["tall", "wide"]
)
WEIGHTS = pytest.mark.parametrize("weights", ["none", "by row", "by row and output"])
ALPHAS = pytest.mark.parametrize(
    "alpha",
    [0.05, torch.tensor([0.01, 0.3, 7.0], dtype=torch.float64)],
    ids=["one ridge", "ridge per output"],
)


def problem(n_rows, n_features, weights):
    weight = None
    if weights == "by row":
        weight = draw(n_rows, seed=3).abs() + 0.1
        weight[1] = 0
    if weights == "by row and output":
        weight = draw(n_rows, 3, seed=3).abs() + 0.1
        weight[1, 2] = 0
    features = draw(n_rows, n_features) * 3 + 1
    return features, draw(n_rows, 3, seed=1), weight


def residuals_of_refits(path, features, targets, weight, alpha, folds):
    """Solve each output's normal equations anew without each fold."""
    n_rows, n_features = features.shape
    rows = torch.cat([features, torch.ones(n_rows, 1).double()], 1)
    weight = torch.ones(n_rows).double() if weight is None else weight
    weights = weight.reshape(n_rows, -1).expand(n_rows, 3)
    paths = getattr(path, "paths", [path] * 3)
    alphas = torch.as_tensor(alpha, dtype=torch.float64).expand(3)
    residuals = torch.empty(n_rows, 3).double()
    for output, (part, own) in enumerate(zip(paths, alphas, strict=True)):
        ridge = float(part.moments.weight_sum * part.energy * own)
        penalty = ridge * torch.eye(n_features + 1).double()
        penalty[-1, -1] = 0
        for fold in folds.unique():
            kept = torch.where(folds == fold, 0.0, weights[:, output])
            matrix = rows.T @ (kept[:, None] * rows) + penalty
            right = rows.T @ (kept * targets[:, output])
            out = folds == fold
            head = torch.linalg.solve(matrix, right)
            residuals[out, output] = targets[out, output] - rows[out] @ head
    return residuals


@SHAPES
@WEIGHTS
@ALPHAS
def test_leave_one_out_is_as_many_refits_as_rows(n_rows, n_features, weights, alpha):
    features, targets, weight = problem(n_rows, n_features, weights)
    path = path_of(moments_of(features, targets, weight))
    residual = leave_one_out_residuals(path, features, targets, alpha, weight)
    expected = residuals_of_refits(
        path, features, targets, weight, alpha, torch.arange(n_rows)
    )
    torch.testing.assert_close(residual, expected, rtol=1e-8, atol=1e-8)


@SHAPES
@WEIGHTS
@ALPHAS
@pytest.mark.parametrize("n_folds", [2, 4], ids=lambda n: f"{n} folds")
def test_folds_are_refits_without_each_of_them(
    n_rows, n_features, weights, alpha, n_folds
):
    features, targets, weight = problem(n_rows, n_features, weights)
    path = path_of(moments_of(features, targets, weight))
    folds = torch.arange(n_rows) % n_folds * 10 - 3  # any numbers
    residual = kfold_residuals(path, features, targets, folds, alpha, weight)
    expected = residuals_of_refits(path, features, targets, weight, alpha, folds)
    torch.testing.assert_close(residual, expected, rtol=1e-8, atol=1e-8)


@WEIGHTS
def test_folds_of_one_row_are_leave_one_out(weights):
    features, targets, weight = problem(30, 4, weights)
    path = path_of(moments_of(features, targets, weight))
    folds = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        kfold_residuals(path, features, targets, folds, 0.1, weight),
        leave_one_out_residuals(path, features, targets, 0.1, weight),
        rtol=1e-11,
        atol=1e-11,
    )


def test_a_fold_that_alone_spans_a_direction_needs_a_ridge():
    features, targets, _ = problem(30, 4, "none")
    features[:, 3] = 0
    features[5, 3] = 2.0
    path = path_of(moments_of(features, targets))
    folds = torch.arange(30) // 10
    message = re.escape(
        "fold 0 holds all rows that span some direction of the features, so that the "
        "others can't predict it; increase alpha (now 0)."
    )
    with pytest.raises(ValueError, match=message):
        kfold_residuals(path, features, targets, folds, 0.0)
    ridged = kfold_residuals(path, features, targets, folds, 1e-3)
    assert ridged.abs().max() < 100
