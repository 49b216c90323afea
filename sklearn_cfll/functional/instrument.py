"""Two-stage solves: instruments predict treatment features, these predict targets.

Conventions: instrument features phi are ``(n, q)``, treatment features psi ``(n, p)``,
covariate features chi ``(n, r)``, targets ``(n, k)``. Stage 1 predicts psi from phi;
stage 2 predicts the targets from the stage-2 features, which are made of the predicted
psi and of chi. Every head has a free intercept. ``alpha`` and ``prox`` are relative to
the mean feature energy, as in :mod:`sklearn_cfll.functional.ridge`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_cfll.functional.moments import Moments, RidgePath
from sklearn_cfll.functional.ridge import ProximalHead, proximal_step

# What stage 2 may be made of.
COMBINATIONS = ("product", "concatenate")


def combine_features(
    treatment: Tensor, covariates: Tensor | None = None, combine: str = "product"
) -> Tensor:
    """Make the stage-2 features of treatment and covariate features.

    Parameters
    ----------
    treatment : Tensor of shape (n, p)
        Treatment features, predicted or actual.
    covariates : Tensor of shape (n, r), default=None
        Features of the exogenous columns.
    combine : {"product", "concatenate"}, default="product"
        "product" is the outer product of ``[treatment, 1]`` and ``[covariates, 1]``,
        so that the effect of the treatment varies with the covariates; "concatenate"
        is ``[treatment, covariates]``.

    Returns
    -------
    features : Tensor of shape (n, p), (n, p + r) or (n, p + r + p r)
        Without the constant one, which the head's intercept stands for: the treatment
        features, the covariates, and their products, covariates running fastest.
    """
    if covariates is None:
        return treatment
    parts = [treatment, covariates]
    if combine == "product":
        parts.append((treatment[:, :, None] * covariates[:, None, :]).flatten(1))
    return torch.cat(parts, 1)


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
    instrument_features : Tensor of shape (n, q)
        Taken without their graph.
    treatment_features : Tensor of shape (n, p)
    weight : Tensor of shape (q, p)
        The last head's weight; its dtype is that of the factorisation.
    bias : Tensor of shape (p,)
    alpha, prox : float
    sample_weight : Tensor of shape (n,), default=None

    Returns
    -------
    head : ProximalHead
        Arbitrary where it is not ``solved``.
    """
    features = instrument_features.detach().to(weight.dtype)
    residual = treatment_features.to(weight.dtype) - (features @ weight + bias)
    return proximal_step(
        features,
        residual,
        weight,
        bias,
        alpha=alpha,
        prox=prox,
        sample_weight=sample_weight,
    )


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
        Ridges of stage 2 and of stage 1.
    sample_weight : Tensor of shape (n,), default=None

    Returns
    -------
    heads : TwoStageHead

    References
    ----------
    Xu, Chen, Srinivasan, de Freitas, Doucet, Gretton, "Learning Deep Features in
    Instrumental Variable Regression", ICLR 2021, arXiv 2010.07154, equations 3 to 5.
    """
    first = RidgePath(
        Moments.of(instrument_features, treatment_features, sample_weight)
    )
    first_weight, first_bias = first.solve(instrument_alpha)
    predicted = instrument_features.to(first_weight) @ first_weight + first_bias
    if covariates is not None:
        covariates = covariates.to(predicted)
    features = combine_features(predicted, covariates, combine)
    second = RidgePath(Moments.of(features, targets, sample_weight))
    return TwoStageHead(first_weight, first_bias, *second.solve(alpha))


class HeadCovariance(NamedTuple):
    """Covariance of a stage-2 head, about the mean of its features.

    Attributes
    ----------
    mean : Tensor of shape (d,)
        Weighted mean of the predicted stage-2 features.
    covariance : Tensor of shape (d + 1, d + 1)
        Of the weight, and of the prediction at the mean, which comes last.
    """

    mean: Tensor
    covariance: Tensor

    def deviation(self, features: Tensor) -> Tensor:
        """Give the standard deviation (n,) of the predictions at features (n, d)."""
        design = _about(features, self.mean)
        variance: Tensor = torch.linalg.vecdot(design @ self.covariance, design)
        return variance.clamp_min(0).sqrt()

    @property
    def of_weight(self) -> Tensor:
        """Standard errors (d,) of the weight."""
        return self.covariance.diagonal()[:-1].clamp_min(0).sqrt()

    @property
    def of_bias(self) -> Tensor:
        """Standard error () of the bias: of the prediction at features of zero."""
        return self.deviation(torch.zeros_like(self.mean)[None])[0]


class Meat(NamedTuple):
    """Sums over rows that the covariance of a stage-2 head is made of.

    Attributes
    ----------
    scores : Tensor of shape (d + 1, d + 1)
        ``sum_i (w_i e_i)^2 g_i g_i'``, with g the centred predicted features and one.
    gram : Tensor of shape (d + 1, d + 1)
        ``sum_i w_i g_i g_i'``.
    square : Tensor of shape ()
        ``sum_i w_i e_i^2``.
    n_rows : int
    """

    scores: Tensor
    gram: Tensor
    square: Tensor
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
        predicted : Tensor of shape (n, d)
            Stage-2 features with the treatment as stage 1 predicts it.
        residual : Tensor of shape (n,)
            Targets less the structural predictions, at the actual treatment.
        mean : Tensor of shape (d,)
        sample_weight : Tensor of shape (n,), default=None
            Of mean one.
        """
        design = _about(predicted, mean)
        residual = residual.to(design)
        weight = residual.new_ones(len(residual))
        if sample_weight is not None:
            weight = sample_weight.to(design)
        scores = design * (weight * residual)[:, None]
        gram = design.mT @ (design * weight[:, None])
        square = weight @ residual.square()
        return cls(scores.mT @ scores, gram, square, len(residual))

    def merge(self, other: Meat) -> Meat:
        """Sum over both sets of rows."""
        return Meat(
            self.scores + other.scores,
            self.gram + other.gram,
            self.square + other.square,
            self.n_rows + other.n_rows,
        )


def head_covariance(
    path: RidgePath, alpha: float, meat: Meat, *, robust: bool = True
) -> HeadCovariance:
    """Covariance of a stage-2 head, as two-stage least squares has it.

    ``B^-1 M B^-1``, where B is the penalised Gram matrix of the predicted features, and
    M is ``sum_i (w_i e_i)^2 g_i g_i'`` (robust to heteroscedastic errors) or the plain
    Gram matrix times the errors' mean square. The residuals e are those at the actual
    treatment. Neither is scaled up for the degrees of freedom.

    Parameters
    ----------
    path : RidgePath
        Of stage 2.
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
    total = path.moments.weight_sum
    n_features = len(path.moments.feature_mean)
    inverse = path.gram_inverse(alpha) / total
    bread = torch.zeros(n_features + 1, n_features + 1).to(inverse)
    bread[:-1, :-1], bread[-1, -1] = inverse, 1 / total
    middle = meat.scores if robust else meat.gram * (meat.square / meat.n_rows)
    return HeadCovariance(path.moments.feature_mean, bread @ middle @ bread)


def _about(features: Tensor, mean: Tensor) -> Tensor:
    """Features less their mean, and a constant one behind them."""
    centred = features.to(mean) - mean
    return torch.cat([centred, centred.new_ones(len(centred), 1)], 1)
