"""Covariance of the stage-2 heads of one or several members, given their features.

Each member k has predicted stage-2 features of its own, and the prediction is the
members' mean. Features are ``(k, n, d)``, residuals ``(k, n)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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


class Terms(NamedTuple):
    """Features whose errors the heads err by, of all members.

    Attributes
    ----------
    features : Tensor of shape (k, n, d)
    residual : Tensor of shape (k, n)
    mean : Tensor of shape (k, d)
        Weighted mean of the features over all rows.
    """

    features: Tensor
    residual: Tensor
    mean: Tensor


def head_covariance(
    ridges: Sequence[StageRidge],
    alpha: float,
    batches: Iterable[tuple[Sequence[Terms], Tensor | None]],
    *,
    robust: bool = True,
    plain: Sequence[StageRidge] = (),
    plain_alpha: float = 0.0,
) -> HeadCovariance:
    """Covariance of stage-2 heads, as two-stage least squares has it.

    ``B^-1 M B^-1``, where B is the penalised Gram matrix of the predicted features, and
    M is ``sum_i (w_i e_i)^2 g_i g_i'`` (robust to heteroscedastic errors) or the plain
    Gram matrix times the errors' mean square. The residuals e are those at the actual
    treatment. Neither is scaled up for the degrees of freedom.

    A head that is pulled to that of the fit without instruments errs by its share of
    that head's errors as well: ``I - B^-1 G``, with G the Gram matrix without a ridge.

    Parameters
    ----------
    ridges : sequence of StageRidge
        Of stage 2, each member's.
    alpha : float
    batches : iterable of (terms, sample_weight)
        All rows: stage-2 features with the treatment as stage 1 predicts it, and the
        targets less the structural predictions, at the actual treatment. Where
        ``plain`` is given, second, the features at the actual treatment, and the
        targets less the fit without instruments. Weights (n,), with a mean of one over
        all rows, or None.
    robust : bool, default=True
    plain : sequence of StageRidge, default=()
        The fit without instruments that each ridge starts from.
    plain_alpha : float, default=0.0

    Returns
    -------
    covariance : HeadCovariance

    References
    ----------
    Wooldridge, "Econometric Analysis of Cross Section and Panel Data", 2nd edition,
    MIT Press 2010, section 5.2.5: the robust covariance of two-stage least squares.
    """
    inverses = [ridge.gram_inverse(alpha) for ridge in ridges]
    blocks = [torch.stack(inverses)]
    if plain:
        shares = [_share_of_start(*pair) for pair in zip(ridges, inverses, strict=True)]
        own = [ridge.gram_inverse(plain_alpha) for ridge in plain]
        blocks.append(torch.stack(shares) @ torch.stack(own))
    sums = RobustSums() if robust else EvenSums()
    for terms, weight in batches:
        # What a unit of error in a row moves the heads by. The start's errors don't
        # move what is predicted at the mean, which is that of the targets.
        moved = [
            torch.cat([_centred(term) @ block.mT, _column(term, 1.0 - i)], -1)
            for i, (term, block) in enumerate(zip(terms, blocks, strict=True))
        ]
        residual = torch.stack([term.residual.to(blocks[0]) for term in terms])
        if weight is None:
            weight = residual.new_ones(residual.shape[-1])
        sums.add(torch.stack(moved), residual, weight.to(residual))
    mean = torch.stack([ridge.moments.feature_mean for ridge in ridges])
    return HeadCovariance(mean, sums.covariance / ridges[0].moments.weight_sum.square())


class RobustSums:
    """The covariance where each row has an error of its own size."""

    def __init__(self) -> None:
        self.covariance: Any = 0.0

    def add(self, moved: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Add rows: movements (t, k, n, m) by the residuals (t, k, n), weights (n,)."""
        rows = (moved * (weight * residual)[..., None]).sum(0)
        stacked = rows.transpose(0, 1).flatten(1)
        self.covariance = self.covariance + stacked.mT @ stacked


class EvenSums:
    """The covariance where the errors of all rows have one variance."""

    def __init__(self) -> None:
        self.gram: Any = 0.0
        self.squares: Any = 0.0
        self.n_rows = 0

    def add(self, moved: Tensor, residual: Tensor, weight: Tensor) -> None:
        """Add rows: movements (t, k, n, m) by the residuals (t, k, n), weights (n,)."""
        stacked, errors = moved.flatten(0, 1), residual.flatten(0, 1)
        weighted = weight[:, None] * stacked
        self.gram = self.gram + torch.einsum("anp,bnq->abpq", weighted, stacked)
        self.squares = self.squares + (weight * errors) @ errors.mT
        self.n_rows += len(weight)
        self.n_members = residual.shape[1]

    @property
    def covariance(self) -> Tensor:
        """Movements of all terms together, times the errors' variances (m k, m k)."""
        each = self.gram * (self.squares / self.n_rows)[..., None, None]
        k, m = self.n_members, each.shape[-1]
        total: Tensor = each.reshape(-1, k, each.shape[1] // k, k, m, m).sum((0, 2))
        return total.transpose(1, 2).reshape(k * m, k * m)


def _share_of_start(ridge: StageRidge, inverse: Tensor) -> Tensor:
    """By how much (d, d) the head moves with the weight that it is pulled to."""
    gram = ridge.moments.gram / ridge.moments.weight_sum
    return torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - inverse @ gram


def _centred(term: Terms) -> Tensor:
    return term.features.to(term.mean) - term.mean[:, None]


def _column(term: Terms, value: float) -> Tensor:
    return term.mean.new_full((*term.features.shape[:2], 1), value)


def _about(features: Tensor, mean: Tensor) -> Tensor:
    """Features less their mean, and a one behind them: (n, k (d + 1))."""
    centred = features.to(mean) - mean[:, None]
    ones = torch.ones_like(centred[..., :1])
    return torch.cat([centred, ones], -1).transpose(0, 1).flatten(1)
