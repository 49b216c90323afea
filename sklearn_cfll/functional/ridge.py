"""Ridge and proximal solves of a linear head with a free intercept.

Conventions: features are ``(..., n, d)``, targets ``(..., n, k)``, sample weights
``(..., n)``, a head is a weight ``(..., d, k)`` and a bias ``(..., k)``. Penalties
``alpha`` and ``prox`` are relative: they multiply the mean feature energy
:func:`feature_energy`, which makes them dimensionless.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this ratio of largest to smallest eigenvalue a float32 Gram matrix is a safe
# preconditioner: its relative error, about 1e-7 times this, is far below one, so
# that one step of refinement squares it away.
_SAFE_CONDITION = 1e4


def normalised_weights(features: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Weights in float64 that sum to one over the rows."""
    if sample_weight is None:
        n_rows = features.shape[-2]
        return features.new_full(features.shape[:-1], 1 / n_rows, dtype=_wide(features))
    weight = sample_weight.to(_wide(features))
    return weight / weight.sum(-1, keepdim=True)


def feature_energy(features: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Weighted mean square of the features, the intercept's constant one included.

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
    sample_weight : Tensor of shape (..., n), default=None

    Returns
    -------
    energy : Tensor of shape (...)
        ``(sum_i w_i (||phi_i||^2 + 1)) / ((d + 1) sum_i w_i)``.
    """
    weight = normalised_weights(features, sample_weight)
    return _energy(features.to(weight.dtype), weight)


def solve_ridge(
    features: Tensor,
    targets: Tensor,
    alpha: float | Tensor,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of least penalised squared error; the bias is free.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    alpha : float or Tensor of shape (k,)
        Ridge relative to the mean feature energy.
    sample_weight : Tensor of shape (n,), default=None

    Returns
    -------
    weight : Tensor of shape (d, k)
    bias : Tensor of shape (k,)
    """
    moments = Moments.of(features, targets, sample_weight)
    return RidgePath(moments).solve(alpha)


def proximal_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
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
    prox : float
        Pull to the last head, relative to the energy.
    sample_weight : Tensor of shape (..., n), default=None

    Returns
    -------
    weight, bias : Tensors, shaped as those given
        Not-a-number where the system has no Cholesky factor; nothing is raised, so
        that an accelerator needs no synchronisation.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025,
    the proximal closed-form update.
    """
    wide = features.to(weight.dtype)
    row_weight = normalised_weights(features, sample_weight).to(weight.dtype)
    energy = _energy(wide, row_weight)
    pull = prox * energy
    # The bias is eliminated by a Schur complement, which is a partial centring of
    # the rows: whole at prox 0, none as prox grows.
    centring = 1 - torch.sqrt(pull / (1 + pull))
    residual = targets.to(weight.dtype) - (wide @ weight + bias[..., None, :])
    feature_mean = _mean(wide, row_weight)
    residual_mean = _mean(residual, row_weight)
    rows = _centred_rows(wide, feature_mean, centring, row_weight)
    residual = _centred_rows(residual, residual_mean, centring, row_weight)
    system = _System(
        rows,
        residual,
        weight,
        ridge=energy[..., None, None] * torch.as_tensor(alpha).to(weight),
        pull=pull[..., None, None],
        mixed=features.dtype == torch.float32
        and features.shape[-1] <= _SAFE_CONDITION * prox,
    )
    step = system.solve()
    bias_step = (residual_mean - (feature_mean[..., None, :] @ step)[..., 0, :]) / (
        1 + pull[..., None]
    )
    return weight + step, bias + bias_step


class _System:
    """Solves ``(F'F + ridge + pull) step = F'R - ridge W`` by size and penalty."""

    def __init__(
        self,
        rows: Tensor,
        residual: Tensor,
        weight: Tensor,
        *,
        ridge: Tensor,
        pull: Tensor,
        mixed: bool,
    ) -> None:
        self.rows, self.residual, self.weight = rows, residual, weight
        self.ridge, self.pull, self.mixed = ridge, pull, mixed

    def solve(self) -> Tensor:
        if self.ridge.shape[-1] > 1:
            return self._by_eigenvalues()
        n_rows, n_features = self.rows.shape[-2:]
        return self._dual() if n_rows < n_features else self._primal()

    def _right_side(self) -> Tensor:
        return self.rows.mT @ self.residual - self.ridge * self.weight

    def _primal(self) -> Tensor:
        shift = self.ridge + self.pull
        right_side = self._right_side()
        factor = _cholesky(_gram(self.rows.mT, self.mixed), shift)
        step = torch.cholesky_solve(right_side, factor)
        if self.mixed:
            # The factor is of a float32 Gram; the operator here is exact.
            image = self.rows.mT @ (self.rows @ step) + shift * step
            step = step + torch.cholesky_solve(right_side - image, factor)
        return step

    def _dual(self) -> Tensor:
        # Woodbury: an n x n system gives the same step.
        shift = self.ridge + self.pull
        factor = _cholesky(_gram(self.rows, self.mixed), shift)
        share = self.ridge / shift
        right_side = self.residual + share * (self.rows @ self.weight)
        dual = torch.cholesky_solve(right_side, factor)
        if self.mixed:
            image = self.rows @ (self.rows.mT @ dual) + shift * dual
            dual = dual + torch.cholesky_solve(right_side - image, factor)
        return self.rows.mT @ dual - share * self.weight

    def _by_eigenvalues(self) -> Tensor:
        # One factorisation for every output's own ridge.
        values, vectors = torch.linalg.eigh(self.rows.mT @ self.rows)
        shift = values.clamp_min(0)[..., None] + self.ridge + self.pull
        return vectors @ ((vectors.mT @ self._right_side()) / shift)


def _gram(rows: Tensor, mixed: bool) -> Tensor:
    """Inner products of the rows, multiplied in float32 where that is safe."""
    if mixed:
        narrow = rows.float()
        return (narrow @ narrow.mT).to(rows.dtype)
    return rows @ rows.mT


def _cholesky(gram: Tensor, shift: Tensor) -> Tensor:
    """Lower factor of the shifted matrix, not-a-number where there is none."""
    gram.diagonal(dim1=-2, dim2=-1).add_(shift[..., 0])
    factor, info = torch.linalg.cholesky_ex(gram)
    failed = torch.where(info == 0, 0.0, torch.nan).to(factor.dtype)
    factor.diagonal(dim1=-2, dim2=-1).add_(failed[..., None])
    return factor


def _wide(features: Tensor) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if features.device.type == "mps" else torch.float64


def _energy(features: Tensor, weight: Tensor) -> Tensor:
    square = torch.linalg.vecdot(features, features)
    return (torch.linalg.vecdot(weight, square) + 1) / (features.shape[-1] + 1)


def _mean(rows: Tensor, weight: Tensor) -> Tensor:
    return (weight[..., None, :] @ rows)[..., 0, :]


def _centred_rows(
    rows: Tensor, mean: Tensor, centring: Tensor, weight: Tensor
) -> Tensor:
    centred = rows - (centring[..., None] * mean)[..., None, :]
    return centred.mul_(weight.sqrt()[..., None])


@dataclass(frozen=True)
class Moments:
    """Weighted centred second moments of features and targets, in float64.

    Sums over batches merge exactly (pairwise update of means and co-moments), so a
    data set streams through in memory ``O(d^2 + d k)``.

    Attributes
    ----------
    weight_sum : Tensor of shape ()
    feature_mean : Tensor of shape (d,)
    target_mean : Tensor of shape (k,)
    gram : Tensor of shape (d, d)
        ``sum_i w_i (phi_i - mean)(phi_i - mean)'``.
    cross : Tensor of shape (d, k)
    target_square : Tensor of shape (k,)
        ``sum_i w_i (y_i - mean)^2``.
    """

    weight_sum: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    target_square: Tensor

    @classmethod
    def of(
        cls, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Moments:
        """Moments of one batch: features (n, d), targets (n, k)."""
        wide = _wide(features)
        features, targets = features.to(wide), targets.to(wide)
        if sample_weight is None:
            weight = features.new_ones(features.shape[0])
        else:
            weight = sample_weight.to(wide)
        # A batch of weight zero has no mean; it adds nothing.
        weight_sum = weight.sum()
        share = weight / weight_sum.clamp_min(torch.finfo(wide).tiny)
        feature_mean, target_mean = share @ features, share @ targets
        root = weight.sqrt()[:, None]
        features = (features - feature_mean) * root
        targets = (targets - target_mean) * root
        return cls(
            weight_sum,
            feature_mean,
            target_mean,
            features.mT @ features,
            features.mT @ targets,
            (targets * targets).sum(0),
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together."""
        total = self.weight_sum + other.weight_sum
        tiny = torch.finfo(total.dtype).tiny
        share = other.weight_sum / total.clamp_min(tiny)
        feature_gap = other.feature_mean - self.feature_mean
        target_gap = other.target_mean - self.target_mean
        between = self.weight_sum * share
        return Moments(
            total,
            self.feature_mean + share * feature_gap,
            self.target_mean + share * target_gap,
            self.gram + other.gram + between * torch.outer(feature_gap, feature_gap),
            self.cross + other.cross + between * torch.outer(feature_gap, target_gap),
            self.target_square + other.target_square + between * target_gap**2,
        )

    @property
    def energy(self) -> Tensor:
        """Mean feature energy, as :func:`feature_energy` gives it."""
        square = self.gram.diagonal().sum() / self.weight_sum
        square = square + self.feature_mean @ self.feature_mean
        return (square + 1) / (self.feature_mean.shape[0] + 1)


class RidgePath:
    """Ridge heads of every ``alpha`` from one eigendecomposition of the moments.

    Parameters
    ----------
    moments : Moments
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.energy = moments.energy
        # On the CPU: cuSOLVER's eigh is slow, and MPS has neither eigh nor float64.
        gram = (moments.gram / moments.weight_sum).to("cpu", torch.float64)
        values, vectors = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0).to(moments.gram)
        self.vectors = vectors.to(moments.gram)
        self.cross = self.vectors.mT @ (moments.cross / moments.weight_sum)
        # Directions that the data don't span to rounding get no weight at alpha 0.
        spacing = torch.finfo(gram.dtype).eps * gram.shape[0]
        self.floor = self.values.amax() * spacing

    def solve(self, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        """Weight (d, k) and bias (k,) at one alpha, or one alpha an output."""
        weight = self.vectors @ self.coordinates(alpha)
        bias = self.moments.target_mean - self.moments.feature_mean @ weight
        return weight, bias

    def coordinates(self, alpha: float | Tensor) -> Tensor:
        """Weight (d, k) in the basis of the eigenvectors."""
        shifted = self._shifted(alpha)
        return torch.where(shifted > self.floor, self.cross / shifted, 0.0)

    def project(self, features: Tensor) -> Tensor:
        """Centred features (n, d) in the basis of the eigenvectors."""
        return (features.to(self.vectors) - self.moments.feature_mean) @ self.vectors

    def predict(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Predictions (n, k) for features that :meth:`project` gave."""
        return projected @ self.coordinates(alpha) + self.moments.target_mean

    def leverage(self, projected: Tensor, alpha: float | Tensor) -> Tensor:
        """Pull (n, 1) or (n, k) of a unit of weight at each row on its own fit."""
        shifted = self._shifted(alpha)
        inverse = torch.where(shifted > self.floor, 1 / shifted, 0.0)
        return (projected.square() @ inverse + 1) / self.moments.weight_sum

    def _shifted(self, alpha: float | Tensor) -> Tensor:
        alpha = torch.as_tensor(alpha).to(self.values).reshape(1, -1)
        return self.values[:, None] + alpha * self.energy
