"""Ridge and proximal solves of a linear head with a free intercept.

Conventions: features are ``(..., n, d)``, targets ``(..., n, k)``, sample weights
``(..., n)``, a head is a weight ``(..., d, k)`` and a bias ``(..., k)``. Penalties
``alpha`` and ``prox`` are relative: they multiply the mean feature energy
:func:`feature_energy`, which makes them dimensionless.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.linalg.lapack import dpotrf
from torch import Tensor

# Below this ratio of largest to smallest eigenvalue a float32 Gram matrix is a safe
# preconditioner: its relative error, about 1e-7 times this, is far below one, so
# that one step of refinement squares it away.
_SAFE_CONDITION = 1e4

# Measured on one CPU thread: from about here on the float32 product saves more than
# the step of refinement costs.
_MANY_PRODUCTS = 2**23

# Where prox is learnt its value stays on the device; this bound stands for it.
LEAST_LEARNT_PROX = 0.1


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
    features = features.to(wide_dtype(features.device))
    weight = None if sample_weight is None else sample_weight.to(features.dtype)
    return _energy(features, weight, _total(features, weight))


class ProximalHead(NamedTuple):
    """Solution of a proximal problem.

    Attributes
    ----------
    weight : Tensor of shape (..., d, k)
    bias : Tensor of shape (..., k)
    solved : Tensor of shape (...)
        Whether the system had a Cholesky factor; where not, weight and bias are
        not-a-number.
        It stays on the device, so that nothing need be waited for.
    weight_slope, bias_slope : Tensor or None
        Derivatives by the logarithm of ``prox``.
    """

    weight: Tensor
    bias: Tensor
    solved: Tensor
    weight_slope: Tensor | None = None
    bias_slope: Tensor | None = None


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
    sample_weight : Tensor of shape (..., n), default=None
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
    wide = features.to(weight.dtype)
    residual = (
        targets.to(weight.dtype) - torch.matmul(wide, weight) - bias[..., None, :]
    )
    head = proximal_step(
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
    solved = head.solved[..., None, None]
    return head._replace(
        weight=torch.where(solved, head.weight, torch.nan),
        bias=torch.where(solved[..., 0], head.bias, torch.nan),
    )


def proximal_step(
    features: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    alpha: float | Tensor,
    prox: float | Tensor,
    sample_weight: Tensor | None = None,
    with_slope: bool = False,
    mixed: bool = False,
) -> ProximalHead:
    """Solve the problem of :func:`proximal_update` from the last head's residual.

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
        In the dtype of ``weight``.
    residual : Tensor of shape (..., n, k)
        Targets less the last head's predictions, in the dtype of ``weight``.
    weight, bias, alpha, prox, sample_weight, with_slope
        As :func:`proximal_update` takes them.
    mixed : bool, default=False
        Take the Gram matrix in float32 and refine the solution, where ``prox`` makes
        that safe: for features whose numbers are float32's anyhow.

    Returns
    -------
    head : ProximalHead
        Arbitrary where it is not ``solved``.
    """
    if sample_weight is not None:
        sample_weight = sample_weight.to(weight.dtype)
    total = _total(features, sample_weight)
    energy = _energy(features, sample_weight, total)
    pull = prox * energy
    # The bias is eliminated by a Schur complement, which is a partial centring of
    # the rows: whole at prox 0, none as prox grows.
    no_pull = isinstance(prox, float | int) and prox == 0
    # The root has no derivative at zero, which autograd would make not-a-number.
    root = torch.zeros_like(pull) if no_pull else torch.sqrt(pull / (1 + pull))
    centring = 1 - root
    feature_mean = _mean(features, sample_weight, total)
    residual_mean = _mean(residual, sample_weight, total)
    rows = _centred(features, feature_mean, centring, sample_weight)
    # Everything below is in sums over the rows, not in means: no row is scaled.
    matrix_scale = (total * energy)[..., None, None]
    system = _system_for(
        rows,
        ridge=matrix_scale * (alpha if isinstance(alpha, float) else like(rows, alpha)),
        pull=matrix_scale * prox,
        mixed=mixed and _is_worthwhile(features, prox),
    )

    def bias_of(step: Tensor, right_side: Tensor) -> Tensor:
        rest = right_side - (feature_mean[..., None, :] @ step)[..., 0, :]
        bias_step: Tensor = rest / (1 + pull[..., None])
        return bias_step

    centred_residual = _centred(residual, residual_mean, centring, sample_weight)
    step = system.step(centred_residual, weight)
    bias_step = bias_of(step, residual_mean)
    slopes: tuple[Tensor, ...] = ()
    if with_slope:
        # The step solves A step = r, so that its slope solves A slope = -A' step,
        # where A' is the pull itself; the bias is eliminated as before.
        bias_side = -pull[..., None] * bias_step
        shared = total * bias_side / (1 + pull[..., None])
        system.mixed = False  # a slope needs no refinement
        weight_slope = system.solve(
            -system.pull * step - feature_mean[..., :, None] * shared[..., None, :]
        )
        slopes = (weight_slope, bias_of(weight_slope, bias_side))
    return ProximalHead(weight + step, bias + bias_step, system.solved(), *slopes)


class _System:
    """The system ``F'F + ridge + pull`` of one batch, factored once."""

    def __init__(self, rows: Tensor, ridge: Tensor, pull: Tensor, mixed: bool) -> None:
        self.rows, self.mixed = rows, mixed
        self.ridge, self.pull, self.shift = ridge, pull, ridge + pull
        self._factorise()

    def _factorise(self) -> None:
        raise NotImplementedError

    def solve(self, right_side: Tensor) -> Tensor:
        """Apply the inverse to (..., d, k)."""
        raise NotImplementedError

    def step(self, residual: Tensor, weight: Tensor) -> Tensor:
        """Solve for the right-hand side ``F'R - ridge W``."""
        return self.solve(_adjoint_times(self.rows, residual) - self.ridge * weight)

    def solved(self) -> Tensor:
        """Tell on the device whether there was a factor."""
        solved: Tensor = self.info == 0
        return solved

    def _factorise_gram(self, rows: Tensor) -> None:
        """Cholesky factor, in float64, of ``rows rows' + shift``.

        The product is taken in float32 where its factor can safely be refined.
        """
        narrow = rows.float() if self.mixed else rows
        gram = torch.matmul(narrow, narrow.mT).to(rows.dtype)
        gram.diagonal(dim1=-2, dim2=-1).add_(self.shift[..., 0])
        self.factor, self.info = _cholesky(gram)

    def _solve_by_factor(self, rows: Tensor, right_side: Tensor) -> Tensor:
        solution = _two_triangles(self.factor, right_side)
        if self.mixed:
            # One step of refinement: the operator here is exact.
            image = _times(rows, _adjoint_times(rows, solution))
            rest = right_side - image - self.shift * solution
            solution = solution + _two_triangles(self.factor, rest)
        return solution


