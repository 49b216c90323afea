"""The Gaussian posterior of a ridge head, given the features.

Ridge regression is the mean of a posterior: rows have noise of variance ``v``, and
each weight a prior of variance ``v / (S alpha s)``, where S is the sum of the weights
and s the mean feature energy; the bias has a flat prior. The covariance of a prediction
is then v times a matrix that knows the features alone, so that one factor serves all
outputs (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_cfll.functional.outputs import weighted_sum
from sklearn_cfll.functional.paths import AnyPath, RidgePathByOutput
from sklearn_cfll.functional.ridge import like
from sklearn_cfll.functional.ridge_path import RidgePath

# Ratios of the posterior's variance to that of the ridge model that are tried.
_SCALES = tuple(10.0 ** (exponent / 4) for exponent in range(-12, 13))

# Standard deviation of the ratio's logarithm, as few rows leave it.
_SCALE_DEVIATION = math.log(10)

# Least variance of noise relative to that of the targets.
_LEAST_NOISE = 1e-16

# Share of degrees of freedom that the head must leave for its errors to say something.
_LEAST_KEPT = 1e-10


@dataclass(frozen=True)
class HeadPosterior:
    """Covariance of a head's predictions, in units of the noise's variance.

    Outputs that share their ridge share a column, and those that share their weights
    a group; ``g m`` is 1 or the number of outputs.

    Attributes
    ----------
    weight_sum : Tensor of shape (g,)
    mean : Tensor of shape (g, d)
        Of the features.
    vectors : Tensor of shape (g, d, d)
        Eigenvectors of the features' Gram matrix.
    inverse : Tensor of shape (g, d, m)
        Eigenvalues of the inverse of the penalised Gram matrix.
    """

    weight_sum: Tensor
    mean: Tensor
    vectors: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, path: AnyPath, alpha: float | Tensor) -> HeadPosterior:
        """Posterior of the head at one alpha, or one alpha an output, on the CPU.

        Parameters
        ----------
        path : RidgePath or RidgePathByOutput
        alpha : float or Tensor of shape (k,)
        """
        parts = _parts(path, alpha)
        columns = [
            torch.stack([part.moments.weight_sum_to_divide_by for part, _ in parts]),
            torch.stack([part.moments.feature_mean for part, _ in parts]),
            torch.stack([part.vectors for part, _ in parts]),
            torch.stack([part.inverse(own) for part, own in parts]),
        ]
        return cls(*(column.to("cpu", torch.float64) for column in columns))

    def project(self, features: Tensor) -> Tensor:
        """Centred features (g, n, d) in the basis of the eigenvectors."""
        features = features.to(self.vectors)
        projected: Tensor = (features - self.mean[:, None]) @ self.vectors
        return projected

    def leverage(self, features: Tensor) -> Tensor:
        """Variance (n, g m) of the prediction for features (n, d).

        For a row of the training it is the pull of a unit of its weight on its own
        prediction.
        """
        pull = self.project(features).square() @ self.inverse + 1
        return (pull / self.weight_sum[:, None, None]).permute(1, 0, 2).flatten(1)

    def covariance(self, features: Tensor) -> Tensor:
        """Covariance (n, n, g m) of the predictions for features (n, d)."""
        projected = self.project(features)[:, None]
        roots = projected * self.inverse.mT[:, :, None].sqrt()
        between = (roots @ roots.mT + 1) / self.weight_sum[:, None, None, None]
        return between.flatten(0, 1).permute(1, 2, 0)

    def deviations(self, features: Tensor, normal: Tensor) -> Tensor:
        """Predictions of drawn heads less the mean head's.

        Parameters
        ----------
        features : Tensor of shape (n, d)
        normal : Tensor of shape (d + 1, k, n_draws)
            Standard normal numbers, those of the bias last.

        Returns
        -------
        deviations : Tensor of shape (n, k, n_draws)
        """
        n_outputs = normal.shape[1]
        columns = self.inverse.permute(1, 0, 2).flatten(1).sqrt()
        weights = (columns[..., None] * normal[:-1]).movedim(1, 0)
        projected = self.project(features)
        if len(projected) == 1:  # one basis for all outputs
            weights = weights.movedim(0, 1).flatten(1)[None]
        predicted = (projected @ weights).movedim(0, 1)
        predicted = predicted.reshape(len(features), n_outputs, -1) + normal[-1]
        return predicted / self.weight_sum.sqrt()[:, None]


def effective_dof(path: AnyPath, alpha: float | Tensor) -> Tensor:
    """Effective degrees of freedom, the bias included: the sum of the leverages.

    Parameters
    ----------
    path : RidgePath or RidgePathByOutput
    alpha : float or Tensor of shape (k,)

    Returns
    -------
    degrees : Tensor of shape (1,) or (k,)
        The trace of the matrix that makes predictions of targets.
    """
    traces = [part.values @ part.inverse(own) + 1 for part, own in _parts(path, alpha)]
    return torch.cat(traces)


def weight_sums(path: AnyPath) -> Tensor:
    """Sum the rows' weights: (1,), or (k,) where outputs have their own."""
    return torch.stack([part.moments.weight_sum for part, _ in _parts(path, 0.0)])


