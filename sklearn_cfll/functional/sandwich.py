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


class RobustMeat(NamedTuple):
    """What the errors of the heads come from, each row's its own.

    Attributes
    ----------
    scores : Tensor of shape (m, m)
        ``sum_i s_i s_i'`` of ``s_ij = w_i e_ij g_ij``, with g the features less their
        mean, and one, of all terms and members one after the other; e the residual of
        each.
    """

    scores: Tensor

    @classmethod
    def of(
        cls, terms: Sequence[Terms], sample_weight: Tensor | None = None
    ) -> RobustMeat:
        """Sum over a batch, whose weights (n,) have a mean of one over all rows."""
        design, residual, weight = _stacked(terms, sample_weight)
        scores = design * torch.cat(
            [
                (weight * own).mT.repeat_interleave(term.mean.shape[1] + 1, dim=1)
                for term, own in zip(terms, residual, strict=True)
            ],
            1,
        )
        return cls(scores.mT @ scores)

    def merge(self, other: RobustMeat) -> RobustMeat:
        """Sum over both sets of rows."""
        return RobustMeat(self.scores + other.scores)

    def middle(self) -> Tensor:
        """Give the middle of the sandwich (m, m)."""
        return self.scores


class EvenMeat(NamedTuple):
    """What the errors of the heads come from, of one variance for all rows.

    Attributes
    ----------
    gram : Tensor of shape (m, m)
        ``sum_i w_i g_i g_i'``, with g as :class:`RobustMeat` has it.
    squares : Tensor of shape (t, t)
        ``sum_i w_i e_ij e_il`` of the residuals of all terms and members.
    sizes : Tensor of shape (t,)
        How many of g have each residual.
    n_rows : int
    """

    gram: Tensor
    squares: Tensor
    sizes: Tensor
    n_rows: int

    @classmethod
    def of(
        cls, terms: Sequence[Terms], sample_weight: Tensor | None = None
    ) -> EvenMeat:
        """Sum over a batch, whose weights (n,) have a mean of one over all rows."""
        design, residual, weight = _stacked(terms, sample_weight)
        errors = torch.cat(residual)
        sizes = [term.mean.shape[1] + 1 for term in terms for _ in term.mean]
        return cls(
            design.mT @ (weight[:, None] * design),
            (weight * errors) @ errors.mT,
            torch.tensor(sizes, device=errors.device),
            len(design),
        )

    def merge(self, other: EvenMeat) -> EvenMeat:
        """Sum over both sets of rows."""
        return EvenMeat(
            self.gram + other.gram,
            self.squares + other.squares,
            self.sizes,
            self.n_rows + other.n_rows,
        )

    def middle(self) -> Tensor:
        """Give the middle of the sandwich (m, m)."""
        variances = (self.squares / self.n_rows).repeat_interleave(self.sizes, 0)
        return self.gram * variances.repeat_interleave(self.sizes, 1)


def _stacked(
    terms: Sequence[Terms], sample_weight: Tensor | None
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Features of all terms about their means (n, m), residuals (k, n), weights."""
    design = torch.cat([_about(term.features, term.mean) for term in terms], 1)
    residual = [term.residual.to(design) for term in terms]
    weight = design.new_ones(len(design))
    if sample_weight is not None:
        weight = sample_weight.to(design)
    return design, residual, weight


def head_covariance(
    ridges: Sequence[StageRidge],
    alpha: float,
    meat: RobustMeat | EvenMeat,
    *,
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
    meat : RobustMeat or EvenMeat
        Of one term, or of two where ``plain`` is given.
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
    own, other = [], []
    for i, ridge in enumerate(ridges):
        inverse = ridge.gram_inverse(alpha)
        own.append(_with_mean(inverse, 1.0))
        if plain:
            share = torch.eye(len(inverse)).to(inverse) - inverse @ (
                ridge.moments.gram / ridge.moments.weight_sum
            )
            other.append(_with_mean(share @ plain[i].gram_inverse(plain_alpha), 0.0))
    parts = [torch.block_diag(*own)]  # type: ignore[no-untyped-call]
    if plain:
        parts.append(torch.block_diag(*other))  # type: ignore[no-untyped-call]
    bread = torch.cat(parts, 1) / ridges[0].moments.weight_sum
    mean = torch.stack([ridge.moments.feature_mean for ridge in ridges])
    return HeadCovariance(mean, bread @ meat.middle() @ bread.mT)


def _with_mean(block: Tensor, mean: float) -> Tensor:
    """Add the row and the column of what is predicted at the mean."""
    return torch.block_diag(block, block.new_tensor([[mean]]))  # type: ignore[no-untyped-call,no-any-return]


def _about(features: Tensor, mean: Tensor) -> Tensor:
    """Features less their mean, and a one behind them: (n, k (d + 1))."""
    centred = features.to(mean) - mean[:, None]
    ones = torch.ones_like(centred[..., :1])
    return torch.cat([centred, ones], -1).transpose(0, 1).flatten(1)