class _Primal(_System):
    """By a factor of the d x d matrix."""

    def _factorise(self) -> None:
        self._factorise_gram(self.rows.mT)

    def solve(self, right_side: Tensor) -> Tensor:
        return self._solve_by_factor(self.rows.mT, right_side)


class _Dual(_System):
    """By a factor of the n x n matrix ``F F' + ridge + pull`` (Woodbury)."""

    def _factorise(self) -> None:
        self._factorise_gram(self.rows)

    def solve(self, right_side: Tensor) -> Tensor:
        dual = self._solve_by_factor(self.rows, _times(self.rows, right_side))
        step: Tensor = (right_side - _adjoint_times(self.rows, dual)) / self.shift
        return step

    def step(self, residual: Tensor, weight: Tensor) -> Tensor:
        # Without the difference of large numbers that solve() has at a small shift.
        share = self.ridge / self.shift
        right_side = residual + share * _times(self.rows, weight)
        dual = self._solve_by_factor(self.rows, right_side)
        return _adjoint_times(self.rows, dual) - share * weight


class _ByEigenvalues(_System):
    """One factorisation for every output's own ridge."""

    def _factorise(self) -> None:
        gram = torch.matmul(self.rows.mT, self.rows)
        values, self.vectors = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0)[..., None] + self.shift

    def solve(self, right_side: Tensor) -> Tensor:
        coordinates = torch.matmul(self.vectors.mT, right_side) / self.values
        step: Tensor = torch.matmul(self.vectors, coordinates)
        return step

    def solved(self) -> Tensor:
        solved: Tensor = (self.values > 0).all(-1).all(-1)
        return solved