def noise_left(
    path: AnyPath, alpha: float | Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Variance of the noise by the errors on the rows that the head was solved on.

    Their sum of squares over the rows less the head's degrees of freedom. The rows'
    weights are one in the mean.

    Parameters
    ----------
    path : RidgePath or RidgePathByOutput
    alpha : float or Tensor of shape (k,)
    weight : Tensor of shape (d, k)
    bias : Tensor of shape (k,)

    Returns
    -------
    noise : Tensor of shape (k,)
        That of the targets where the head has a degree of freedom for each row.
    """
    kept = 1 - effective_dof(path, alpha) / weight_sums(path)
    # Errors of outputs that have their own weights are relative to the mean weight.
    share = weight_sums(path) / path.moments.weight_sum
    error = path.moments.error_of(weight, bias).clamp_min(0) / share
    noise = error / kept.clamp_min(_LEAST_KEPT)
    noise = torch.where(kept > _LEAST_KEPT, noise, path.moments.error_of_mean / share)
    return noise.clamp_min(_LEAST_NOISE)


def log_evidence(path: AnyPath, alpha: float | Tensor, noise: float | Tensor) -> Tensor:
    """Logarithm of the probability density of the targets, given the features.

    The flat prior of the bias has no density; what is given is that of the n - 1
    contrasts of the targets that don't depend on the bias.

    Parameters
    ----------
    path : RidgePath or RidgePathByOutput
    alpha : float or Tensor of shape (k,)
    noise : float or Tensor of shape (k,)
        Variance of the noise. A row's weight is a number of equal rows.

    Returns
    -------
    evidence : Tensor of shape (k,)
        Minus infinity at ``alpha`` 0, where the prior is flat.
    """
    parts = _parts(path, alpha)
    noises = like(parts[0][0].values, noise).reshape(-1)
    each = noises.expand(len(parts))[:, None] if len(parts) > 1 else noises[None]
    return torch.cat(
        [
            _log_evidence(part, own, variance)
            for (part, own), variance in zip(parts, each, strict=True)
        ]
    )


def _log_evidence(path: RidgePath, alpha: Tensor, noise: Tensor) -> Tensor:
    weight_sum = path.moments.weight_sum
    penalty = alpha.reshape(1, -1) * path.energy
    # Of the matrix I + Phi Phi' / (S penalty), by Sylvester's and Woodbury's formulas.
    determinant = torch.log1p(path.values[:, None] / penalty).sum(0)
    explained = (path.cross.square() * path.inverse(alpha)).sum(0)
    square = path.moments.target_square - weight_sum * explained
    contrasts = (weight_sum - 1) * torch.log(2 * math.pi * noise)
    evidence: Tensor = -0.5 * (contrasts + determinant + square / noise)
    return torch.where(penalty[0] > 0, evidence, -math.inf)


def _parts(path: AnyPath, alpha: float | Tensor) -> list[tuple[RidgePath, Tensor]]:
    """Paths of the groups of outputs that share their weights, with their alphas."""
    if isinstance(path, RidgePathByOutput):
        alphas = like(path.paths[0].values, alpha).reshape(-1).expand(len(path.paths))
        return list(zip(path.paths, alphas, strict=True))
    return [(path, like(path.values, alpha))]


def fit_noise(
    residual: Tensor, leverage: Tensor, sample_weight: Tensor | None = None
) -> tuple[Tensor, float]:
    """Fit the variance of predictions to the errors on rows that were left out.

    A row's error has the variance ``noise * (1 + scale * leverage)``; the likelihood is
    Gaussian. Where the ridge model is right the scale is 1. It is more where leverages
    are too small, as those of features that were learnt from the training rows may
    be. A log-normal prior around 1, of a factor of ten, rules where rows are few.

    Parameters
    ----------
    residual : Tensor of shape (n, k)
    leverage : Tensor of shape (n, 1) or (n, k)
    sample_weight : Tensor of shape (n,) or (n, k), default=None

    Returns
    -------
    noise : Tensor of shape (k,)
        One where an output has no weight; in the mean the outputs have variance one.
    scale : float
        Shared by the outputs.
    """
    square = residual.square()
    if sample_weight is None:
        sample_weight = square.new_ones(len(square))
    weight = sample_weight.reshape(len(square), -1).to(square)
    weight = weight / weight.mean()
    total = weight.sum(0)
    known = (total > 0).expand(square.shape[1])
    best, noise, scale = -math.inf, square.new_ones(len(known)), 1.0
    for candidate in _SCALES:
        spread = 1 + candidate * leverage
        variance = weighted_sum(weight / spread, square) / total.clamp_min(1e-300)
        variance = torch.where(known, variance.clamp_min(_LEAST_NOISE), 1.0)
        fit = total * variance.log() + (weight * spread.log()).sum(0)
        # The mean, not the sum, over outputs, whose errors are seldom independent.
        fit = -0.5 * float(fit.mean())
        fit -= 0.5 * (math.log(candidate) / _SCALE_DEVIATION) ** 2
        if fit > best:
            best, noise, scale = fit, variance, candidate
    return noise, scale
