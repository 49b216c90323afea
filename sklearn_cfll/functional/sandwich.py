"""Covariance of the stage-2 heads of one or several members, given their features.

Each member k has predicted stage-2 features of its own, and the prediction is the
members' mean. Features are ``(k, n, d)``, residuals ``(k, n)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_cfll.functional.instrument import StageRidge


class HeadCovariance(NamedTuple):
    """Covariance of the heads, about the means of their features.

    Attributes
    ----------
    mean : Tensor of shape (k, d)
        Weighted mean of each member's predicted stage-2 features.
    covariance : Tensor of shape (k (d + 1), k (d + 1))
        Of each member's weight, followed by its prediction at the mean.
    """

    mean: Tensor
    covariance: Tensor

    def deviation(self, features: Tensor) -> Tensor:
        """Give the standard deviation (n,) of the mean prediction at features."""
        design = _about(features, self.mean) / len(self.mean)
        variance: Tensor = torch.linalg.vecdot(design @ self.covariance, design)
        return variance.clamp_min(0).sqrt()

    @property
    def of_mean_weight(self) -> Tensor:
        """Standard errors (d,) of the mean of the members' weights."""
        k, d = self.mean.shape
        parts = self.covariance.reshape(k, d + 1, k, d + 1)[:, :-1, :, :-1]
        variance: Tensor = parts.sum((0, 2)).diagonal() / k**2
        return variance.clamp_min(0).sqrt()

    @property
    def of_weight(self) -> Tensor:
        """Standard errors (k, d) of the weights."""
        variance = self.covariance.diagonal().reshape(len(self.mean), -1)[:, :-1]
        return variance.clamp_min(0).sqrt()


class Meat(NamedTuple):
    """Sums over rows that the covariance is made of.

    Attributes
    ----------
    scores : Tensor of shape (k (d + 1), k (d + 1))
        ``sum_i s_i s_i'`` of ``s_i = w_i e_ik g_ik``, with g the centred predicted
        features and one, the members one after the other.
    gram : Tensor of shape (k (d + 1), k (d + 1))
        ``sum_i w_i g_i g_i'``.
    squares : Tensor of shape (k, k)
        ``sum_i w_i e_ij e_ik``.
    n_rows : int
    """

    scores: Tensor
    gram: Tensor
    squares: Tensor
    n_rows: int

    @classmethod
    def of(
        cls,
        predicted: Tensor,
        residual: Tensor,
        mean: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Meat:
        """Sum over a batch.

        Parameters
        ----------
        predicted : Tensor of shape (k, n, d)
            Stage-2 features with the treatment as stage 1 predicts it.
        residual : Tensor of shape (k, n)
            Targets less the structural predictions, at the actual treatment.
        mean : Tensor of shape (k, d)
        sample_weight : Tensor of shape (n,), default=None
            Of mean one.
        """
        design = _about(predicted, mean)
        residual = residual.to(design)
        weight = residual.new_ones(residual.shape[1])
        if sample_weight is not None:
            weight = sample_weight.to(design)
        each = (weight * residual).mT
        scores = design * each.repeat_interleave(predicted.shape[2] + 1, dim=1)
        return cls(
            scores.mT @ scores,
            design.mT @ (design * weight[:, None]),
            (weight * residual) @ residual.mT,
            len(design),
        )

    def merge(self, other: Meat) -> Meat:
        """Sum over both sets of rows."""
        return Meat(
            self.scores + other.scores,
            self.gram + other.gram,
            self.squares + other.squares,
            self.n_rows + other.n_rows,
        )


def head_covariance(
    ridges: Sequence[StageRidge], alpha: float, meat: Meat, *, robust: bool = True
) -> HeadCovariance:
    """Covariance of stage-2 heads, as two-stage least squares has it.

    ``B^-1 M B^-1``, where B is the penalised Gram matrix of the predicted features, and
    M is ``sum_i (w_i e_i)^2 g_i g_i'`` (robust to heteroscedastic errors) or the plain
    Gram matrix times the errors' mean square. The residuals e are those at the actual
    treatment. Neither is scaled up for the degrees of freedom.

    Parameters
    ----------
    ridges : sequence of StageRidge
        Of stage 2, each member's.
    alpha : float
    meat : Meat
    robust : bool, default=True

    Returns
    -------
    covariance : HeadCovariance

    References
    ----------
    Wooldridge, "Econometric Analysis of Cross Section and Panel Data", 2nd edition,
    MIT Press 2010, section 5.2.5: the robust covariance of two-stage least squares.
    """
    blocks = []
    for ridge in ridges:
        total = ridge.moments.weight_sum
        one = (1 / total).reshape(1, 1)
        blocks += [ridge.gram_inverse(alpha) / total, one]
    bread: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    middle = meat.scores
    if not robust:
        size = len(bread) // len(ridges)
        variances = meat.squares / meat.n_rows
        variances = variances.repeat_interleave(size, 0).repeat_interleave(size, 1)
        middle = meat.gram * variances
    mean = torch.stack([ridge.moments.feature_mean for ridge in ridges])
    return HeadCovariance(mean, bread @ middle @ bread)


def _about(features: Tensor, mean: Tensor) -> Tensor:
    """Features less their mean, and a one behind them: (n, k (d + 1))."""
    centred = features.to(mean) - mean[:, None]
    ones = torch.ones_like(centred[..., :1])
    return torch.cat([centred, ones], -1).transpose(0, 1).flatten(1)
