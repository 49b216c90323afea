"""What a fitted instrumental variable regressor computes from rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from sklearn_cfll._device import device_or_cpu, own_settings
from sklearn_cfll._iv_columns import Columns
from sklearn_cfll._iv_instruments import read_instruments_again, warn_of_other_rows
from sklearn_cfll._iv_network import IVEnsemble
from sklearn_cfll._iv_parameters import IVParameters
from sklearn_cfll._iv_problem import mean_one, split_tables, stage_rows
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._numbers import IN_X, numbers_wanted, refuse_not_finite
from sklearn_cfll._targets import StandardisedTargets
from sklearn_cfll._validation import weighed_rows
from sklearn_cfll.chunks import chunk_slices
from sklearn_cfll.functional.projections import projected_sums
from sklearn_cfll.functional.sandwich import HeadCovariance


class IVPredicting(ClassNamePrefixFeaturesOutMixin, TransformerMixin, IVParameters):
    """Predictions, features and scores of the networks that were trained."""

    network_: IVEnsemble
    _columns: Columns
    _targets: StandardisedTargets
    _head_mean: Tensor
    _head_covariance: Tensor
    _dtype: torch.dtype

    # Rows -----------------------------------------------------------------------

    def _read_columns(self, X: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Check X; give its endogenous and exogenous columns."""
        check_is_fitted(self)
        with numbers_wanted("X", X, IN_X):
            X = validate_data(self, X, dtype=np.float64, reset=False)
        treatment, exogenous, _ = split_tables(self._columns, X, None)
        return treatment, exogenous

    def _rows_of(self, X: Any, y: Any, instruments: Any, weight: Any) -> StageRows:
        """Check further rows, and put them on the network's device."""
        treatment, exogenous = self._read_columns(X)
        Z = read_instruments_again(self, self._columns, instruments, len(treatment))
        warn_of_other_rows(X, instruments)
        tables = treatment, exogenous, Z[:, self._columns.instruments]
        encoded = None if y is None else self._targets.encode(y)
        if weight is not None:
            weight, _ = mean_one(weight)
        return stage_rows(self.network_.scales, tables, self._dtype, encoded, weight)

    @torch.inference_mode()
    def _in_chunks(
        self, treatment: NDArray[Any], exogenous: NDArray[Any]
    ) -> Iterator[Tensor]:
        """Yield stage-2 features (n_members, n, d), at the actual treatment."""
        ensemble = self.network_.eval()
        networks, device = ensemble.networks, self._head_mean.device
        numbers = ensemble.n_numbers * len(networks)
        for part in chunk_slices(len(treatment), numbers, device):
            tables = treatment[part], exogenous[part], treatment[part, :0]
            rows = stage_rows(ensemble.scales, tables, self._dtype)
            yield torch.stack([network.structural(rows) for network in networks])

    @own_settings()
    def _structural(
        self, treatment: NDArray[Any], exogenous: NDArray[Any], with_deviation: bool
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Structural predictions, and their standard errors, in the units of y."""
        covariance = HeadCovariance(self._head_mean, self._head_covariance)
        networks = self.network_.networks
        outputs, deviations = [], []
        for features in self._in_chunks(treatment, exogenous):
            pairs = zip(networks, features, strict=True)
            own = torch.stack([network.second(part) for network, part in pairs])
            outputs.append(own.mean(0).cpu().numpy())
            if with_deviation:
                deviations.append(covariance.deviation(features).cpu().numpy())
        f = self._targets.decode(np.concatenate(outputs).astype(np.float64))
        refuse_not_finite(f)
        if not with_deviation:
            return f, None
        return f, np.concatenate(deviations) * float(self._targets.scale[0])

    @own_settings()
    def transform(self, X: Any) -> NDArray[Any]:
        """Compute stage 2's features, at the actual treatment.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        features : array of shape (n_samples, d)
            What :meth:`predict` multiplies by ``coef_``: those of each member; where
            the model is linear in the columns, the columns of X.
        """
        treatment, exogenous = self._read_columns(X)
        chosen = slice(0, 1 if self._is_linear else None)
        parts = [
            part[chosen].transpose(0, 1).flatten(1).cpu().numpy()
            for part in self._in_chunks(treatment, exogenous)
        ]
        shift, unit = self._feature_units()
        return np.concatenate(parts) * unit + shift

    @property
    def _n_features_out(self) -> int:
        return len(self.coef_)

    @own_settings()
    @torch.inference_mode()
    def _projected_score(
        self, X: Any, y: Any, f: Any, instruments: Any, weight: Any
    ) -> float:
        """Score by what the instruments predict of the residuals."""
        X, y, f, instruments, weight = weighed_rows(X, y, f, instruments, weight)
        rows = self._rows_of(X, None, instruments, weight)
        mean = np.average(y, weights=weight)
        scale = float(self._targets.scale[0])
        residuals, centred = (torch.as_tensor(v / scale) for v in (y - f, y - mean))
        own = None if rows.weight is None else rows.weight.cpu()
        sums = [torch.zeros(2, dtype=torch.float64)]
        for network in self.network_.eval().networks:
            numbers = len(network.first.weight)
            parts = [network.of_instruments(p) for p in rows.chunks(numbers)]
            features = torch.cat(parts).cpu()
            refuse_few_rows(*features.shape)
            sums.append(projected_sums(residuals, centred, features, own))
        left, whole = torch.stack(sums).sum(0).tolist()
        if not whole > 0:
            warnings.warn(
                "the score is not defined: the instruments predict nothing of y on "
                "these rows; pass more of them.",
                UndefinedMetricWarning,
                stacklevel=5,  # two decorators' frames are between this and score
            )
            return float("nan")
        return 1.0 - left / whole

    # Columns ----------------------------------------------------------------

    @property
    def _is_linear(self) -> bool:
        """Whether stage 2's features are the columns of X, in X's order."""
        network = self.network_.networks[0]
        if not isinstance(network.treatment, nn.Identity):
            return False
        return network.covariate is None or network.combiner.order is not None

    def _feature_units(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Shift and scale that standardised the features, where they are columns."""
        ensemble, columns = self.network_, self._columns
        if not self._is_linear:
            size = sum(len(network.second.weight) for network in ensemble.networks)
            return np.zeros(size), np.ones(size)
        size = len(columns.endogenous) + len(columns.exogenous)
        shift, unit = np.zeros(size), np.ones(size)
        for index, scale in (
            (columns.endogenous, ensemble.treatment_scale),
            (columns.exogenous, ensemble.exogenous_scale),
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


def refuse_few_rows(n_rows: int, n_features: int) -> None:
    """Refuse a score on rows that instrument features could tell apart one by one."""
    if n_rows <= n_features + 1:
        raise ValueError(
            f"X has {n_rows} rows, but the instrument network has {n_features} "
            "features and there is a constant, which predict any y on so few; pass "
            "more rows, or fit with an instrument_backbone of fewer features."
        )
