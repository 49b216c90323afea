"""Two-stage solves: instruments predict treatment features, these predict targets.

Conventions: instrument features phi are ``(n, q)``, treatment features psi ``(n, p)``,
covariate features chi ``(n, r)``, targets ``(n, k)``. Stage 1 predicts psi from phi;
stage 2 predicts the targets from the stage-2 features, which are made of the predicted
psi and of chi. Every head has a free intercept. On a minibatch ``alpha`` and ``prox``
are relative to the mean feature energy, as in :mod:`sklearn_cfll.functional.ridge`; in
an exact solve ``alpha`` is relative to each feature's own variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_cfll.functional.errors import PathErrors
from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.ridge import ProximalHead, proximal_step
from sklearn_cfll.functional.ridge_path import RidgePath

# What stage 2 may be made of.
COMBINATIONS = ("product", "concatenate")

# Ridge of a free feature, relative to that of others: enough to keep a system solvable,
# and at the largest ridge of a path still little beside what weak instruments identify.
_FREE = 1e-8


def combine_features(
    treatment: Tensor, covariates: Tensor | None = None, combine: str = "product"
) -> Tensor:
    """Make the stage-2 features of treatment and covariate features.

    Parameters
    ----------
    treatment : Tensor of shape (..., n, p)
        Treatment features, predicted or actual.
    covariates : Tensor of shape (..., n, r), default=None
        Features of the exogenous columns.
    combine : {"product", "concatenate"}, default="product"
        "product" is the outer product of ``[treatment, 1]`` and ``[covariates, 1]``,
        so that the effect of the treatment varies with the covariates; "concatenate"
        is ``[treatment, covariates]``.

    Returns
    -------
    features : Tensor of shape (..., n, d), where d is p, p + r or p + r + p r
        Without the constant one, which the head's intercept stands for: the treatment
        features, the covariates, and their products, covariates running fastest.
    """
    if covariates is None:
        return treatment
    parts = [treatment, covariates]
    if combine == "product":
        products = treatment[..., :, None] * covariates[..., None, :]
        parts.append(products.flatten(-2))
    return torch.cat(parts, -1)


def first_stage_update(
    instrument_features: Tensor,
    treatment_features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float,
    prox: float,
    sample_weight: Tensor | None = None,
) -> ProximalHead:
    """Solve the proximal stage 1 of one batch; the treatment features keep their graph.

    Minimises over ``V, c``, with weights that sum to one and the energy ``s`` of phi::

        sum_i w_i ||V' phi_i + c - psi_i||^2 + alpha s ||V||^2
            + prox s (||V - V_prev||^2 + ||c - c_prev||^2)

    The solution is linear in psi, and so are gradients through it: that of stage 2
    reaches the treatment network by it.

    Parameters
    ----------
    instrument_features : Tensor of shape (..., n, q)
        Taken without their graph.
    treatment_features : Tensor of shape (..., n, p)
    weight : Tensor of shape (..., q, p)
        The last head's weight; its dtype is that of the factorisation.
    bias : Tensor of shape (..., p)
    alpha, prox : float
    sample_weight : Tensor of shape (..., n), default=None

    Returns
    -------
    head : ProximalHead
        Arbitrary where it is not ``solved``.
    """
    features = instrument_features.detach().to(weight.dtype)
    last = features @ weight + bias[..., None, :]
    residual = treatment_features.to(weight.dtype) - last
    return proximal_step(
        features,
        residual,
        weight,
        bias,
        alpha=alpha,
        prox=prox,
        sample_weight=sample_weight,
    )


class StageRidge:
    """Ridge heads of a stage for every ``alpha``, relative to each feature's variance.

    Parameters
    ----------
    moments : Moments
    free : bool Tensor of shape (d,), default=None
        Features that are all but spared the ridge.
    unit : Tensor of shape (d,), default=None
        What the features are measured by; None is their standard deviation. In stage 2
        it is that at the actual treatment: what stage 1 predicts varies less, least of
        all where the instruments tell little, and by its own measure a direction that
        is hardly identified would cost no more than others.
    """

    def __init__(
        self,
        moments: Moments,
        free: Tensor | None = None,
        unit: Tensor | None = None,
        start: Tensor | None = None,
    ) -> None:
        self.moments = moments
        self.start = torch.zeros_like(moments.cross) if start is None else start
        if unit is None:
            unit = deviation_of(moments)
        if free is not None:
            unit = torch.where(free.to(unit.device), unit * _FREE**0.5, unit)
        self.unit = unit
        left = moments.less(self.start)
        scaled = replace(
            left,
            feature_mean=left.feature_mean / unit,
            gram=left.gram / torch.outer(unit, unit),
            cross=left.cross / unit[:, None],
        )
        self.path = RidgePath(scaled, energy=torch.ones_like(scaled.energy))

    def solve(self, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (d, k) and bias (k,) at an alpha, or at one for each output."""
        weight, bias = self.path.solve(alpha)
        return self.start + weight / self.unit[:, None], bias

    def squares(
        self, features: Tensor, targets: Tensor, alphas: Sequence[float]
    ) -> Iterator[Tensor]:
        """Yield the squared errors (n, k) of each alpha on rows."""
        features = features.to(self.unit)
        left = targets - features @ self.start
        return PathErrors(self.path).squares_of_rows(features / self.unit, left, alphas)

    def generalized_errors(self, alphas: Sequence[float], unit: float = 1.0) -> Tensor:
        """Generalised cross-validation's errors (n_alphas, k).

        ``unit`` is the number of rows that a weight of one counts for.
        """
        counted = RidgePath(self.path.moments.scaled(unit), energy=self.path.energy)
        return counted.generalized_errors(alphas)

    def gram_inverse(self, alpha: float) -> Tensor:
        """Inverse (d, d) of the penalised Gram matrix of weights that sum to one."""
        inverse: Tensor = self.path.gram_inverse(alpha)
        return inverse / torch.outer(self.unit, self.unit)


