"""The proximal update of a head by a batch, and the choice of how it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_cfll.functional import lapack
from sklearn_cfll.functional.plain import check_rows, is_plain
from sklearn_cfll.functional.ridge import ProximalHead, proximal_step
from sklearn_cfll.functional.systems import MANY_PRODUCTS


def proximal_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
    sample_weight: Tensor | None = None,
    with_slope: bool = False,
) -> ProximalHead:
    """Solve the proximal ridge problem of one batch, anchored at the last head.

    Minimises over ``W, b``, with weights ``w`` that sum to one and the mean feature
    energy ``s``::

        sum_i w_i ||W' phi_i + b - y_i||^2 + alpha s ||W||^2
            + prox s (||W - W_prev||^2 + ||b - b_prev||^2)

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
    targets : Tensor of shape (..., n, k)
    weight : Tensor of shape (..., d, k)
        The last head's weight; its dtype is that of the factorisation.
    bias : Tensor of shape (..., k)
    alpha : float or Tensor of shape (k,)
        Ridge of the weight, relative to the energy; the bias has none.
    prox : float or Tensor of shape ()
        Pull to the last head, relative to the energy. Where it is a tensor its value
        is not looked at; it must then be at least ``LEAST_LEARNT_PROX``.
    sample_weight : Tensor of shape (..., n) or (..., n, k), default=None
        One for each row, or one for each row and output: an output without any weight
        keeps its last head.
    with_slope : bool, default=False
        Whether to give the derivative by the logarithm of ``prox``, too.

    Returns
    -------
    head : ProximalHead

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025,
    the proximal closed-form update.
    """
    check_rows(features, targets)
    head = solve_update(
        features,
        targets,
        weight,
        bias,
        alpha=alpha,
        prox=prox,
        sample_weight=sample_weight,
        with_slope=with_slope,
    )
    is_solved = torch.as_tensor(head.solved, device=weight.device)
    solved = is_solved[..., None, None]
    return head._replace(
        solved=is_solved,
        weight=torch.where(solved, head.weight, torch.nan),
        bias=torch.where(solved[..., 0], head.bias, torch.nan),
    )


def solve_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
    sample_weight: Tensor | None = None,
    with_slope: bool = False,
) -> ProximalHead:
    """Solve as :func:`proximal_update` does; arbitrary where it is not ``solved``.

    Here it is chosen: LAPACK itself for the plain case on the CPU, torch for all else.
    """
    if (
        isinstance(alpha, float | int)
        and isinstance(prox, float | int)
        and not with_slope
        and _suits_lapack(features, targets, weight, bias, sample_weight)
    ):
        updated = lapack.update(
            features.numpy(),
            targets.numpy(),
            weight.numpy(),
            bias.numpy(),
            alpha=alpha,
            prox=prox,
            sample_weight=None if sample_weight is None else sample_weight.numpy(),
        )
        weight, bias = torch.from_numpy(updated.weight), torch.from_numpy(updated.bias)
        return ProximalHead(weight, bias, updated.solved)
    wide = features.to(weight.dtype)
    residual = (
        targets.to(weight.dtype) - torch.matmul(wide, weight) - bias[..., None, :]
    )
    return proximal_step(
        wide,
        residual,
        weight,
        bias,
        alpha=alpha,
        prox=prox,
        sample_weight=sample_weight,
        with_slope=with_slope,
        mixed=features.dtype == torch.float32,
    )


def _suits_lapack(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    sample_weight: Tensor | None,
) -> bool:
    """Whether one batch is on the CPU, with a float64 head and without a graph.

    LAPACK has one thread; where torch has several, a large batch is left to them.
    """
    if features.ndim != 2 or weight.dtype != torch.float64:
        return False
    n_rows, n_features = features.shape
    products = n_rows * n_features * min(n_rows, n_features)
    if products >= MANY_PRODUCTS and torch.get_num_threads() > 1:
        return False
    tensors = [features, targets, weight, bias]
    if sample_weight is not None:
        if sample_weight.ndim != 1:
            return False
        tensors.append(sample_weight)
    return all(map(is_plain, tensors))
