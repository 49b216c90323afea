"""Linear systems ``F'F + ridge + pull`` of one batch, factored once.

Rows F are ``(..., n, d)``; the ridge ``(..., 1, 1)``, or ``(..., 1, k)`` with one for
each output, and the pull ``(..., 1, 1)`` are sums over the rows, as ``F'F`` is.
"""

from __future__ import annotations

import torch
from scipy.linalg.lapack import dpotrf
from torch import Tensor

from sklearn_cfll.functional.plain import is_followed, is_plain, is_stand_in

# Below this ratio of largest to smallest eigenvalue a float32 Gram matrix is a safe
# preconditioner: its relative error, about 1e-7 times this, is far below one, so
# that one step of refinement squares it away.
_SAFE_CONDITION = 1e4

# Measured on one CPU thread: from about here on the float32 product saves more than
# the step of refinement costs.
MANY_PRODUCTS = 2**23

# Where prox is learnt its value stays on the device; this bound stands for it.
LEAST_LEARNT_PROX = 0.1


class System:
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
        diagonal, shift = gram.diagonal(dim1=-2, dim2=-1), self.shift[..., 0]
        if is_stand_in(shift):
            gram = gram + torch.diag_embed(shift.expand(diagonal.shape))
        else:
            diagonal.add_(shift)
        self.factor, self.info = _cholesky(gram)

    def _solve_by_factor(self, rows: Tensor, right_side: Tensor) -> Tensor:
        solution = _two_triangles(self.factor, right_side)
        if self.mixed:
            # One step of refinement: the operator here is exact.
            image = _times(rows, _adjoint_times(rows, solution))
            rest = right_side - image - self.shift * solution
            solution = solution + _two_triangles(self.factor, rest)
        return solution


class Primal(System):
    """By a factor of the d x d matrix."""

    def _factorise(self) -> None:
        self._factorise_gram(self.rows.mT)

    def solve(self, right_side: Tensor) -> Tensor:
        """Apply the inverse by its factor."""
        return self._solve_by_factor(self.rows.mT, right_side)


class Dual(System):
    """By a factor of the n x n matrix ``F F' + ridge + pull`` (Woodbury)."""

    def _factorise(self) -> None:
        self._factorise_gram(self.rows)

    def solve(self, right_side: Tensor) -> Tensor:
        """Apply the inverse by the dual one."""
        dual = self._solve_by_factor(self.rows, _times(self.rows, right_side))
        step: Tensor = (right_side - _adjoint_times(self.rows, dual)) / self.shift
        return step

    def step(self, residual: Tensor, weight: Tensor) -> Tensor:
        """Solve without the difference of large numbers that solve() has."""
        share = self.ridge / self.shift
        right_side = residual + share * _times(self.rows, weight)
        dual = self._solve_by_factor(self.rows, right_side)
        return _adjoint_times(self.rows, dual) - share * weight


class ByEigenvalues(System):
    """One factorisation for every output's own ridge."""

    def _factorise(self) -> None:
        gram = torch.matmul(self.rows.mT, self.rows)
        values, self.vectors = torch.linalg.eigh(gram)
        self.values = values.clamp_min(0)[..., None] + self.shift

    def solve(self, right_side: Tensor) -> Tensor:
        """Apply each output's own inverse."""
        coordinates = torch.matmul(self.vectors.mT, right_side) / self.values
        step: Tensor = torch.matmul(self.vectors, coordinates)
        return step

    def solved(self) -> Tensor:
        """Tell whether all eigenvalues are positive."""
        solved: Tensor = (self.values > 0).all(-1).all(-1)
        return solved


class ByOutput(System):
    """A system for each output's own ridge.

    Eigenvectors have no derivatives where eigenvalues are equal, as those of zero are
    where there are fewer rows than features; factors always have.
    """

    def _factorise(self) -> None:
        kind = _smaller(self.rows)
        self.systems = [
            kind(self.rows, ridge, self.pull, self.mixed)
            for ridge in torch.split(self.ridge, 1, -1)
        ]

    def solve(self, right_side: Tensor) -> Tensor:
        """Apply each output's own inverse."""
        columns = zip(self.systems, torch.split(right_side, 1, -1), strict=True)
        return torch.cat([system.solve(column) for system, column in columns], -1)

    def solved(self) -> Tensor:
        """Tell whether there were all factors."""
        return torch.stack([system.solved() for system in self.systems]).all(0)


def _times(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compute F v as (v'F')', which takes BLAS half the time for a few vectors."""
    return torch.matmul(vectors.mT, rows.mT).mT


def _adjoint_times(rows: Tensor, vectors: Tensor) -> Tensor:
    """Compute F'v, likewise."""
    return torch.matmul(vectors.mT, rows).mT


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor, its upper triangle arbitrary, and zero where there is one."""
    wide = matrix.ndim == 2 and matrix.dtype == torch.float64
    if not wide or not is_plain(matrix):
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor, info
    # LAPACK itself, in place: torch's copy of the triangle takes as long as the
    # factorisation of a few hundred columns.
    _, info = dpotrf(matrix.numpy().T, lower=1, clean=0, overwrite_a=1)
    return matrix.mT, torch.tensor(info, device=matrix.device)


def _two_triangles(factor: Tensor, right_side: Tensor) -> Tensor:
    """Solve by a lower Cholesky factor; cholesky_solve would copy it first."""
    half = torch.linalg.solve_triangular(factor, right_side, upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution


def system_for(rows: Tensor, *, ridge: Tensor, pull: Tensor, mixed: bool) -> System:
    """Choose the smaller system, or the one that serves a ridge for each output."""
    kind = _smaller(rows)
    if ridge.shape[-1] > 1:
        followed = any(map(is_followed, (rows, ridge, pull)))
        kind = ByOutput if followed else ByEigenvalues
    return kind(rows, ridge, pull, mixed)


def _smaller(rows: Tensor) -> type[System]:
    n_rows, n_features = rows.shape[-2:]
    return Dual if n_rows < n_features else Primal


def worth_mixing(features: Tensor, prox: float | Tensor) -> bool:
    """Whether a float32 Gram is safe, and larger than what its refinement costs."""
    if is_autocast(features.device.type):
        return False  # it would be in half precision
    n_rows, n_features = features.shape[-2:]
    products = n_rows * n_features * min(n_rows, n_features)
    return products >= MANY_PRODUCTS and safe_in_float32(n_features, prox)


def is_autocast(kind: str) -> bool:
    """Whether autocast is at work on a kind of device."""
    known = torch.amp.is_autocast_available(kind)
    return known and torch.is_autocast_enabled(kind)


def safe_in_float32(n_features: int, prox: float | Tensor) -> bool:
    """Whether a Gram matrix can be in float32: its condition is at most d / prox."""
    least = LEAST_LEARNT_PROX if isinstance(prox, Tensor) else prox
    return n_features <= _SAFE_CONDITION * least