def _system_for(rows: Tensor, *, ridge: Tensor, pull: Tensor, mixed: bool) -> _System:
    """Choose the smaller system, or the one that serves a ridge for each output."""
    n_rows, n_features = rows.shape[-2:]
    kind: type[_System] = _Dual if n_rows < n_features else _Primal
    if ridge.shape[-1] > 1:
        kind = _ByEigenvalues
    return kind(rows, ridge, pull, mixed)


def _is_worthwhile(features: Tensor, prox: float | Tensor) -> bool:
    """Whether a float32 Gram is safe, and larger than what its refinement costs.

    The condition number is at most d / prox.
    """
    n_rows, n_features = features.shape[-2:]
    least = LEAST_LEARNT_PROX if isinstance(prox, Tensor) else prox
    products = n_rows * n_features * min(n_rows, n_features)
    return n_features <= _SAFE_CONDITION * least and products >= _MANY_PRODUCTS


def _times(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compute F v as (v'F')', which takes BLAS half the time for a few vectors."""
    return torch.matmul(vectors.mT, rows.mT).mT


def _adjoint_times(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compute F'v, likewise."""
    return torch.matmul(vectors.mT, rows).mT


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor, its upper triangle arbitrary, and zero where there is one."""
    plain = matrix.ndim == 2 and matrix.device.type == "cpu"
    if not plain or matrix.requires_grad or matrix.dtype != torch.float64:
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor, info
    # LAPACK itself, in place: torch's copy of the triangle takes as long as the
    # factorisation of a few hundred columns.
    _, info = dpotrf(matrix.numpy().T, lower=1, clean=0, overwrite_a=1)
    return matrix.mT, torch.tensor(info)


def _two_triangles(factor: Tensor, right_side: Tensor) -> Tensor:
    """Solve by a lower Cholesky factor; cholesky_solve would copy it first."""
    half = torch.linalg.solve_triangular(factor, right_side, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def like(tensor: Tensor, value: float | Tensor) -> Tensor:
    """Give a number the dtype and device of a tensor, without rounding on the way."""
    return torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _total(rows: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return rows.new_full((), rows.shape[-2])
    return weight.sum(-1)


def _energy(features: Tensor, weight: Tensor | None, total: Tensor) -> Tensor:
    if weight is None:
        flat = features.flatten(-2)
        square = torch.linalg.vecdot(flat, flat)
    else:
        square = torch.linalg.vecdot(weight, torch.linalg.vecdot(features, features))
    energy: Tensor = (square / total + 1) / (features.shape[-1] + 1)
    return energy


def _mean(rows: Tensor, weight: Tensor | None, total: Tensor) -> Tensor:
    if weight is None:
        return rows.mean(-2)
    return torch.matmul(weight[..., None, :], rows)[..., 0, :] / total[..., None]


def _centred(
    rows: Tensor, mean: Tensor, centring: Tensor, weight: Tensor | None
) -> Tensor:
    """Rows ``sqrt(w_i) (row_i - centring * mean)``."""
    centred = rows - (centring[..., None] * mean)[..., None, :]
    return centred if weight is None else centred.mul_(weight.sqrt()[..., None])
