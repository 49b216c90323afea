"""Squared errors of all heads of a ridge path, row by row."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sklearn_cfll.functional.ridge_path import RidgePath

# Where the outputs are so many times the features, two products with all outputs take
# the place of one for each alpha.
_MANY_OUTPUTS = 2

# Columns, of outputs times alphas, that one product has at the least.
_OUTPUTS_TOGETHER = 64


class PathErrors:
    """Squared errors of the heads of a path, one alpha after another.

    Parameters
    ----------
    path : RidgePath
    pooled : bool, default=False
        Whether the outputs' mean is enough; it is cheaper where they are many.

    Notes
    -----
    The weights of all heads that share an alpha among the outputs lie in the span of
    the d rows of ``path.cross``. With an orthonormal basis Q (k, d) of it the error of
    a row splits into ``||Q'y - Q'W'phi||^2 + ||y - Q Q'y||^2``, of which the second
    part is the same for all alpha, and the first has d outputs in place of k. Both are
    sums of squares, so that nothing is lost to cancellation.
    """

    def __init__(self, path: RidgePath, *, pooled: bool = False) -> None:
        self.path, self.pooled = path, pooled
        self.basis: Tensor | None = None
        n_features, n_outputs = path.cross.shape
        if pooled and n_outputs > _MANY_OUTPUTS * n_features:
            # On the CPU, as the path's own decomposition.
            spanned = path.cross.mT.to("cpu", torch.float64)
            self.basis = torch.linalg.qr(spanned).Q.to(path.cross)
            self.path = copy.copy(path)
            self.path.cross = path.cross @ self.basis

    def squares(
        self, projected: Tensor, targets: Tensor, alphas: Iterable[float | Tensor]
    ) -> Iterator[Tensor]:
        """Yield the squared errors of each alpha.

        Parameters
        ----------
        projected : Tensor of shape (n, d)
            Features that :meth:`RidgePath.project` gave.
        targets : Tensor of shape (n, k)
        alphas : iterable of float or Tensor of shape (k,)
            Where ``pooled``, each a number.

        Yields
        ------
        squares : Tensor of shape (n, k), or (n, 1) where ``pooled``
        """
        yield from self._each(projected, None, targets, alphas)

    def squares_of_rows(
        self, features: Tensor, targets: Tensor, alphas: Sequence[float | Tensor]
    ) -> Iterator[Tensor]:
        """Yield the squared errors of each alpha, where nothing else is asked of rows.

        Heads with fewer columns together than there are features are turned to the
        rows, which is cheaper than to project the rows.

        Parameters
        ----------
        features : Tensor of shape (n, d)
        targets : Tensor of shape (n, k)
        alphas : sequence of float or Tensor of shape (k,)
            Where ``pooled``, each a number.

        Yields
        ------
        squares : Tensor of shape (n, k), or (n, 1) where ``pooled``
        """
        n_features, n_outputs = self.path.cross.shape
        if len(alphas) * n_outputs < n_features:
            rows, basis = self.path.centre(features), self.path.vectors
            yield from self._each(rows, basis, targets, alphas)
        else:
            yield from self.squares(self.path.project(features), targets, alphas)

    def _each(
        self,
        rows: Tensor,
        basis: Tensor | None,
        targets: Tensor,
        alphas: Iterable[float | Tensor],
    ) -> Iterator[Tensor]:
        """Yield the squared errors; rows are projected where no basis is given."""
        n_outputs = targets.shape[1]
        targets = targets.to(rows) - self.path.moments.target_mean
        rest: Tensor | float = 0.0
        if self.basis is not None:
            within = targets @ self.basis
            rest = targets.addmm_(within, self.basis.mT, alpha=-1).square_().sum(1)
            targets = within
        for squares in self._squares(rows, basis, targets.mT.contiguous(), alphas):
            if self.pooled:
                squares = ((squares.sum(1) + rest) / n_outputs)[:, None]
            yield squares

    def _squares(
        self,
        rows: Tensor,
        basis: Tensor | None,
        targets: Tensor,
        alphas: Iterable[float | Tensor],
    ) -> Iterator[Tensor]:
        """Yield squared errors (n, k) of centred targets (k, n).

        Outputs stand before rows, so that the few outputs of many alphas are one
        product, of which each alpha's part is contiguous.
        """
        size = max(1, _OUTPUTS_TOGETHER // len(targets))
        remaining = iter(alphas)
        while block := list(itertools.islice(remaining, size)):
            weights = torch.cat([self.path.coordinates(alpha) for alpha in block], 1)
            if basis is not None:
                weights = basis @ weights
            predictions = weights.mT @ rows.mT
            predictions = predictions.reshape(len(block), len(targets), -1)
            for squares in predictions.sub_(targets).square_():
                yield squares.mT
