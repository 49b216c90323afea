"""Ridge and proximal solves of a linear head with a free intercept.

Conventions: features are ``(..., n, d)``, targets ``(..., n, k)``, sample weights
``(..., n)``, a head is a weight ``(..., d, k)`` and a bias ``(..., k)``. Penalties
``alpha`` and ``prox`` are relative: they multiply the mean feature energy
:func:`feature_energy`, which makes them dimensionless.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this ratio of largest to smallest eigenvalue a float32 Gram matrix is a safe
# preconditioner: its relative error, about 1e-7 times this, is far below one, so
# that one step of refinement squares it away.
_SAFE_CONDITION = 1e4


def normalised_weights(features: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Weights in float64 that sum to one over the rows."""
    wide = wide_dtype(features.device)
    if sample_weight is None:
        n_rows = features.shape[-2]
        return features.new_full(features.shape[:-1], 1 / n_rows, dtype=wide)
    weight = sample_weight.to(wide)
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
    root = row_weight.sqrt()[..., None]
    system = _System(
        _Rows(features, wide, (centring[..., None] * feature_mean)[..., None, :], root),
        root * (residual - (centring[..., None] * residual_mean)[..., None, :]),
        weight,
        ridge=energy[..., None, None] * like(weight, alpha),
        pull=pull[..., None, None],
        mixed=features.dtype == torch.float32
        and features.shape[-1] <= _SAFE_CONDITION * prox,
    )
    step = system.solve()
    bias_step = (residual_mean - (feature_mean[..., None, :] @ step)[..., 0, :]) / (
        1 + pull[..., None]
    )
    return weight + step, bias + bias_step


class _Rows:
    """The matrix F of rows ``sqrt(w_i) (phi_i - centre)``, formed only when asked."""

    def __init__(
        self, given: Tensor, wide: Tensor, centre: Tensor, root: Tensor
    ) -> None:
        self.given, self.wide, self.centre, self.root = given, wide, centre, root

    def explicit(self, dtype: torch.dtype) -> Tensor:
        """Form F in a dtype; in the features' own no number is converted."""
        centred = self.given.to(dtype) - self.centre.to(dtype)
        return centred.mul_(self.root.to(dtype))

    def times(self, vectors: Tensor) -> Tensor:
        """Compute F v."""
        image: Tensor = self.wide @ vectors - self.centre @ vectors
        return self.root * image

    def adjoint_times(self, vectors: Tensor) -> Tensor:
        """Compute F' v."""
        weighted = self.root * vectors
        total = weighted.sum(-2, keepdim=True)
        image: Tensor = self.wide.mT @ weighted - self.centre.mT * total
        return image


class _System:
    """Solves ``(F'F + ridge + pull) step = F'R - ridge W`` by size and penalty."""

    def __init__(
        self,
        rows: _Rows,
        residual: Tensor,
        weight: Tensor,
        *,
        ridge: Tensor,
        pull: Tensor,
        mixed: bool,
    ) -> None:
        self.rows, self.residual, self.weight = rows, residual, weight
        self.ridge, self.shift, self.mixed = ridge, ridge + pull, mixed

    def solve(self) -> Tensor:
        if self.ridge.shape[-1] > 1:
            return self._by_eigenvalues()
        n_rows, n_features = self.rows.given.shape[-2:]
        return self._dual() if n_rows < n_features else self._primal()

    def _right_side(self) -> Tensor:
        return self.rows.adjoint_times(self.residual) - self.ridge * self.weight

    def _matrix(self) -> Tensor:
        """F, in float32 where that is safe for a factor that is then refined."""
        return self.rows.explicit(torch.float32 if self.mixed else self.weight.dtype)

    def _primal(self) -> Tensor:
        factor = _shifted_cholesky(self._matrix().mT, self.shift)
        right_side = self._right_side()
        step = torch.cholesky_solve(right_side, factor)
        if self.mixed:
            image = self.rows.adjoint_times(self.rows.times(step)) + self.shift * step
            step = step + torch.cholesky_solve(right_side - image, factor)
        return step

    def _dual(self) -> Tensor:
        # Woodbury: an n x n system gives the same step.
        factor = _shifted_cholesky(self._matrix(), self.shift)
        share = self.ridge / self.shift
        right_side = self.residual + share * self.rows.times(self.weight)
        dual = torch.cholesky_solve(right_side, factor)
        if self.mixed:
            image = self.rows.times(self.rows.adjoint_times(dual)) + self.shift * dual
            dual = dual + torch.cholesky_solve(right_side - image, factor)
        return self.rows.adjoint_times(dual) - share * self.weight

    def _by_eigenvalues(self) -> Tensor:
        # One factorisation for every output's own ridge.
        rows = self.rows.explicit(self.weight.dtype)
        values, vectors = torch.linalg.eigh(rows.mT @ rows)
        shift = values.clamp_min(0)[..., None] + self.shift
        step: Tensor = vectors @ ((vectors.mT @ self._right_side()) / shift)
        return step


def _shifted_cholesky(rows: Tensor, shift: Tensor) -> Tensor:
    """Lower factor of ``rows rows' + shift`` in float64, not-a-number if there is none.

    The factor is of the dtype of ``shift``, whatever that of the rows.
    """
    gram = (rows @ rows.mT).to(shift.dtype)
    gram.diagonal(dim1=-2, dim2=-1).add_(shift[..., 0])
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(gram)
    failed = torch.where(info == 0, 0.0, torch.nan).to(factor.dtype)
    factor.diagonal(dim1=-2, dim2=-1).add_(failed[..., None])
    return factor


def like(tensor: Tensor, value: float | Tensor) -> Tensor:
    """Give a number the dtype and device of a tensor, without rounding on the way."""
    return torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _energy(features: Tensor, weight: Tensor) -> Tensor:
    square = torch.linalg.vecdot(features, features)
    total: Tensor = torch.linalg.vecdot(weight, square) + 1
    return total / (features.shape[-1] + 1)


def _mean(rows: Tensor, weight: Tensor) -> Tensor:
    mean: Tensor = (weight[..., None, :] @ rows)[..., 0, :]
    return mean
