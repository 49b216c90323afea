"""The exact heads of both stages, once the networks are trained."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_choice import Part, Parts, RidgeChoice
from sklearn_cfll._iv_network import IVEnsemble, IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import StageRidge, deviation_of
from sklearn_cfll.functional.moments import Moments
from sklearn_cfll.functional.sandwich import (
    HeadCovariance,
    Terms,
    head_covariance,
)

# Predicted features that vary by less than this share of the actual ones' variance do
# so by rounding.
_FLAT = 1e-12


class ExactStages:
    """Solves the heads of both stages of all members, and that without instruments.

    Parameters
    ----------
    ensemble : IVEnsemble
    instrument_alpha, alpha : float or "auto"
        "auto" chooses of a path what is best for all members together: on the rows that
        they haven't seen, or by generalised cross-validation.
    shrink_to : {"regression", "zero"}
        What stage 2's ridge pulls to: the head without instruments, or zero.
    unit : float
        Rows that a weight of one counts for.

    Attributes
    ----------
    instrument_alpha, alpha, plain_alpha : float
        Ridges of the treatment features in stage 1, of stage 2, and of the fit without
        instruments, chosen by the first solve.
    column_alphas : Tensor of shape (p,)
        Those of the endogenous columns in stage 1.
    ridges, plain : list of StageRidge
        Of stage 2 and of the fit without instruments, each member's, in the last solve.
    """

    instrument_alpha: Any
    alpha: Any
    plain_alpha: Any
    column_alphas: Any

    def __init__(
        self,
        ensemble: IVEnsemble,
        *,
        instrument_alpha: Any,
        alpha: Any,
        shrink_to: str,
        unit: float,
    ) -> None:
        self.ensemble, self.unit = ensemble.eval(), unit
        self.instrument_alpha, self.alpha = instrument_alpha, alpha
        self.plain_alpha = self.column_alphas = None
        # The columns are spared the pull: without them a slope would be pulled, too.
        holds_columns = bool(ensemble.networks[0].treatment_columns.any())
        self.shrinks = shrink_to == "regression" and holds_columns
        self.ridges: list[StageRidge] = []
        self.plain: list[StageRidge] = []

    @torch.no_grad()
    def solve(
        self, rows: list[StageRows], held_out: list[StageRows] | None = None
    ) -> None:
        """Replace the heads by the exact ones.

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
        if held_out is None and isinstance(self.alpha, str):
            # Errors of the rows themselves don't tell how far the start was fitted to
            # them, and would choose it too often.
            self.shrinks = False
        choice = RidgeChoice(
            self.ensemble,
            rows if held_out is None else held_out,
            unseen=held_out is not None,
            unit=self.unit,
        )
        self._solve_first(rows, choice)
        self._solve_plain(rows, choice)
        self._solve_second(rows, choice)

    def _solve_first(self, rows: list[StageRows], choice: RidgeChoice) -> None:
        networks = self.ensemble.networks
        ridges = self._ridges(rows, first_parts, "free_first")
        size, n_columns = networks[0].first.weight.shape[1], rows[0].treatment.shape[1]
        if isinstance(self.instrument_alpha, str):
            columns = (slice(size + i, size + i + 1) for i in range(n_columns))
            self.instrument_alpha, *own = choice.of(
                ridges,
                first_parts,
                defaults.INSTRUMENT_ALPHAS,
                groups=[slice(0, size), *columns],
            )
            self.column_alphas = ridges[0].unit.new_tensor(own)
        elif self.column_alphas is None:
            alpha = float(self.instrument_alpha)
            self.column_alphas = ridges[0].unit.new_full((n_columns,), alpha)
        for network, ridge in zip(networks, ridges, strict=True):
            alphas = self.column_alphas.new_full((size,), self.instrument_alpha)
            if network.treatment_columns.any():
                alphas[network.treatment_columns] = self.column_alphas
            weight, bias = ridge.solve(torch.cat([alphas, self.column_alphas]))
            network.first.weight, network.columns.weight = (
                weight[:, :size],
                weight[:, size:],
            )
            network.first.bias, network.columns.bias = bias[:size], bias[size:]

    def _solve_plain(self, rows: list[StageRows], choice: RidgeChoice) -> None:
        self.plain = self._ridges(rows, plain_parts, "free_second")
        if self.plain_alpha is None:
            (self.plain_alpha,) = choice.of(self.plain, plain_parts, defaults.ALPHAS)
        networks = self.ensemble.networks
        for network, ridge in zip(networks, self.plain, strict=True):
            network.plain.weight, network.plain.bias = ridge.solve(self.plain_alpha)

    def _solve_second(self, rows: list[StageRows], choice: RidgeChoice) -> None:
        networks = self.ensemble.networks
        units = [deviation_of(ridge.moments) for ridge in self.plain]
        starts = [n.plain.weight if self.shrinks else None for n in networks]
        self.ridges = self._ridges(rows, second_parts, "free_second", units, starts)
        if isinstance(self.alpha, str):
            (self.alpha,) = choice.of(self.ridges, second_parts, defaults.ALPHAS)
        for network, ridge in zip(networks, self.ridges, strict=True):
            network.second.weight, network.second.bias = ridge.solve(self.alpha)

    def _ridges(
        self,
        rows: list[StageRows],
        parts: Parts,
        free: str,
        units: list[Tensor] | None = None,
        starts: list[Tensor | None] | None = None,
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
            ridge = StageRidge(
                moments,
                getattr(network, free),
                None if units is None else units[i],
                None if starts is None else starts[i],
            )
            ridges.append(ridge)
        return ridges

    def warn_if_flat(self) -> None:
        """Warn where stage 1 predicts the same for all rows."""
        spreads = (
            [ridge.moments.gram.diagonal() for ridge in ridges]
            for ridges in (self.ridges, self.plain)
        )
        pairs = zip(*spreads, strict=True)
        flat = all(bool((own <= _FLAT * actual).all()) for own, actual in pairs)
        if flat and bool((self.ridges[0].moments.target_square > 0).any()):
            warnings.warn(
                "stage 1 predicts the same treatment features for all rows, so that "
                "predictions owe nothing to the instruments: these move nothing that "
                "the treatment network sees, or a network's units are dead; check the "
                "instruments, decrease lr or widen the backbones.",
                ConvergenceWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def covariance(self, rows: StageRows, *, robust: bool) -> HeadCovariance:
        """Covariance of the members' heads, which were solved on all of the rows."""
        size = self.ensemble.n_numbers * len(self.ensemble.networks)
        return head_covariance(
            self.ridges,
            float(self.alpha),
            ((self._terms(chunk), chunk.weight) for chunk in rows.chunks(size)),
            robust=robust,
            plain=self.plain if self.shrinks else (),
            plain_alpha=float(self.plain_alpha),
        )

    def _terms(self, rows: StageRows) -> list[Terms]:
        """Features that the heads were solved on, and the residuals, of all members."""
        second, plain = [], []
        for network in self.ensemble.networks:
            features = network.features(rows)
            actual = network.actual(features)
            gap, plain_gap = (
                (rows.targets - head(actual))[:, 0]
                for head in (network.second, network.plain)
            )
            second.append((network.predicted(features), gap))
            plain.append((actual, plain_gap))
        pairs = [(second, self.ridges)]
        if self.shrinks:
            pairs.append((plain, self.plain))
        terms = []
        for own, ridges in pairs:
            stacks = [torch.stack(part) for part in zip(*own, strict=True)]
            mean = torch.stack([ridge.moments.feature_mean for ridge in ridges])
            terms.append(Terms(stacks[0], stacks[1], mean))
        return terms


def first_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Instrument features, and what they predict: psi, and the columns themselves."""
    for chunk in rows.chunks(sum(network.first.weight.shape)):
        wide = network.first.weight.dtype
        psi = network.treatment(chunk.treatment.clone()).to(wide)
        targets = torch.cat([psi, chunk.treatment.to(wide)], 1)
        yield network.of_instruments(chunk), targets, chunk.weight


def second_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Stage-2 features with the treatment as stage 1 predicts it, and the targets."""
    for chunk in rows.chunks(len(network.second.weight)):
        predicted = network.predicted(network.features(chunk))
        yield predicted, chunk.targets, chunk.weight


def plain_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Stage-2 features at the actual treatment, and the targets."""
    for chunk in rows.chunks(len(network.second.weight)):
        yield network.structural(chunk), chunk.targets, chunk.weight
