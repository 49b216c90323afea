"""What rows say of the instruments, and of the training of both stages."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_final import structural_of
from sklearn_cfll._iv_network import IVNetwork
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._iv_steps import first_loss, second_loss
from sklearn_cfll.functional.linear_tests import (
    LinearTest,
    durbin_wu_hausman,
    first_stage,
    overidentification,
)
from sklearn_cfll.functional.moments import Moments, RidgePath

# Permutations of the instruments over which predictions are averaged.
_PERMUTATIONS = 8

# Predicts the endogenous columns from instrument features.
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """All features of some rows, in the heads' dtype.

    Attributes
    ----------
    instrument, covariate : Tensor of shape (n, ...)
    predicted, actual : Tensor of shape (n, d)
        Stage-2 features, at the predicted and at the actual treatment.
    """

    instrument: Tensor
    covariate: Tensor
    predicted: Tensor
    actual: Tensor

    @classmethod
    def of(cls, network: IVNetwork, rows: StageRows) -> Features:
        """Compute them in chunks."""
        parts = []
        wide = network.first.weight.dtype
        for chunk in rows.chunks(network.n_numbers):
            found = network.features(chunk)
            covariate = found.covariate
            if covariate is None:
                covariate = chunk.exogenous
            predicted = network.predicted_features(found)
            actual = structural_of(network, found)
            own = found.instrument.to(wide), covariate.to(wide), predicted, actual
            parts.append(own)
        return cls(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def diagnose(
    network: IVNetwork,
    alphas: tuple[float, float],
    rows: StageRows,
    *,
    unseen: bool,
    robust: bool,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Test the instruments on some rows.

    Parameters
    ----------
    network : IVNetwork
    alphas : tuple of two floats
        Ridges of stage 1 and of stage 2.
    rows : StageRows
    unseen : bool
        Whether neither the networks nor the heads have seen the rows. Where they have,
        what stage 1 predicts of the columns comes from heads solved on other folds.
    robust : bool
    generator : torch.Generator

    Returns
    -------
    diagnostics : dict
        Without names of columns and units; errors are of standardised targets.
    """
    rows = rows.evenly(defaults.DIAGNOSTIC_ROWS)
    features = Features.of(network, rows)
    columns = rows.treatment.to(features.instrument)
    predict, predicted = _column_predictions(
        network, alphas[0], rows, features, columns, unseen, generator
    )
    relevance = _relevance(
        network, rows, features, columns, predict, predicted, generator
    )
    exogeneity = restrictions = None
    targets = rows.targets[:, 0]
    # Fewer rows than these features leave no degrees of freedom to speak of.
    if len(rows) >= 2 * (features.actual.shape[1] + features.instrument.shape[1]):
        exogeneity = durbin_wu_hausman(
            targets, features.actual, columns - predicted, rows.weight, robust=robust
        )
        restrictions = overidentification(
            targets - network.second(features.actual)[:, 0],
            features.predicted,
            features.instrument,
            rows.weight,
            robust=robust,
        )
    where = "held-out" if unseen else "training"
    kind = {"rows": where if network.learns else "all", "n_rows": len(rows)}
    return {
        "first_stage_on": kind,
        **relevance,
        "tests_on": kind,
        "durbin_wu_hausman": described(exogeneity),
        "overidentification": described(restrictions),
        "non_iv_difference": _non_iv_difference(network, alphas[1], rows, features),
    }


def described(test: LinearTest | None) -> dict[str, Any] | None:
    """Give a test's result as a dictionary."""
    return None if test is None else test._asdict()


def _column_predictions(
    network: IVNetwork,
    alpha: float,
    rows: StageRows,
    features: Features,
    columns: Tensor,
    unseen: bool,
    generator: torch.Generator,
) -> tuple[Predict, Tensor]:
    """Predict the endogenous columns of rows by heads that haven't seen them.

    A linear stage 1 has no features that were learnt, and needs no such care.
    """
    if unseen or not network.learns_instruments:
        return network.columns, network.columns(features.instrument)
    predicted = torch.empty_like(columns)
    heads = []
    for fold in rows.folds(defaults.FOLDS, generator):
        kept = torch.ones(len(rows), dtype=torch.bool, device=fold.device)
        kept[fold] = False
        weight = None if rows.weight is None else rows.weight[kept]
        moments = Moments.of(features.instrument[kept], columns[kept], weight)
        heads.append(RidgePath(moments).solve(alpha))
        predicted[fold] = features.instrument[fold] @ heads[-1][0] + heads[-1][1]

    def predict(instrument: Tensor) -> Tensor:
        found = [instrument.to(weight) @ weight + bias for weight, bias in heads]
        return torch.stack(found).mean(0)

    return predict, predicted


