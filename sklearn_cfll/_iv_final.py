"""The exact heads of both stages over all rows, once the networks are trained."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll._final import ALPHA_PATH, largest_of_the_best
from sklearn_cfll._iv_network import IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import HeadCovariance, Meat, head_covariance
from sklearn_cfll.functional.moments import Moments, RidgePath


@dataclass(frozen=True)
class ExactStages:
    """What the exact solves of both stages rest on.

    Attributes
    ----------
    first, second : RidgePath
    instrument_alpha, alpha : float
    """

    first: RidgePath
    second: RidgePath
    instrument_alpha: float
    alpha: float


@torch.no_grad()
def solve_stages(
    network: IVNetwork,
    rows: StageRows,
    *,
    instrument_alpha: float | str,
    alpha: float | str,
    unit: float = 1.0,
) -> ExactStages:
    """Replace the heads of both stages by the exact ones over all rows.

    Parameters
    ----------
    network : IVNetwork
    rows : StageRows
    instrument_alpha, alpha : float or "auto"
        "auto" chooses of a path by generalised cross-validation.
    unit : float, default=1.0
        Rows that a unit of weight counts for.

    Returns
    -------
    stages : ExactStages

    Raises
    ------
    FloatingPointError
        Where features of the rows are not finite.
    """
    network.eval()
    n_treatment = network.first.weight.shape[1]
    first = RidgePath(_moments(_first_parts(network, rows)))
    instrument_alpha = _chosen(instrument_alpha, first, n_treatment, unit)
    weight, bias = first.solve(instrument_alpha)
    network.first.weight, network.first.bias = (
        weight[:, :n_treatment],
        bias[:n_treatment],
    )
    network.columns.weight, network.columns.bias = (
        weight[:, n_treatment:],
        bias[n_treatment:],
    )
    second = RidgePath(_moments(_second_parts(network, rows)))
    alpha = _chosen(alpha, second, 1, unit)
    network.second.weight, network.second.bias = second.solve(alpha)
    if second.flat and bool((second.moments.target_square > 0).any()):
        warnings.warn(
            "stage 1 predicts the same treatment features for all rows, so that "
            "predictions are the mean of y: the instruments move nothing that the "
            "treatment network sees, or its units are dead; check the instruments, "
            "decrease lr or widen the backbones.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return ExactStages(first, second, instrument_alpha, alpha)


@torch.no_grad()
def covariance_of(
    network: IVNetwork, rows: StageRows, stages: ExactStages, *, robust: bool
) -> HeadCovariance:
    """Covariance of the exact stage-2 head, from a further pass over its rows."""
    mean = stages.second.moments.feature_mean
    parts = []
    for chunk in rows.chunks(network.n_numbers):
        features = network.features(chunk)
        predicted = network.predicted_features(features)
        residual = chunk.targets - network.second(structural_of(network, features))
        parts.append(Meat.of(predicted, residual[:, 0], mean, chunk.weight))
    meat = functools.reduce(Meat.merge, parts)
    return head_covariance(stages.second, stages.alpha, meat, robust=robust)


def structural_of(network: IVNetwork, features: Any) -> Tensor:
    """Stage-2 features at the actual treatment, in the heads' dtype."""
    wide = network.second.weight.dtype
    return network.combined(features.treatment.to(wide), features.covariate)


Part = tuple[Tensor, Tensor, Tensor | None]


def _first_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    """Instrument features, and what they predict: psi, and the columns themselves."""
    for chunk in rows.chunks(network.n_numbers):
        wide = network.first.weight.dtype
        psi = network.treatment(chunk.treatment).to(wide)
        targets = torch.cat([psi, chunk.treatment.to(wide)], 1)
        yield network.instrument(chunk.inputs), targets, chunk.weight


def _second_parts(network: IVNetwork, rows: StageRows) -> Iterator[Part]:
    for chunk in rows.chunks(network.n_numbers):
        features = network.features(chunk)
        yield network.predicted_features(features), chunk.targets, chunk.weight


def _moments(parts: Iterator[Part]) -> Moments:
    moments = functools.reduce(Moments.merge, (Moments.of(*part) for part in parts))
    if not moments.finite:
        raise FloatingPointError(
            "the trained networks' features of the training rows are not finite, or "
            "their squares overflow; decrease lr, or scale X and the instruments."
        )
    return moments


def _chosen(alpha: float | str, path: RidgePath, n_outputs: int, unit: float) -> float:
    """Give alpha, where it is "auto" by the errors of the first outputs."""
    if not isinstance(alpha, str):
        return float(alpha)
    counted = copy.copy(path)
    counted.moments = path.moments.scaled(unit)
    errors = counted.generalized_errors(ALPHA_PATH)[:, :n_outputs]
    scale = path.moments.error_of_mean[:n_outputs].sum()
    if not bool(scale > 0):
        return ALPHA_PATH[-1]
    score = errors.sum(1, keepdim=True) / scale
    return ALPHA_PATH[int(largest_of_the_best(score)[0])]
