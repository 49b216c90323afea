"""What rows say of the instruments, and of the training of both stages."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_losses import first_loss
from sklearn_cfll._iv_network import IVEnsemble
from sklearn_cfll._iv_rows import StageRows, weighted_mean
from sklearn_cfll._iv_unseen import RowPredictions
from sklearn_cfll.functional.linear_tests import (
    LinearTest,
    durbin_wu_hausman,
    first_stage,
    overidentification,
)


@torch.no_grad()
def diagnose(
    ensemble: IVEnsemble,
    rows: StageRows,
    predictions: RowPredictions,
    *,
    robust: bool,
    seen: bool,
) -> dict[str, Any]:
    """Test the instruments on some rows.

    A linear stage 1 is tested as ever, with the instruments given. Of a learnt one the
    predictions of the endogenous columns are the instruments, one for each column; what
    they owe to the exogenous columns is controlled for. On rows that the networks have
    seen such predictions would always look strong, so that there, too, it is the
    instruments given that are tested.

    Parameters
    ----------
    ensemble : IVEnsemble
    rows : StageRows
    predictions : RowPredictions
    robust : bool
    seen : bool
        Whether the networks were trained on these rows.

    Returns
    -------
    diagnostics : dict
        Without names of columns; errors are of standardised targets.
    """
    rows, predictions = rows.to("cpu"), predictions.to("cpu")  # which has every solver
    columns = rows.treatment.to(predictions.columns)
    controls, instruments = rows.exogenous.to(columns), rows.instruments.to(columns)
    strong, known = instruments, controls
    if ensemble.learns_instruments and not seen:
        strong, known = predictions.columns, _joined(controls, predictions.averaged)
    found = first_stage(columns, strong, known, rows.weight, robust=robust)
    relevance = None
    if found is not None:
        tests = zip(found.partial_r2, found.tests, strict=True)
        relevance = [{"partial_r2": r2, **test._asdict()} for r2, test in tests]
    targets = rows.targets[:, 0]
    exogeneity = durbin_wu_hausman(
        targets,
        _joined(columns, controls, predictions.plain, predictions.structural),
        columns - predictions.columns,
        rows.weight,
        robust=robust,
    )
    restrictions = overidentification(
        targets - predictions.structural[:, 0],
        _joined(predictions.columns, controls, predictions.reduced),
        _joined(controls, instruments),
        rows.weight,
        robust=robust,
    )
    gap = (predictions.structural - predictions.plain).square()
    return {
        "first_stage": relevance,
        "cragg_donald": None if found is None else found.cragg_donald,
        "durbin_wu_hausman": described(exogeneity),
        "overidentification": described(restrictions),
        "non_iv_difference": float(weighted_mean(gap, rows.weight).sqrt()),
    }


def described(test: LinearTest | None) -> dict[str, Any] | None:
    """Give a test's result as a dictionary."""
    return None if test is None else test._asdict()


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


@torch.no_grad()
def unexplained_shares(ensemble: IVEnsemble, rows: list[StageRows]) -> dict[str, float]:
    """Share of the variance that each stage leaves on rows, the mean over members."""
    first: list[float] = []
    second: list[float] = []
    for network, own in zip(ensemble.networks, rows, strict=True):
        own = own.evenly(defaults.DIAGNOSTIC_ROWS)
        parts = []
        for chunk in own.chunks(sum(network.second.weight.shape)):
            found = network.features(chunk)
            reduced = network.second(network.predicted(found))
            parts.append((found.instrument, found.treatment, reduced))
        phi, psi, reduced = (torch.cat(part) for part in zip(*parts, strict=True))
        head = network.first
        loss = first_loss(own, phi, psi, head.weight, head.bias)
        first.append(float(loss) / psi.shape[1])
        mean = weighted_mean(own.targets, own.weight)
        error, variance = (
            weighted_mean((own.targets - fitted).square(), own.weight)
            for fitted in (reduced, mean)
        )
        second.append(float(error / variance.clamp_min(1e-30)))
    mean_of = len(first)
    return {"stage1": sum(first) / mean_of, "stage2": sum(second) / mean_of}


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
                f"but {unseen[key]:.3g} of the held-out ones: it has memorised rows, "
                "and what it memorises is confounded; use fewer epochs, smaller "
                f"backbones, larger batches or a larger {alpha}.",
                UserWarning,
                stacklevel=2,
            )


def warn_of_few_rows(diagnostics: dict[str, Any], n_columns: int) -> None:
    """Warn where no degree of freedom is left to test the instruments by.

    Parameters
    ----------
    diagnostics : dict
    n_columns : int
        Instruments and exogenous columns.
    """
    n_rows = diagnostics["n_rows"]
    if diagnostics["first_stage"] is None and n_rows <= n_columns + 1:
        warnings.warn(
            f"X has {n_rows} rows, on which {n_columns} instruments and exogenous "
            "columns and a constant leave no degree of freedom: nothing can be told of "
            "the instruments, and standard errors mean nothing; pass more rows, or "
            "fewer columns.",
            UserWarning,
            stacklevel=2,
        )


def warn_of_weak_instruments(diagnostics: dict[str, Any]) -> None:
    """Warn where the first stage's F, or Cragg and Donald's statistic, is below ten."""
    tests = diagnostics["first_stage"]
    if tests is None:
        return
    weak = [
        f"{name} (F {test['statistic']:.3g})"
        for name, test in tests.items()
        if test["statistic"] < defaults.WEAK_F
    ]
    least, below = diagnostics["cragg_donald"], f"below {defaults.WEAK_F:g}"
    if weak:
        which = f"{', '.join(weak)}: the first stage's F is {below}"
    elif least < defaults.WEAK_F and len(tests) > 1:
        which = (
            "the endogenous columns together, each of which they predict by much the "
            f"same combination: Cragg and Donald's statistic is {least:.3g}, {below}"
        )
    else:
        return
    warnings.warn(
        f"the instruments are weak for {which} (Staiger and Stock 1997; Stock and Yogo "
        "2005), so that estimates are biased towards those without instruments, and "
        "their standard errors are too small; look for stronger instruments.",
        UserWarning,
        stacklevel=2,
    )
