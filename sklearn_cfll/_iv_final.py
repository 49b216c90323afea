"""The exact heads of both stages, once the networks are trained."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._final import largest_of_the_best
from sklearn_cfll._iv_network import IVEnsemble, IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import StageRidge, deviation_of
from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.sandwich import HeadCovariance, Meat, head_covariance

# Features, what they predict, and the rows' weights.
Part = tuple[Tensor, Tensor, Tensor | None]
Parts = Callable[[IVNetwork, StageRows], Iterator[Part]]


class ExactStages:
    """Solves the heads of both stages of all members.

    Parameters
    ----------
    ensemble : IVEnsemble
    instrument_alpha, alpha : float or "auto"
        "auto" chooses of a path what is best for all members together: on the rows that
        they haven't seen, or by generalised cross-validation.
    unit : float
        Rows that a weight of one counts for.

    Attributes
    ----------
    instrument_alpha, alpha : float
        Chosen by the first solve.
    ridges : list of StageRidge
        Stage 2's, of each member, in the last solve.
    """

    instrument_alpha: Any
    alpha: Any

    def __init__(
        self, ensemble: IVEnsemble, *, instrument_alpha: Any, alpha: Any, unit: float
    ) -> None:
        self.ensemble, self.unit = ensemble.eval(), unit
        self.instrument_alpha, self.alpha = instrument_alpha, alpha
        self.ridges: list[StageRidge] = []

    @torch.no_grad()
    def solve(
        self, rows: list[StageRows], held_out: list[StageRows] | None = None
    ) -> None:
        """Replace the heads of both stages by the exact ones.

        Parameters
        ----------
        rows : list of StageRows
            Each member's.
        held_out : list of StageRows, default=None
            Rows that each member hasn't seen, by which to choose what is "auto".

        Raises
        ------
        FloatingPointError
            Where features of the rows are not finite.
        """
        networks = self.ensemble.networks
        first = self._ridges(rows, first_parts, "free_first")
        outputs = slice(0, networks[0].first.weight.shape[1])
        self.instrument_alpha = self._chosen(
            self.instrument_alpha, first, rows, held_out, first_parts, outputs
        )
        for network, ridge in zip(networks, first, strict=True):
            weight, bias = ridge.solve(self.instrument_alpha)
            size = outputs.stop
            network.first.weight, network.columns.weight = (
                weight[:, :size],
                weight[:, size:],
            )
            network.first.bias, network.columns.bias = bias[:size], bias[size:]
        plain = self._ridges(rows, plain_parts, "free_second")
        units = [deviation_of(ridge.moments) for ridge in plain]
        self.ridges = self._ridges(rows, second_parts, "free_second", units)
        self.alpha = self._chosen(
            self.alpha, self.ridges, rows, held_out, second_parts, slice(0, 1)
        )
        for network, ridge, own in zip(networks, self.ridges, plain, strict=True):
            network.second.weight, network.second.bias = ridge.solve(self.alpha)
            network.plain.weight, network.plain.bias = own.solve(self.alpha)

    def _ridges(
        self,
        rows: list[StageRows],
        parts: Parts,
        free: str,
        units: list[Tensor] | None = None,
    ) -> list[StageRidge]:
        ridges = []
        for i, (network, own) in enumerate(
            zip(self.ensemble.networks, rows, strict=True)
        ):
            found = (Moments.of(*part) for part in parts(network, own))
            moments = functools.reduce(Moments.merge, found)
            if not moments.finite:
                raise FloatingPointError(
                    "the trained networks' features of the training rows are not "
                    "finite, or their squares overflow; decrease lr, or scale X and "
                    "the instruments."
                )
            unit = None if units is None else units[i]
            ridges.append(StageRidge(moments, getattr(network, free), unit))
        return ridges

    def _chosen(
        self,
        alpha: Any,
        ridges: list[StageRidge],
        rows: list[StageRows],
        held_out: list[StageRows] | None,
        parts: Parts,
        outputs: slice,
    ) -> float:
        """Give alpha, where it is "auto" by the errors of some of the outputs.

        Each output's error is taken over its variance.
        """
        if not isinstance(alpha, str):
            return float(alpha)
        second = parts is second_parts
        alphas = defaults.ALPHAS if second else defaults.INSTRUMENT_ALPHAS
        if held_out is None:
            errors: Any = 0.0
            for ridge in ridges:
                own = ridge.generalized_errors(alphas, self.unit)
                errors = errors + _relative(own, ridge, outputs) / len(ridges)
            if second:
                errors = errors + self._disagreement(ridges, rows)[:, None]
            return alphas[int(largest_of_the_best(errors)[0])]
        found, weights = [], []
        networks = self.ensemble.networks
        for network, ridge, own_rows in zip(networks, ridges, held_out, strict=True):
            some = own_rows.evenly(defaults.DIAGNOSTIC_ROWS)
            for features, targets, weight in parts(network, some):
                targets = targets.to(ridge.unit)
                squares = ridge.squares(features, targets, alphas)
                each = [_relative(one, ridge, outputs)[:, 0] for one in squares]
                found.append(torch.stack(each))
                weights.append(targets.new_ones(len(targets)))
                if weight is not None:
                    weights[-1] = weight.to(targets)
        extra = self._disagreement(ridges, held_out) if second else None
        chosen = largest_within_error(torch.cat(found, 1), torch.cat(weights), extra)
        return alphas[chosen]

    def _disagreement(self, ridges: list[StageRidge], rows: list[StageRows]) -> Tensor:
        """Variance (n_alphas,) of the members' structural predictions of a row.

        What instruments tell of f is a mean of it over the treatment. A ridge too small
        fits that mean, on unseen rows too, by an f that swings about it, each member's
        its own way.
        """
        networks = self.ensemble.networks
        total, n_rows = torch.zeros(len(defaults.ALPHAS)).to(ridges[0].unit), 0
        if len(networks) == 1:
            return total
        for part in rows:
            some = part.evenly(defaults.DIAGNOSTIC_ROWS // len(rows))
            for chunk in some.chunks(len(networks) * len(networks[0].second.weight)):
                predictions = torch.stack(
                    [
                        ridge.predictions(network.structural(chunk), defaults.ALPHAS)
                        for network, ridge in zip(networks, ridges, strict=True)
                    ]
                )
                total += predictions.var(0).sum((1, 2))
                n_rows += len(chunk)
        return total / n_rows

    def warn_if_flat(self) -> None:
        """Warn where stage 1 predicts the same for all rows."""
        flat = all(ridge.path.flat for ridge in self.ridges)
        if flat and bool((self.ridges[0].moments.target_square > 0).any()):
            warnings.warn(
                "stage 1 predicts the same treatment features for all rows, so that "
                "predictions are the mean of y: the instruments move nothing that the "
                "treatment network sees, or its units are dead; check the instruments, "
                "decrease lr or widen the backbones.",
                ConvergenceWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def covariance(self, rows: StageRows, *, robust: bool) -> HeadCovariance:
        """Covariance of the members' heads, which were solved on all of the rows."""
        networks = self.ensemble.networks
        mean = torch.stack([ridge.moments.feature_mean for ridge in self.ridges])
        parts = []
        for chunk in rows.chunks(self.ensemble.n_numbers * len(networks)):
            predicted, residuals = [], []
            for network in networks:
                features = network.features(chunk)
                predicted.append(network.predicted(features))
                gap = chunk.targets - network.second(network.actual(features))
                residuals.append(gap[:, 0])
            stacked = torch.stack(predicted), torch.stack(residuals)
            parts.append(Meat.of(*stacked, mean, chunk.weight))
        meat = functools.reduce(Meat.merge, parts)
        return head_covariance(self.ridges, self.alpha, meat, robust=robust)


