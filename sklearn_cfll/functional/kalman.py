"""Recursive least squares of a linear head, by a square root of its information.

The head ``W`` is a hidden state that the rows observe, ``y_i = W' phi_i + noise of
variance 1 / w_i``, the same for all outputs. The information ``J``, the inverse of the
covariance, is kept as a factor ``R`` with ``R'R = J``. No step subtracts matrices, so
that ``J`` stays positive semi-definite whatever the rounding, and an information of
zero (nothing known, as of a free intercept) is a factor like any other.

Features carry a constant one as their last column wherever the intercept is wanted.

References
----------
Bierman, "Factorization Methods for Discrete Sequential Estimation", Academic Press,
1977: the square-root information filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_cfll.functional.ridge import like


def information_root(diagonal: Tensor) -> Tensor:
    """Factor of a diagonal information.

    Parameters
    ----------
    diagonal : Tensor of shape (d,)
        None negative; zero where nothing is known.

    Returns
    -------
    root : Tensor of shape (d, d)
    """
    return torch.diag(diagonal.sqrt())


def forget(root: Tensor, forgetting: float, refill: float | Tensor) -> Tensor:
    """Fade what was learnt into a fixed information.

    ``J <- f J + (1 - f) refill I``. Plain forgetting, without the refill, loses all
    information on directions that no row excites, and its covariance winds up.

    Parameters
    ----------
    root : Tensor of shape (d, d)
    forgetting : float
        The share f in [0, 1] that is kept.
    refill : float or Tensor of shape ()

    Returns
    -------
    root : Tensor of shape (d, d), or (2 d, d) where f is below one
        A factor that :func:`observe` takes.

    References
    ----------
    Kulhavy and Zarrop, "On a general concept of forgetting", International Journal
    of Control 58(4), 1993.
    """
    if forgetting == 1:
        return root
    level = ((1 - forgetting) * like(root, refill)).sqrt()
    fresh = level * torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    return fresh if forgetting == 0 else torch.cat([forgetting**0.5 * root, fresh])


def diffuse(root: Tensor, process_noise: float | Tensor) -> Tensor:
    """Let the head wander: the covariance grows by ``q I``.

    Parameters
    ----------
    root : Tensor of shape (n, d)
    process_noise : float or Tensor of shape ()
        The variance q.

    Returns
    -------
    root : Tensor of shape (n, d)
    """
    # J <- (J^-1 + q I)^-1 = R' (I + q R R')^-1 R, so that with the Cholesky factor
    # C C' = I + q R R', whose eigenvalues are one or more, the new factor is C^-1 R.
    outer = like(root, process_noise) * (root @ root.mT)
    outer.diagonal().add_(1)
    factor = torch.linalg.cholesky_ex(outer).L  # exists unless root is not finite
    spread: Tensor = torch.linalg.solve_triangular(factor, root, upper=False)
    return spread


def observe(
    root: Tensor,
    features: Tensor,
    residual: Tensor,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Take in rows: the measurement update.

    Parameters
    ----------
    root : Tensor of shape (m, d)
        Any factor of the information before these rows.
    features : Tensor of shape (n, d)
    residual : Tensor of shape (n, k)
        Targets less the last head's predictions.
    sample_weight : Tensor of shape (n,), default=None

    Returns
    -------
    root : Tensor of shape (d, d)
        Upper triangular.
    step : Tensor of shape (d, k)
        To add to the head; not finite where ``root`` is singular.
    """
    features, residual = features.to(root), residual.to(root)
    if sample_weight is not None:
        noise = sample_weight.to(root).sqrt()[:, None]
        features, residual = noise * features, noise * residual
    n_features = root.shape[-1]
    # The step minimises ||R step||^2 + ||F step - r||^2, a least-squares problem
    # whose triangle is the next factor:  Q' [R 0; F r] = [R_next z; 0 .].
    prior = torch.cat([root, root.new_zeros(len(root), residual.shape[1])], 1)
    rows = torch.cat([prior, torch.cat([features, residual], 1)])
    triangle = torch.linalg.qr(rows, mode="r").R[:n_features]
    root, right_side = triangle[:, :n_features], triangle[:, n_features:]
    return root, torch.linalg.solve_triangular(root, right_side, upper=True)


def covariance(root: Tensor) -> Tensor:
    """Covariance of the head, shared by its outputs.

    Parameters
    ----------
    root : Tensor of shape (d, d)
        Upper triangular, not singular.

    Returns
    -------
    covariance : Tensor of shape (d, d)
    """
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    inverse = torch.linalg.solve_triangular(root, identity, upper=True)
    product: Tensor = inverse @ inverse.mT
    return product
