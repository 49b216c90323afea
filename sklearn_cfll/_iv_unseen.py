"""What members predict of rows, those that they haven't seen first of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_network import IVEnsemble, IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import StageRidge
from sklearn_cfll.functional.moments import Moments

# Permutations of the instruments over which predictions are averaged.
_PERMUTATIONS = 8

# Predicts the endogenous columns from instrument features.
Predict = Callable[[Tensor], Tensor]


@dataclass
class RowPredictions:
    """What members predict of some rows, in standardised units.

    Attributes
    ----------
    columns : Tensor of shape (n, p)
        The endogenous columns, from the instruments and the exogenous ones.
    averaged : Tensor of shape (n, p)
        The same, averaged over instruments of other rows: what is owed to the exogenous
        columns.
    structural, reduced, plain : Tensor of shape (n, 1)
        The target: from X; from the instruments, through stage 1; and from X by the fit
        without instruments.
    """

    columns: Tensor
    averaged: Tensor
    structural: Tensor
    reduced: Tensor
    plain: Tensor

    @classmethod
    def zeros(cls, rows: StageRows, wide: torch.dtype) -> RowPredictions:
        """Predictions of nothing."""
        columns = torch.zeros_like(rows.treatment, dtype=wide)
        target = torch.zeros_like(rows.targets)
        parts = columns.clone(), target, target.clone(), target.clone()
        return cls(columns, *parts)

    @classmethod
    def of(
        cls,
        network: IVNetwork,
        rows: StageRows,
        predict: Predict,
        averaged: bool,
        generator: torch.Generator,
    ) -> RowPredictions:
        """Predictions of one member."""
        parts = []
        for chunk in rows.chunks(sum(network.second.weight.shape)):
            features = network.features(chunk)
            actual = network.actual(features)
            own = (
                predict(features.instrument.to(actual.dtype)),
                network.second(actual),
                network.second(network.predicted(features)),
                network.plain(actual),
            )
            parts.append(own)
        found = [torch.cat(part) for part in zip(*parts, strict=True)]
        mean = torch.zeros_like(found[0])
        if averaged:
            mean = _averaged(network, rows, predict, generator)
        return cls(found[0], mean, *found[1:])

    def add(self, rows: Tensor, other: RowPredictions) -> None:
        """Add predictions of some of the rows."""
        for name, values in vars(self).items():
            values[rows] += getattr(other, name)

    def divided(self, counts: Tensor) -> RowPredictions:
        """Means, of sums over so many members."""
        parts = {name: value / counts[:, None] for name, value in vars(self).items()}
        return RowPredictions(**parts)

    def to(self, device: str) -> RowPredictions:
        """Give the same on a device."""
        return RowPredictions(**{name: v.to(device) for name, v in vars(self).items()})

    def take(self, rows: Tensor) -> RowPredictions:
        """Give some of the rows."""
        return RowPredictions(**{name: v[rows] for name, v in vars(self).items()})


def _averaged(
    network: IVNetwork, rows: StageRows, predict: Predict, generator: torch.Generator
) -> Tensor:
    """Predictions of the columns from the exogenous ones, over other instruments."""
    total: Any = 0.0
    wide = network.first.weight.dtype
    for _ in range(_PERMUTATIONS):
        order = torch.randperm(len(rows), generator=generator)
        other = rows.instruments[order.to(rows.inputs.device)]
        inputs = torch.cat([rows.exogenous, other], 1)
        parts = inputs.split(max(1, 2**20 // len(network.first.weight)))
        found = [predict(network.instrument(part).to(wide)) for part in parts]
        total = total + torch.cat(found)
    return total / _PERMUTATIONS


@torch.no_grad()
def predictions_of_unseen(
    ensemble: IVEnsemble,
    rows: StageRows,
    held_out: list[Tensor],
    generator: torch.Generator,
) -> tuple[StageRows, RowPredictions]:
    """Predict each row by the members that haven't seen it.

    Parameters
    ----------
    ensemble : IVEnsemble
        With heads that were solved on each member's own rows.
    rows : StageRows
    held_out : list of Tensor
        Numbers of the rows that each member hasn't seen.
    generator : torch.Generator

    Returns
    -------
    rows : StageRows
        Those that some member hasn't seen.
    predictions : RowPredictions
    """
    found = RowPredictions.zeros(rows, ensemble.networks[0].first.weight.dtype)
    counts = torch.zeros(len(rows), dtype=found.structural.dtype).to(found.structural)
    averaged = _averages(ensemble, rows)
    for network, index in zip(ensemble.networks, held_out, strict=True):
        own = RowPredictions.of(
            network, rows.take(index), network.columns, averaged, generator
        )
        found.add(index, own)
        counts[index] += 1
    known = counts.nonzero()[:, 0]
    return rows.take(known), found.take(known).divided(counts[known])


@torch.no_grad()
def mean_predictions(
    ensemble: IVEnsemble,
    rows: StageRows,
    generator: torch.Generator,
    *,
    column_alphas: Tensor | None = None,
) -> RowPredictions:
    """Predict rows by all members.

    With ``column_alphas``, the ridges of the columns' heads, the rows are those that
    the heads were solved on, and the columns of each are predicted by heads that are
    solved on other rows.
    """
    found = RowPredictions.zeros(rows, ensemble.networks[0].first.weight.dtype)
    every = torch.arange(len(rows), device=rows.treatment.device)
    averaged = _averages(ensemble, rows)
    for network in ensemble.networks:
        own = RowPredictions.of(network, rows, network.columns, averaged, generator)
        if column_alphas is not None and ensemble.learns_instruments:
            own.columns = _from_other_folds(network, rows, column_alphas, generator)
        found.add(every, own)
    counts = torch.full_like(found.structural[:, 0], len(ensemble.networks))
    return found.divided(counts)


def _averages(ensemble: IVEnsemble, rows: StageRows) -> bool:
    """Whether learnt stage-1 predictions may owe something to exogenous columns."""
    return ensemble.learns_instruments and rows.exogenous.shape[1] > 0


def _from_other_folds(
    network: IVNetwork, rows: StageRows, alphas: Tensor, generator: torch.Generator
) -> Tensor:
    """Predict the columns of each fold by a head that is solved on the others."""
    wide = network.first.weight.dtype
    parts = [
        network.of_instruments(part).to(wide)
        for part in rows.chunks(len(network.first.weight))
    ]
    features, columns = torch.cat(parts), rows.treatment.to(wide)
    predicted = torch.empty_like(columns)
    order = torch.randperm(len(rows), generator=generator).to(columns.device)
    for fold in order.tensor_split(min(defaults.FOLDS, len(rows))):
        kept = torch.ones(len(rows), dtype=torch.bool, device=columns.device)
        kept[fold] = False
        weight = None if rows.weight is None else rows.weight[kept]
        moments = Moments.of(features[kept], columns[kept], weight)
        slope, offset = StageRidge(moments, network.free_first).solve(alphas)
        predicted[fold] = features[fold] @ slope + offset
    return predicted
