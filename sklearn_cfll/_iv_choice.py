"""Ridges of the final heads, chosen by rows that the members haven't seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_network import IVEnsemble, IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import StageRidge

# Features, what they predict, and the rows' weights.
Part = tuple[Tensor, Tensor, Tensor | None]
Parts = Callable[[IVNetwork, StageRows], Iterator[Part]]

EVERYTHING = (slice(None),)

# Shares of the variance that differ by less are even: where features interpolate, small
# ridges differ by rounding alone. Instruments explain little, so that much more would
# let a ridge take what they tell.
_EVEN = 1e-9


class RidgeChoice:
    """Chooses of a path of ridges what is best for all members together.

    Parameters
    ----------
    ensemble : IVEnsemble
    rows : list of StageRows
        Those that each member hasn't seen, or all of them.
    unseen : bool
        Whether the members haven't seen them. Else generalised cross-validation stands
        for the errors on such rows.
    unit : float
        Rows that a weight of one counts for.
    """

    def __init__(
        self, ensemble: IVEnsemble, rows: list[StageRows], *, unseen: bool, unit: float
    ) -> None:
        self.ensemble, self.rows = ensemble, rows
        self.unseen, self.unit = unseen, unit

    def of(
        self,
        ridges: list[StageRidge],
        parts: Parts,
        alphas: Sequence[float],
        *,
        groups: Sequence[slice] = EVERYTHING,
    ) -> list[float]:
        """Choose a ridge for each group of outputs.

        Parameters
        ----------
        ridges : list of StageRidge
            Each member's.
        parts : callable
            Gives the features of rows, and what they predict.
        alphas : sequence of float
        groups : sequence of slice
            Outputs whose errors count together, each over its variance.

        Returns
        -------
        alphas : list of float
        """
        if not self.unseen:
            return [alphas[self._generalized(ridges, alphas, own)] for own in groups]
        losses, weights = self._losses(ridges, parts, alphas, groups)
        return [alphas[largest_within_error(own, weights)] for own in losses.unbind(-1)]

    def _generalized(
        self, ridges: list[StageRidge], alphas: Sequence[float], group: slice
    ) -> int:
        errors = torch.zeros(len(alphas), 1).to(ridges[0].unit)
        for ridge in ridges:
            own = ridge.generalized_errors(alphas, self.unit)
            errors += _relative(own, ridge, group) / len(ridges)
        good = errors[:, 0] <= errors.min() + _EVEN
        return int(good.nonzero()[-1])

    def _losses(
        self,
        ridges: list[StageRidge],
        parts: Parts,
        alphas: Sequence[float],
        groups: Sequence[slice],
    ) -> tuple[Tensor, Tensor]:
        """Losses (n_alphas, n, n_groups) of unseen rows, and the rows' weights (n,)."""
        found, weights = [], []
        most = defaults.DIAGNOSTIC_ROWS // len(groups)
        for network, ridge, rows in zip(
            self.ensemble.networks, ridges, self.rows, strict=True
        ):
            for features, targets, weight in parts(network, rows.evenly(most)):
                targets = targets.to(ridge.unit)
                each = [
                    torch.cat([_relative(own, ridge, group) for group in groups], 1)
                    for own in ridge.squares(features, targets, alphas)
                ]
                found.append(torch.stack(each))
                weights.append(targets.new_ones(len(targets)))
                if weight is not None:
                    weights[-1] = weight.to(targets)
        return torch.cat(found, 1), torch.cat(weights)


def largest_within_error(losses: Tensor, weight: Tensor) -> int:
    """Row of the largest alpha whose loss is within a standard error of the least.

    Parameters
    ----------
    losses : Tensor of shape (n_alphas, n)
        Of rows that weren't seen.
    weight : Tensor of shape (n,)

    References
    ----------
    Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", Wadsworth
    1984: the rule of one standard error, here that of the difference row by row.
    """
    share = weight / weight.sum()
    mean = losses @ share
    best = mean.argmin()
    gap = losses - losses[best]
    spread = gap - (mean - mean[best])[:, None]
    error = (spread.square() @ share.square()).sqrt()
    return int((mean - mean[best] <= error).nonzero()[-1])


def _relative(errors: Tensor, ridge: StageRidge, outputs: slice) -> Tensor:
    """Mean (n, 1) over some outputs of errors (n, k), each over the variance."""
    variance = ridge.moments.error_of_mean[outputs]
    varies = variance > 0
    relative = errors[:, outputs] / torch.where(varies, variance, 1.0)
    return torch.where(varies, relative, 0.0).mean(1, keepdim=True)