def _relevance(
    network: IVNetwork,
    rows: StageRows,
    features: Features,
    columns: Tensor,
    predict: Predict,
    predicted: Tensor,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Test how well the instruments predict the endogenous columns.

    A linear stage 1 is tested as ever. Of a learnt one the predictions are the
    instruments: one for each endogenous column. What they owe to the exogenous columns,
    linear or not, is controlled for: the columns, their features, and the predictions'
    mean over instruments of other rows.
    """
    controls = rows.exogenous.to(columns)
    instruments = rows.inputs[:, controls.shape[1] :]
    if network.learns_instruments:
        instruments = predicted
        if controls.shape[1]:
            averaged = _averaged_predictions(network, rows, predict, generator)
            controls = torch.cat([controls, features.covariate, averaged], 1)
    found = first_stage(columns, instruments, controls, rows.weight)
    if found is None:
        return {"first_stage": None, "cragg_donald": None}
    tests = zip(found.partial_r2, found.tests, strict=True)
    return {
        "first_stage": [{"partial_r2": r2, **test._asdict()} for r2, test in tests],
        "cragg_donald": found.cragg_donald,
    }


def _averaged_predictions(
    network: IVNetwork, rows: StageRows, predict: Predict, generator: torch.Generator
) -> Tensor:
    """Predictions from a row's exogenous columns, over instruments of other rows."""
    n_exogenous = rows.exogenous.shape[1]
    total: Any = 0.0
    for _ in range(_PERMUTATIONS):
        order = torch.randperm(len(rows), generator=generator)
        other = rows.inputs[order.to(rows.inputs.device), n_exogenous:]
        inputs = torch.cat([rows.exogenous, other], 1)
        parts = inputs.split(max(1, 2**20 // network.n_numbers))
        total = total + torch.cat([predict(network.instrument(p)) for p in parts])
    return total / _PERMUTATIONS


def _non_iv_difference(
    network: IVNetwork, alpha: float, rows: StageRows, features: Features
) -> float:
    """Root mean square of what the instruments change of the predictions.

    The fit without instruments has the same features and ridge.
    """
    plain = RidgePath(Moments.of(features.actual, rows.targets, rows.weight))
    weight, bias = plain.solve(alpha)
    gap = network.second(features.actual) - (features.actual @ weight + bias)
    weights = gap.new_ones(len(gap)) if rows.weight is None else rows.weight
    return float((weights @ gap[:, 0].square() / weights.sum()).sqrt())


# Memorising -------------------------------------------------------------------------


@torch.no_grad()
def unexplained_shares(network: IVNetwork, rows: StageRows) -> dict[str, float]:
    """Share of the variance that each stage leaves unexplained on rows."""
    rows = rows.evenly(defaults.DIAGNOSTIC_ROWS)
    wide = network.first.weight.dtype
    parts = []
    for chunk in rows.chunks(network.n_numbers):
        found = network.features(chunk)
        predicted = network.predicted_features(found)
        parts.append((found.instrument.to(wide), found.treatment, predicted))
    phi, psi, predicted = (torch.cat(part) for part in zip(*parts, strict=True))
    head = network.first
    first = first_loss(rows, phi, psi, head.weight, head.bias)
    mean = rows.targets.mean(0)
    if rows.weight is not None:
        mean = rows.weight @ rows.targets / rows.weight.sum()
    gap = (rows.targets - mean).square()[:, 0]
    weights = gap.new_ones(len(gap)) if rows.weight is None else rows.weight
    variance = (weights @ gap / weights.sum()).clamp_min(torch.finfo(wide).eps)
    second = second_loss(network.second, predicted, rows) / variance
    return {"stage1": float(first), "stage2": float(second)}


def warn_of_memorising(train: dict[str, float], unseen: dict[str, float]) -> None:
    """Warn where a stage fits the rows it has seen far better than others."""
    stages = {
        "stage1": ("stage 1 (instruments to treatment)", "instrument_alpha"),
        "stage2": ("stage 2 (predicted treatment to y)", "alpha"),
    }
    for key, (stage, alpha) in stages.items():
        if train[key] < defaults.MEMORISED * unseen[key]:
            warnings.warn(
                f"{stage} leaves {train[key]:.3g} of the variance of its training rows "
                f"but {unseen[key]:.3g} of the held-out ones': it has memorised rows, "
                "and what it memorises is confounded; use fewer epochs, smaller "
                f"backbones, larger batches or a larger {alpha}.",
                UserWarning,
                stacklevel=2,
            )


def warn_of_weak_instruments(diagnostics: dict[str, Any]) -> None:
    """Warn where the first stage's F is below ten."""
    tests = diagnostics["first_stage"]
    if tests is None:
        return
    weak = [
        f"{name} (F {test['statistic']:.3g})"
        for name, test in tests.items()
        if test["statistic"] < defaults.WEAK_F
    ]
    if weak:
        warnings.warn(
            f"the instruments are weak for {', '.join(weak)}: the first stage's F is "
            f"below {defaults.WEAK_F:g} (Staiger and Stock 1997; Stock and Yogo 2005), "
            "so that estimates are biased towards those without instruments, and "
            "their standard errors are too small; look for stronger instruments.",
            UserWarning,
            stacklevel=2,
        )