def first_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Instrument features, and what they predict: psi, and the columns themselves."""
    for chunk in rows.chunks(sum(network.first.weight.shape)):
        wide = network.first.weight.dtype
        psi = network.treatment(chunk.treatment).to(wide)
        targets = torch.cat([psi, chunk.treatment.to(wide)], 1)
        yield network.instrument(chunk.inputs), targets, chunk.weight


def second_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Stage-2 features with the treatment as stage 1 predicts it, and the targets."""
    for chunk in rows.chunks(len(network.second.weight)):
        predicted = network.predicted(network.features(chunk))
        yield predicted, chunk.targets, chunk.weight


def plain_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Stage-2 features at the actual treatment, and the targets."""
    for chunk in rows.chunks(len(network.second.weight)):
        yield network.structural(chunk), chunk.targets, chunk.weight


def largest_within_error(
    losses: Tensor, weight: Tensor, extra: Tensor | None = None
) -> int:
    """Row of the largest alpha whose loss is within a standard error of the least.

    Parameters
    ----------
    losses : Tensor of shape (n_alphas, n)
        Of rows that weren't seen.
    weight : Tensor of shape (n,)
    extra : Tensor of shape (n_alphas,), default=None
        What is added to the mean losses.

    References
    ----------
    Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees", Wadsworth
    1984: the rule of one standard error, here that of the difference row by row.
    """
    share = weight / weight.sum()
    mean = losses @ share
    score = mean if extra is None else mean + extra
    best = score.argmin()
    gap = losses - losses[best]
    spread = gap - (mean - mean[best])[:, None]
    error = (spread.square() @ share.square()).sqrt()
    return int((score - score[best] <= error).nonzero()[-1])


def _relative(errors: Tensor, ridge: StageRidge, outputs: slice) -> Tensor:
    """Mean (n, 1) over some outputs of errors (n, k), each over the variance."""
    variance = ridge.moments.error_of_mean[outputs]
    varies = variance > 0
    relative = errors[:, outputs] / torch.where(varies, variance, 1.0)
    return torch.where(varies, relative, 0.0).mean(1, keepdim=True)
