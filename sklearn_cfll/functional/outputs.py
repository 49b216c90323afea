"""Outputs that weigh the rows differently: a problem of its own for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Numbers in the features that are expanded at once, 128 MB of them in float64.
_MOST_NUMBERS = 2**24


def weighs_outputs(sample_weight: Tensor | None, rows: Tensor) -> bool:
    """Tell weights ``(..., n, k)``, one for each output, from ``(..., n)``."""
    return sample_weight is not None and sample_weight.ndim == rows.ndim


def weighted_sum(weight: Tensor, rows: Tensor) -> Tensor:
    """Sum (k,) over rows (n, k), with weights (n,), (n, 1) or (n, k)."""
    weight = weight.reshape(len(weight), -1)
    if weight.shape[1] == 1:
        return weight[:, 0] @ rows
    return (weight * rows).sum(0)


def step_by_output(
    step: Callable[..., Any],
    features: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: Tensor,
    sample_weight: Tensor,
    **settings: Any,
) -> Any:
    """Solve for each output alone; the outputs are an axis of independent problems.

    An output without any weight keeps its last head.

    Parameters
    ----------
    step : callable
        Solves for all outputs at once, with weights ``(..., n)``.
    features : Tensor of shape (..., n, d)
    residual : Tensor of shape (..., n, k)
    weight : Tensor of shape (..., d, k)
    bias : Tensor of shape (..., k)
    alpha : Tensor of shape () or (k,)
    sample_weight : Tensor of shape (..., n, k)
    **settings
        Further arguments of ``step``.

    Returns
    -------
    head : ProximalHead
    """
    absent = sample_weight.sum(-2, keepdim=True) == 0
    # In place of no weight at all any will do, since its solution is not used.
    sample_weight = torch.where(absent, 1, sample_weight)
    alphas = alpha.expand(residual.shape[-1])[:, None, None]
    size = max(1, _MOST_NUMBERS // features.numel())
    heads = [
        step(
            features.unsqueeze(-3).expand(*own.shape[:-1], *features.shape[-2:]),
            residuals.mT[..., None],
            weights.mT[..., None],
            biases[..., None],
            alpha=ridges,
            sample_weight=own,
            **settings,
        )
        for own, residuals, weights, biases, ridges in zip(
            torch.split(sample_weight.mT, size, -2),
            torch.split(residual, size, -1),
            torch.split(weight, size, -1),
            torch.split(bias, size, -1),
            torch.split(alphas, size),
            strict=True,
        )
    ]
    together: Any = heads[0]._replace(
        weight=torch.where(absent, weight, _columns(heads, "weight")),
        bias=torch.where(absent[..., 0, :], bias, _entries(heads, "bias")),
        solved=torch.cat([head.solved for head in heads], -1).all(-1),
    )
    if together.weight_slope is None:
        return together
    return together._replace(
        weight_slope=_columns(heads, "weight_slope").masked_fill(absent, 0),
        bias_slope=_entries(heads, "bias_slope").masked_fill(absent[..., 0, :], 0),
    )


def _columns(heads: list[Any], name: str) -> Tensor:
    """Give (..., d, k) from parts of shape (..., k_part, d, 1)."""
    return torch.cat([getattr(head, name) for head in heads], -3)[..., 0].mT


def _entries(heads: list[Any], name: str) -> Tensor:
    """Give (..., k) from parts of shape (..., k_part, 1)."""
    return torch.cat([getattr(head, name) for head in heads], -2)[..., 0]
