"""The three networks of both stages, and their heads, as one module."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sklearn_cfll._build import _describe
from sklearn_cfll._device import place
from sklearn_cfll._iv_problem import IVProblem
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._validation import as_backbone
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.instrument import combine_features
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.layers import Standardize
from sklearn_cfll.optimizers import has_learnable_parameters

# Of the endogenous columns, the exogenous ones, and the instruments.
Scales = tuple[Standardize, Standardize, Standardize]


class StageFeatures(NamedTuple):
    """Features of some rows.

    Attributes
    ----------
    treatment, instrument : Tensor of shape (n, ...)
    covariate : Tensor of shape (n, ...) or None
    """

    treatment: Tensor
    instrument: Tensor
    covariate: Tensor | None


class IVNetwork(nn.Module):
    """Treatment, instrument and covariate networks, and the heads of both stages.

    Parameters
    ----------
    scales : tuple of three Standardize
        Of the endogenous columns, the exogenous ones, and the instruments.
    treatment, instrument : torch.nn.Module
    covariate : torch.nn.Module or None
        None where there are no exogenous columns.
    combine : {"product", "concatenate"}
    order : Tensor of shape (d,) or None
        Where the stage-2 features are X's columns: their order in X.

    Attributes
    ----------
    first : ClosedFormHead
        Stage 1: instrument features to treatment features.
    columns : ClosedFormHead
        Instrument features to the endogenous columns themselves, for diagnostics.
    second : ClosedFormHead
        Stage 2: its features to the target.
    """

    order: Tensor | None

    def __init__(
        self,
        scales: Scales,
        treatment: nn.Module,
        instrument: nn.Module,
        covariate: nn.Module | None,
        combine: str,
        order: Tensor | None,
    ) -> None:
        super().__init__()
        self.treatment_scale, self.exogenous_scale, self.instrument_scale = scales
        self.treatment = treatment
        self.instrument = instrument
        self.covariate = covariate
        self.combine = combine
        self.register_buffer("order", order)

    def add_heads(self, probe: StageRows) -> None:
        """Make heads of zeros, of the sizes that a few rows' features show."""
        with torch.no_grad():
            features = self.features(probe)
            combined = self.combined(features.treatment, features.covariate)
        n_instrument = features.instrument.shape[1]
        wide = wide_dtype(probe.treatment.device)

        def head(n_features: int, n_outputs: int) -> ClosedFormHead:
            made = ClosedFormHead(n_features, n_outputs, dtype=wide)
            return made.to(probe.treatment.device)

        self.first = head(n_instrument, features.treatment.shape[1])
        self.columns = head(n_instrument, probe.treatment.shape[1])
        self.second = head(combined.shape[1], 1)

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return has_learnable_parameters(self)

    @property
    def learns_instruments(self) -> bool:
        """Whether the instrument network is trained."""
        return has_learnable_parameters(self.instrument)

    @property
    def n_numbers(self) -> int:
        """Features of a row, in all of the stages."""
        return sum(sum(head.weight.shape) for head in (self.first, self.second))

    def features(self, rows: StageRows) -> StageFeatures:
        """Compute the features of all three networks."""
        return StageFeatures(
            self.treatment(rows.treatment),
            self.instrument(rows.inputs),
            self.covariates(rows.exogenous),
        )

    @property
    def scales(self) -> Scales:
        """Standardisation of the endogenous, the exogenous columns, the instruments."""
        return self.treatment_scale, self.exogenous_scale, self.instrument_scale

    def covariates(self, exogenous: Tensor) -> Tensor | None:
        """Features of the exogenous columns, where there are any."""
        return None if self.covariate is None else self.covariate(exogenous)

    def combined(self, treatment: Tensor, covariate: Tensor | None) -> Tensor:
        """Stage-2 features, in the dtype of the treatment features given."""
        if covariate is not None:
            covariate = covariate.to(treatment.dtype)
        features = combine_features(treatment, covariate, self.combine)
        return features if self.order is None else features[:, self.order]

    def structural_features(self, treatment: Tensor, exogenous: Tensor) -> Tensor:
        """Stage-2 features (n, d) at the actual treatment, in the heads' dtype."""
        wide = self.second.weight.dtype
        return self.combined(
            self.treatment(treatment).to(wide), self.covariates(exogenous)
        )

    def predicted_features(self, features: StageFeatures) -> Tensor:
        """Stage-2 features (n, d) with the treatment as stage 1 predicts it."""
        predicted = self.first(features.instrument.to(self.first.weight.dtype))
        return self.combined(predicted, features.covariate)


def build_network(estimator: Any, problem: IVProblem) -> IVNetwork:
    """Make the networks for the training rows, on the device, with heads of zeros.

    Raises
    ------
    ValueError, TypeError
        Where a backbone can't be built, raises, or gives other than rows of finite
        features.
    """
    device, dtype = problem.device, problem.dtype
    tables = problem.tables(problem.train)
    weight = problem.weights_of(problem.train)
    scales = cast(
        Scales, tuple(_scale_of(table, weight, device, dtype) for table in tables)
    )
    rows = problem.rows(scales, problem.train)
    parts: list[nn.Module | None] = []
    for (name, backbone), table in zip(
        estimator._backbones(rows).items(),
        (rows.treatment, rows.inputs, rows.exogenous),
        strict=True,
    ):
        present = table.shape[1] > 0
        parts.append(_built(name, backbone, table, rows.weight) if present else None)
    treatment, instrument, covariate = parts
    order = None
    plain = isinstance(treatment, nn.Identity) and isinstance(covariate, nn.Identity)
    if plain and estimator.combine == "concatenate":
        columns = problem.columns
        joint = np.concatenate([columns.endogenous, columns.exogenous])
        order = torch.as_tensor(np.argsort(joint)).to(device)
    assert treatment is not None
    assert instrument is not None
    network = IVNetwork(
        scales, treatment, instrument, covariate, estimator.combine, order
    )
    network.add_heads(rows.take(slice(0, 2)))
    return network


def _scale_of(
    table: NDArray[Any], weight: Any, device: torch.device, dtype: torch.dtype
) -> Standardize:
    """Fit the standardisation of some columns, of which there may be none."""
    if table.shape[1] == 0:
        empty = torch.zeros(0, dtype=dtype)
        return cast(Standardize, Standardize(empty, empty.clone()).to(device))
    batches = TensorBatches(
        table,
        None,
        weight,
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
) -> nn.Module:
    """Build one backbone, and see that it gives rows of finite features."""
    backbone = as_backbone(backbone)
    name = f"{parameter} {_describe(backbone)}"
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
    probe = table[:2]
    given = f"columns of shape {tuple(probe.shape)}"
    try:
        with torch.no_grad():
            features = module(probe)
    except Exception as error:
        raise ValueError(
            f"{name} raised {type(error).__name__} for {given}: {error}"
        ) from error
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{name} returned a {type(features).__name__} for {given}; it must return "
            "one tensor of features, (n_samples, n_features)."
        )
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