def deviation_of(moments: Moments) -> Tensor:
    """Give standard deviations (d,) of features, one for those that are constant."""
    deviation = (moments.gram.diagonal() / moments.weight_sum_or_tiny).sqrt()
    # A constant feature deviates by rounding alone.
    spacing = torch.finfo(deviation.dtype).eps * moments.weight_sum
    varies = deviation > spacing * moments.feature_mean.abs()
    return torch.where(varies, deviation, 1.0)


class TwoStageHead(NamedTuple):
    """Heads of both stages.

    Attributes
    ----------
    first_weight : Tensor of shape (q, p)
    first_bias : Tensor of shape (p,)
    weight : Tensor of shape (d, k)
        Of the stage-2 features that :func:`combine_features` makes.
    bias : Tensor of shape (k,)
    """

    first_weight: Tensor
    first_bias: Tensor
    weight: Tensor
    bias: Tensor


def solve_two_stages(
    instrument_features: Tensor,
    treatment_features: Tensor,
    targets: Tensor,
    *,
    covariates: Tensor | None = None,
    combine: str = "product",
    alpha: float = 0.0,
    instrument_alpha: float = 0.0,
    sample_weight: Tensor | None = None,
) -> TwoStageHead:
    """Solve both stages by ridge; without a ridge it is two-stage least squares.

    Parameters
    ----------
    instrument_features : Tensor of shape (n, q)
        Those of the exogenous columns among them.
    treatment_features : Tensor of shape (n, p)
    targets : Tensor of shape (n, k)
    covariates : Tensor of shape (n, r), default=None
    combine : {"product", "concatenate"}, default="product"
    alpha, instrument_alpha : float, default=0.0
        Ridges of stage 2 and of stage 1, relative to each feature's variance.
    sample_weight : Tensor of shape (n,), default=None

    Returns
    -------
    heads : TwoStageHead

    References
    ----------
    Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in
    Instrumental Variable Regression", ICLR 2021, arXiv 2010.07154, equations 3 to 5.
    """
    first = StageRidge(
        Moments.of(instrument_features, treatment_features, sample_weight)
    )
    first_weight, first_bias = first.solve(instrument_alpha)
    predicted = instrument_features.to(first_weight) @ first_weight + first_bias
    if covariates is not None:
        covariates = covariates.to(predicted)
    features = combine_features(predicted, covariates, combine)
    second = StageRidge(Moments.of(features, targets, sample_weight))
    return TwoStageHead(first_weight, first_bias, *second.solve(alpha))
