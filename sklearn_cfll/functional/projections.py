"""Projections of rows on the span of columns, with weights, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

# A column of which less than this share is left beside the others is spanned by them.
_SPANNED = 1e-8


def orthonormal(columns: Tensor, before: Tensor | None = None) -> Tensor:
    """Orthonormal basis of columns, those that others span to rounding left out.

    Parameters
    ----------
    columns : Tensor of shape (n, d)
    before : Tensor of shape (n, d), default=None
        What the columns were before something was taken off them: that of which hardly
        anything is left is spanned, too.

    Returns
    -------
    basis : Tensor of shape (n, rank)
    """
    norm = torch.linalg.vector_norm(columns, dim=0)
    whole = norm if before is None else torch.linalg.vector_norm(before.double(), dim=0)
    columns = columns[:, norm > _SPANNED * whole]
    columns = columns / torch.linalg.vector_norm(columns, dim=0)
    columns = columns[:, : len(columns)]
    # What a column has beside those before it stands on the diagonal of R.
    rest = torch.linalg.qr(columns).R.diagonal().abs()
    basis: Tensor = torch.linalg.qr(columns[:, rest > _SPANNED]).Q
    return basis


def n_directions(columns: Tensor, basis: Tensor, most: int) -> int:
    """Count directions in which columns vary beyond a basis, up to a number.

    Parameters
    ----------
    columns : Tensor of shape (n, d)
    basis : Tensor of shape (n, rank)
        Orthonormal.
    most : int
        Number to stop at.
    """
    whole = torch.linalg.vector_norm(columns, dim=0)
    left = without(columns, basis)
    norm = torch.linalg.vector_norm(left, dim=0)
    left = left[:, norm > _SPANNED * whole]
    left = left / torch.linalg.vector_norm(left, dim=0)
    for count in range(most):
        norm = torch.linalg.vector_norm(left, dim=0)
        if not (norm > _SPANNED).any():
            return count
        longest = norm.argmax()
        left = without(left, left[:, longest, None] / norm[longest])
    return most


def controlled(
    controls: Tensor | None, rows: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Basis of a constant and the controls, and the roots (n, 1) of the weights."""
    ones = rows.new_ones(len(rows), 1, dtype=torch.float64)
    root = ones if sample_weight is None else sample_weight.double().sqrt()[:, None]
    if controls is not None:
        controls = controls.double()
        # About their means, so that a large mean hides no variation.
        share = (root.square() / root.square().sum()).mT
        centred = (controls - share @ controls) * root
        own = orthonormal(centred, controls * root)
        return torch.cat([root / torch.linalg.vector_norm(root), own], 1), root
    return root / torch.linalg.vector_norm(root), root


def without(rows: Tensor, basis: Tensor) -> Tensor:
    """Take off what a basis spans; twice, since once leaves rounding of the whole."""
    for _ in range(2):
        rows = rows - basis @ (basis.mT @ rows)
    return rows


def projected_sums(
    residuals: Tensor, centred: Tensor, features: Tensor, sample_weight: Tensor | None
) -> Tensor:
    """Sum what instruments predict of residuals and of targets: (2,) squares.

    Both are ``r' (P - diag P) r`` with the projection P on the features and a constant:
    without its diagonal a residual that no instrument explains gives zero in the mean,
    whatever the number of features.

    Parameters
    ----------
    residuals, centred : Tensor of shape (n,)
        Targets less structural predictions, and targets less their mean.
    features : Tensor of shape (n, q)
        Of the instruments.
    sample_weight : Tensor of shape (n,) or None

    References
    ----------
    Angrist, Imbens, Krueger, "Jackknife Instrumental Variables Estimation", Journal of
    Applied Econometrics 14, 1999: the projection without its diagonal.
    """
    basis, root = controlled(features, residuals, sample_weight)
    rows = torch.stack([residuals, centred], 1).double() * root
    projected = (basis.mT @ rows).square().sum(0)
    sums: Tensor = projected - basis.square().sum(1) @ rows.square()
    return sums
