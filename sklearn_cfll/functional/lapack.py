"""Gram matrices and the proximal update on the CPU, by BLAS and LAPACK themselves.

The update is :mod:`sklearn_cfll.functional.ridge` in a dozen calls in place of some
hundred tensor operations, which is what counts in small batches. In large ones it is
that the symmetric product takes half the operations of a general one.

BLAS counts columns first, so that it is given all matrices transposed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from sklearn_cfll.functional.systems import MANY_PRODUCTS, safe_in_float32

Array = NDArray[np.floating[Any]]

# By the type of number: symmetric product, Cholesky factor, solve by a triangle.
_ROUTINES = {
    "f": (blas.ssyrk, lapack.spotrf, blas.strsm),
    "d": (blas.dsyrk, lapack.dpotrf, blas.dtrsm),
}

# Under a pull as strong as this a solve in float32 is wrong by less than 1e-5, far less
# than what a batch's noise does to the head (docs/design/float32_solve.md).
_STRONG_PULL = 0.3

# There is no refinement then, and float32 is worth its conversions from here on.
_MANY_UNREFINED = MANY_PRODUCTS // 2


class Updated(NamedTuple):
    """The head after a batch; the last one where there was no factor.

    Attributes
    ----------
    weight : array of shape (d, k)
    bias : array of shape (k,)
    solved : bool
    """

    weight: Array
    bias: Array
    solved: bool


def update(
    features: Array,
    targets: Array,
    weight: Array,
    bias: Array,
    *,
    alpha: float,
    prox: float,
    sample_weight: Array | None,
) -> Updated:
    """Solve the problem of ``proximal_update`` for one batch.

    Parameters
    ----------
    features : array of shape (n, d)
        In float64, or in float32; a large solve is then in float32, or refined.
    targets : array of shape (n, k)
    weight : float64 array of shape (d, k)
    bias : float64 array of shape (k,)
    alpha, prox : float
    sample_weight : array of shape (n,) or None

    Returns
    -------
    head : Updated
    """
    number, mixed = np.dtype(np.float64), False
    if features.dtype == np.float32:
        number, mixed = _precision(features.shape, weight.shape[1], prox)
    wide = features.astype(number, copy=False)
    last = weight.astype(number, copy=False), bias.astype(number, copy=False)
    # What is not finite is told by the result.
    with np.errstate(all="ignore"):
        fitted = wide @ last[0]
        rows = _Rows(wide, sample_weight, alpha, prox, own=wide is not features)
        if not rows.regular:
            return Updated(weight, bias, False)
        # The dual system asks for what is fitted again.
        space: Array | None = None if rows.dual else fitted
        residual = np.subtract(targets, fitted, out=space, dtype=number)
        mean = rows.mean_of(residual) - last[1]
        rows.centre(residual, mean, last[1], out=residual)
        step = rows.step(residual, fitted, last[0], mixed)
        if step is None:
            return Updated(weight, bias, False)
        bias_step = (mean - rows.mean @ step) / (1 + rows.pull)
        space = step if step.dtype == weight.dtype else None
        return Updated(np.add(weight, step, out=space), bias + bias_step, True)


class _Rows:
    """Rows of a batch from whose problem the bias is eliminated, by partial centring.

    ``regular`` tells whether there is a weight, an energy and a shift to divide by.
    The features are written over where they are our ``own``.
    """

    def __init__(
        self,
        features: Array,
        sample_weight: Array | None,
        alpha: float,
        prox: float,
        *,
        own: bool,
    ) -> None:
        n_rows, n_features = features.shape
        self.root: Array | None = None
        if sample_weight is None:
            self.weight: Array = np.ones(n_rows, features.dtype)
            self.total = float(n_rows)
            square = np.vdot(features, features)
        else:
            self.weight = sample_weight.astype(features.dtype, copy=False)
            self.root = np.sqrt(self.weight)[:, None]
            self.total = float(self.weight.sum())
            square = self.weight @ np.einsum("ij,ij->i", features, features)
        self.regular = self.total > 0 and math.isfinite(square)
        if not self.regular:
            return
        energy = (float(square) / self.total + 1) / (n_features + 1)
        self.pull = prox * energy
        self.centring = 1 - math.sqrt(self.pull / (1 + self.pull))
        self.ridge = self.total * energy * alpha
        self.shift = self.ridge + self.total * self.pull
        self.mean = self.mean_of(features)
        self.rows = self.centre(features, self.mean, out=features if own else None)
        self.dual = n_rows < n_features
        self.regular = not self.dual or self.shift > 0

    def mean_of(self, rows: Array) -> Array:
        """Weighted mean; the product is faster than a sum along the first axis."""
        mean: Array = (self.weight @ rows) / self.total
        return mean

    def centre(
        self,
        rows: Array,
        mean: Array,
        offset: Array | float = 0.0,
        out: Array | None = None,
    ) -> Array:
        """Rows ``sqrt(w_i) (row_i - offset - centring * mean)``."""
        centred: Array = np.subtract(rows, offset + self.centring * mean, out=out)
        if self.root is not None:
            centred *= self.root
        return centred

    def step(
        self, residual: Array, fitted: Array, weight: Array, mixed: bool
    ) -> Array | None:
        """Solve for the right-hand side ``F'R - ridge W``, by the smaller system.

        The dual one takes what the last weights give for the rows, ``fitted``, and
        writes over it.
        """
        rows = self.rows
        if not self.dual:
            right_side = rows.T @ residual
            right_side -= self.ridge * weight
            return self._solve(right_side, mixed)
        # Without the difference of large numbers that the right-hand side would be.
        share = self.ridge / self.shift
        right_side = self.centre(fitted, self.mean_of(fitted), out=fitted)
        right_side *= share
        right_side += residual
        dual = self._solve(right_side, mixed)
        if dual is None:
            return None
        step: Array = rows.T @ dual
        step -= share * weight
        return step

    def _solve(self, right_side: Array, mixed: bool) -> Array | None:
        """Apply the inverse of ``F'F + shift``, or of the dual ``F F' + shift``.

        The right-hand side is written over.
        """
        factor = self._factor(self.rows.astype(np.float32) if mixed else self.rows)
        if factor is None:
            return None
        if not mixed:
            return _two_triangles(factor, right_side, own=True)
        solution = _two_triangles(factor, right_side)
        # One step of refinement: the operator here is exact.
        across = self.rows.T if self.dual else self.rows
        image = across.T @ (across @ solution) + self.shift * solution
        solution += _two_triangles(factor, right_side - image)
        return solution

    def _factor(self, rows: Array) -> Array | None:
        product, factorise, _ = _ROUTINES[rows.dtype.char]
        gram = product(1.0, rows.T, trans=self.dual, lower=1)
        gram.T.reshape(-1)[:: len(gram) + 1] += self.shift
        factor, info = factorise(gram, lower=1, clean=0, overwrite_a=1)
        return factor if info == 0 else None


def symmetric_product(rows: Array) -> Array:
    """Product (d, d) of rows (n, d), transposed, with themselves.

    Half of the operations of a general product.

    Parameters
    ----------
    rows : float32 or float64 array of shape (n, d)

    Returns
    -------
    product : array of shape (d, d)
    """
    product, _, _ = _ROUTINES[rows.dtype.char]
    half = product(1.0, rows.T, trans=0, lower=1)  # with zeros in the other half
    whole: Array = half + half.T
    whole.reshape(-1)[:: len(whole) + 1] /= 2
    return whole


def _two_triangles(factor: Array, right_side: Array, *, own: bool = False) -> Array:
    """Solve by a lower Cholesky factor, in its type of number.

    The right-hand side is written over where it is our ``own``.
    """
    _, _, solve = _ROUTINES[factor.dtype.char]
    transposed = right_side.astype(factor.dtype, copy=False).T
    half = solve(1.0, factor, transposed, side=1, lower=1, trans_a=1, overwrite_b=own)
    solution = solve(1.0, factor, half, side=1, lower=1, overwrite_b=1).T
    wide: Array = solution.astype(right_side.dtype, copy=False)
    return wide


def _precision(
    shape: tuple[int, ...], n_outputs: int, prox: float
) -> tuple[np.dtype[Any], bool]:
    """Choose, for float32 features, the type of number and whether to mix."""
    n_rows, n_features = shape
    products = n_rows * n_features * (min(shape) + 4 * n_outputs)
    strong = prox >= _STRONG_PULL
    few = products < (_MANY_UNREFINED if strong else MANY_PRODUCTS)
    if few or not safe_in_float32(n_features, prox):
        return np.dtype(np.float64), False
    return np.dtype(np.float32 if strong else np.float64), not strong
