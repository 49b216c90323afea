"""Builds the networks for the rows at hand, and says what is wrong with a backbone."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._build import run_backbone
from sklearn_cfll._device import place
from sklearn_cfll._iv_network import Combiner, IVEnsemble, IVNetwork
from sklearn_cfll._iv_problem import IVProblem, Scales
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._validation import as_backbone
from sklearn_cfll.backbones import describe
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.layers import Standardize


def build_ensemble(estimator: Any, problem: IVProblem, n_members: int) -> IVEnsemble:
    """Make the networks for the training rows, on the device, with heads of zeros.

    Raises
    ------
    ValueError, TypeError
        Where a backbone can't be built, raises, or gives other than rows of finite
        features.
    """
    scales = cast(Scales, tuple(_scale_of(t, problem) for t in problem.tables))
    rows = problem.rows(scales)
    members = [_build_member(estimator, problem, rows) for _ in range(n_members)]
    ensemble = IVEnsemble(scales, members)
    if not ensemble.learns:
        # Beside nothing that is learnt columns are as any features: a ridge is a ridge.
        for member in members:
            member.free_first = torch.zeros_like(member.free_first)
            member.free_second = torch.zeros_like(member.free_second)
    return ensemble


def _build_member(estimator: Any, problem: IVProblem, rows: StageRows) -> IVNetwork:
    # Larger tables are in float64 where nothing is learnt.
    small = problem.dtype == torch.float64 and len(problem.X) <= defaults.FLOAT64_ROWS
    widened = estimator.dtype == "auto" and small
    float64_rows = defaults.FLOAT64_ROWS if widened else None
    parts: list[nn.Module | None] = []
    for (name, backbone), table in zip(
        estimator._backbones(rows).items(),
        (rows.treatment, rows.inputs, rows.exogenous),
        strict=True,
    ):
        part = None
        if table.shape[1] > 0:
            part = _built(name, backbone, table, rows.weight, float64_rows)
        parts.append(part)
    treatment, instrument, covariate = parts
    assert treatment is not None
    assert instrument is not None
    order = None
    plain = isinstance(treatment, nn.Identity) and isinstance(covariate, nn.Identity)
    if plain and estimator.combine == "concatenate":
        columns = problem.columns
        joint = np.concatenate([columns.endogenous, columns.exogenous])
        order = torch.as_tensor(np.argsort(joint)).to(problem.device)
    combiner = Combiner(estimator.combine, order)
    network = IVNetwork(treatment, instrument, covariate, combiner)
    network.add_heads(rows.take(slice(0, 2)))
    return network


def _scale_of(table: NDArray[Any], problem: IVProblem) -> Standardize:
    """Fit the standardisation of some columns, of which there may be none."""
    device, dtype = problem.device, problem.dtype
    if table.shape[1] == 0:
        empty = torch.zeros(0, dtype=dtype)
        return cast(Standardize, Standardize(empty, empty.clone()).to(device))
    batches = TensorBatches(
        table,
        None,
        problem.weight,
        batch_size=1,
        dtype=dtype,
        input_dtype=wide_dtype(device),
        device=device,
    )
    return Standardize.fitted(batches)


def _built(
    parameter: str,
    backbone: Any,
    table: Tensor,
    weight: Tensor | None,
    float64_rows: int | None,
) -> nn.Module:
    """Build one backbone, and see that it gives rows of finite features."""
    backbone = as_backbone(backbone, parameter)
    name = f"{parameter} {describe(backbone)}"
    device, dtype = table.device, table.dtype
    batches = TensorBatches(
        table, None, weight, batch_size=1, dtype=dtype, device=device
    )
    try:
        module = backbone.build(batches)
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} could not be built: {reason}") from error
    module = place(module, device, dtype).eval()
    probe = table[:2].clone()
    given = f"columns of shape {tuple(probe.shape)}"
    features = run_backbone(module, probe, name, given, float64_rows)
    if features.is_complex() or features.ndim != 2 or len(features) != len(probe):
        raise ValueError(
            f"{name} returned {features.dtype} features of shape "
            f"{tuple(features.shape)} for {given}; it must return real ones of shape "
            f"({len(probe)}, n_features)."
        )
    if not features.isfinite().all():
        raise ValueError(
            f"{name} returned features that are not finite for {given}; check its "
            "initial weights."
        )
    return module
