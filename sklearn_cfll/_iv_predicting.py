"""What a fitted instrumental variable regressor computes from rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from sklearn_cfll._device import device_or_cpu
from sklearn_cfll._iv_columns import Columns, read_instruments_again
from sklearn_cfll._iv_network import IVNetwork
from sklearn_cfll._iv_parameters import IVParameters
from sklearn_cfll._iv_problem import split_tables, stage_rows
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._targets import StandardisedTargets
from sklearn_cfll.chunks import chunk_slices
from sklearn_cfll.functional.instrument import HeadCovariance
from sklearn_cfll.functional.projections import projected_share


class IVPredicting(ClassNamePrefixFeaturesOutMixin, TransformerMixin, IVParameters):
    """Predictions, features and scores of the networks that were trained."""

    network_: IVNetwork
    _columns: Columns
    _targets: StandardisedTargets
    _head_mean: Tensor
    _head_covariance: Tensor
    _dtype: torch.dtype

    # Rows -----------------------------------------------------------------------

    def _read_columns(self, X: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check X; give its endogenous and exogenous columns."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        treatment, exogenous, _ = split_tables(self._columns, X, None)
        return treatment, exogenous

    def _rows_of(self, X: Any, y: Any, instruments: Any, weight: Any) -> StageRows:
        """Check further rows, and put them on the network's device."""
        treatment, exogenous = self._read_columns(X)
        Z = read_instruments_again(self, self._columns, instruments, len(treatment))
        tables = treatment, exogenous, Z[:, self._columns.instruments]
        encoded = None if y is None else self._targets.encode(y)
        if weight is not None:
            weight = weight / weight.max()
            weight = weight / weight.mean()
        return stage_rows(self.network_.scales, tables, self._dtype, encoded, weight)

    @torch.inference_mode()
    def _in_chunks(
        self, treatment: NDArray[Any], exogenous: NDArray[Any]
    ) -> Iterator[Tensor]:
        """Yield stage-2 features of rows, at the actual treatment."""
        network = self.network_.eval()
        scales = network.scales
        device = network.second.weight.device
        for part in chunk_slices(len(treatment), max(1, network.n_numbers), device):
            empty = treatment[part, :0]
            tables = treatment[part], exogenous[part], empty
            rows = stage_rows(scales, tables, self._dtype)
            yield network.structural_features(rows.treatment, rows.exogenous)

    def _structural(
        self, treatment: NDArray[Any], exogenous: NDArray[Any], with_deviation: bool
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Structural predictions, and their standard errors, in the units of y."""
        covariance = HeadCovariance(self._head_mean, self._head_covariance)
        outputs, deviations = [], []
        for features in self._in_chunks(treatment, exogenous):
            outputs.append(self.network_.second(features).cpu().numpy())
            if with_deviation:
                deviations.append(covariance.deviation(features).cpu().numpy())
        f = self._targets.decode(np.concatenate(outputs).astype(np.float64))
        if not np.isfinite(f).all():
            raise ValueError(
                "predictions are not finite; X holds values far outside of those in "
                "the training rows."
            )
        if not with_deviation:
            return f, None
        return f, np.concatenate(deviations) * float(self._targets.scale[0])

    def transform(self, X: Any) -> NDArray[Any]:
        """Compute stage 2's features, at the actual treatment.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        features : array of shape (n_samples, d)
            What :meth:`predict` multiplies by ``coef_``; where the model is linear in
            the columns, the columns of X.
        """
        treatment, exogenous = self._read_columns(X)
        parts = [part.cpu().numpy() for part in self._in_chunks(treatment, exogenous)]
        shift, unit = self._feature_units()
        return np.concatenate(parts) * unit + shift

    @property
    def _n_features_out(self) -> int:
        return len(self.coef_)

    @torch.inference_mode()
    def _projected_score(
        self, X: Any, y: Any, f: Any, instruments: Any, weight: Any
    ) -> float:
        """Score by what the instruments predict of the residuals."""
        rows = self._rows_of(X, None, instruments, weight)
        network = self.network_.eval()
        parts = [
            network.instrument(part.inputs) for part in rows.chunks(network.n_numbers)
        ]
        features = torch.cat(parts).cpu()
        mean = np.average(y, weights=weight)
        scale = float(self._targets.scale[0])
        residuals, centred = (torch.as_tensor(v / scale) for v in (y - f, y - mean))
        own = None if rows.weight is None else rows.weight.cpu()
        return 1.0 - projected_share(residuals, centred, features, own)

    # Columns ----------------------------------------------------------------

    @property
    def _is_linear(self) -> bool:
        """Whether stage 2's features are the columns of X, in X's order."""
        network = self.network_
        if not isinstance(network.treatment, nn.Identity):
            return False
        return network.covariate is None or network.order is not None

    def _feature_units(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Shift and scale that standardised the features, where they are columns."""
        network, columns = self.network_, self._columns
        if not self._is_linear:
            size = len(network.second.weight)
            return np.zeros(size), np.ones(size)
        size = len(columns.endogenous) + len(columns.exogenous)
        shift, unit = np.zeros(size), np.ones(size)
        for index, scale in (
            (columns.endogenous, network.treatment_scale),
            (columns.exogenous, network.exogenous_scale),
        ):
            shift[index] = scale.mean.cpu().numpy()
            unit[index] = scale.scale.cpu().numpy()
        return shift, unit

    @property
    def _names(self) -> dict[str, list[str]]:
        """Names of the columns by their role."""
        columns = self._columns
        names = vars(self).get("feature_names_in_")
        if names is None:
            names = [f"x{i}" for i in range(self.n_features_in_)]
        own = [str(name) for name in names]
        return {
            "columns": own,
            "endogenous": [own[i] for i in columns.endogenous],
            "exogenous": [own[i] for i in columns.exogenous],
            "instruments": [columns.name_of_instrument(i) for i in columns.instruments],
        }

    # State ----------------------------------------------------------------------

    @property
    def backbone_(self) -> nn.Module:
        """The trained treatment network, of standardised columns."""
        check_is_fitted(self)
        return self.network_.treatment

    @property
    def instrument_backbone_(self) -> nn.Module:
        """The trained instrument network."""
        check_is_fitted(self)
        return self.network_.instrument

    @property
    def covariate_backbone_(self) -> nn.Module | None:
        """The trained covariate network, where there are exogenous columns."""
        check_is_fitted(self)
        return self.network_.covariate

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _move_to(self, device: torch.device) -> None:
        """Move what was fitted to a device."""
        self.network_.to(device)
        self._head_mean = self._head_mean.to(device)
        self._head_covariance = self._head_covariance.to(device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "network_"):
            # What was trained on a device that isn't there goes on on the CPU.
            self._move_to(device_or_cpu(self.device))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags
