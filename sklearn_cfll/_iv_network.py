"""The networks of both stages, and their heads, as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sklearn_cfll._iv_problem import Scales
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.instrument import combine_features
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.optimizers import has_learnable_parameters
from sklearn_cfll.small_mlp import WithColumns


class StageFeatures(NamedTuple):
    """Features of some rows.

    Attributes
    ----------
    treatment, instrument : Tensor of shape (..., n, d)
    covariate : Tensor of shape (..., n, d) or None
    """

    treatment: Tensor
    instrument: Tensor
    covariate: Tensor | None


class Combiner(nn.Module):
    """Makes stage 2's features of those of the treatment and the covariates.

    Parameters
    ----------
    combine : {"product", "concatenate"}
    order : Tensor of shape (d,) or None
        Where the stage-2 features are X's columns: their order in X.
    """

    order: Tensor | None

    def __init__(self, combine: str, order: Tensor | None) -> None:
        super().__init__()
        self.combine = combine
        self.register_buffer("order", order)

    def forward(self, treatment: Tensor, covariate: Tensor | None) -> Tensor:
        """Combine (..., n, p) and (..., n, r), in the dtype of the first."""
        if covariate is not None:
            covariate = covariate.to(treatment.dtype)
        features = combine_features(treatment, covariate, self.combine)
        return features if self.order is None else features[..., self.order]


class IVNetwork(nn.Module):
    """Treatment, instrument and covariate networks, and the heads of both stages.

    Parameters
    ----------
    treatment, instrument : torch.nn.Module
    covariate : torch.nn.Module or None
        None where there are no exogenous columns.
    combiner : Combiner

    Attributes
    ----------
    first : ClosedFormHead
        Stage 1: instrument features to treatment features.
    columns : ClosedFormHead
        Instrument features to the endogenous columns themselves, for diagnostics.
    second : ClosedFormHead
        Stage 2: its features to the target.
    plain : ClosedFormHead
        The fit without instruments: stage 2's features to the target, solved at the
        actual treatment.
    free_first, free_second : bool Tensor of shape (d,)
        Instrument features and stage-2 features that are columns, beside others that
        are learnt: the final ridges all but spare them.
    treatment_columns : bool Tensor of shape (p,)
        Treatment features that are columns.
    """

    first: ClosedFormHead
    columns: ClosedFormHead
    second: ClosedFormHead
    plain: ClosedFormHead
    free_first: Tensor
    free_second: Tensor
    treatment_columns: Tensor

    def __init__(
        self,
        treatment: nn.Module,
        instrument: nn.Module,
        covariate: nn.Module | None,
        combiner: Combiner,
    ) -> None:
        super().__init__()
        self.treatment = treatment
        self.instrument = instrument
        self.covariate = covariate
        self.combiner = combiner

    @torch.no_grad()
    def add_heads(self, probe: StageRows) -> None:
        """Make heads of zeros, of the sizes that a few rows' features show."""
        features = self.features(probe)
        n_instrument = features.instrument.shape[1]
        n_combined = self.actual(features).shape[1]
        device = probe.treatment.device
        wide = wide_dtype(device)
        sizes = {
            "first": (n_instrument, features.treatment.shape[1]),
            "columns": (n_instrument, probe.treatment.shape[1]),
            "second": (n_combined, 1),
            "plain": (n_combined, 1),
        }
        for name, size in sizes.items():
            self.add_module(name, ClosedFormHead(*size, dtype=wide).to(device))
        free = torch.zeros(n_combined, dtype=torch.bool, device=device)
        own = _columns_among(self.treatment, probe.treatment, features.treatment)
        self.register_buffer("treatment_columns", own)
        free[: len(own)] = own
        if self.covariate is not None and features.covariate is not None:
            other = _columns_among(self.covariate, probe.exogenous, features.covariate)
            free[len(own) : len(own) + len(other)] = other
        order = self.combiner.order
        self.register_buffer("free_second", free if order is None else free[order])
        own = _columns_among(self.instrument, probe.inputs, features.instrument)
        self.register_buffer("free_first", own)

    def _combined(self, treatment: Tensor, covariate: Tensor | None) -> Tensor:
        features: Tensor = self.combiner(treatment, covariate)
        return features

    # Networks get copies of the rows, since they may write to their input.

    def features(self, rows: StageRows) -> StageFeatures:
        """Compute the features of all three networks."""
        return StageFeatures(
            self.treatment(rows.treatment.clone()),
            self.of_instruments(rows),
            self._of_covariates(rows),
        )

    def of_instruments(self, rows: StageRows) -> Tensor:
        """Compute stage 1's features."""
        features: Tensor = self.instrument(rows.inputs.clone())
        return features

    def _of_covariates(self, rows: StageRows) -> Tensor | None:
        return (
            None if self.covariate is None else self.covariate(rows.exogenous.clone())
        )

    def actual(self, features: StageFeatures) -> Tensor:
        """Stage-2 features (n, d) at the actual treatment, in the heads' dtype."""
        wide = wide_dtype(features.treatment.device)
        return self._combined(features.treatment.to(wide), features.covariate)

    def predicted(self, features: StageFeatures) -> Tensor:
        """Stage-2 features (n, d) with the treatment as stage 1 predicts it."""
        predicted = self.first(features.instrument.to(self.first.weight.dtype))
        return self._combined(predicted, features.covariate)

    def structural(self, rows: StageRows) -> Tensor:
        """Stage-2 features of rows at the actual treatment; no instruments are used."""
        treatment = self.treatment(rows.treatment.clone()).to(self.second.weight.dtype)
        return self._combined(treatment, self._of_covariates(rows))


class IVEnsemble(nn.Module):
    """Members that each have networks and heads of their own.

    Parameters
    ----------
    scales : tuple of three Standardize
        Of the endogenous columns, the exogenous ones, and the instruments.
    members : sequence of IVNetwork
    """

    def __init__(self, scales: Scales, members: Sequence[IVNetwork]) -> None:
        super().__init__()
        self.treatment_scale, self.exogenous_scale, self.instrument_scale = scales
        self.members = nn.ModuleList(members)

    @property
    def networks(self) -> list[IVNetwork]:
        """The members."""
        return cast(list[IVNetwork], list(self.members))

    @property
    def scales(self) -> Scales:
        """Standardisation of the endogenous, the exogenous columns, the instruments."""
        return self.treatment_scale, self.exogenous_scale, self.instrument_scale

    @property
    def combiner(self) -> Combiner:
        """What makes stage 2's features, in all members."""
        return self.networks[0].combiner

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return has_learnable_parameters(self)

    @property
    def learns_instruments(self) -> bool:
        """Whether the instrument networks are trained."""
        return has_learnable_parameters(self.networks[0].instrument)

    @property
    def n_numbers(self) -> int:
        """Features of a row in all of a member's stages."""
        network = self.networks[0]
        return sum(sum(head.weight.shape) for head in (network.first, network.second))


def _columns_among(module: nn.Module, table: Tensor, features: Tensor) -> Tensor:
    """Mark the features that are a module's columns: those it appends, or all."""
    marks = torch.zeros(features.shape[1], dtype=torch.bool, device=features.device)
    if isinstance(module, nn.Identity):
        marks[:] = True
    if isinstance(module, WithColumns):
        marks[-table.shape[1] :] = True
    return marks
