"""Targets of the regressor: what they may be, and how rows weigh by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._grids import relative_weights
from sklearn_cfll._numbers import IN_Y, numbers_wanted
from sklearn_cfll._targets import StandardisedTargets


@contextmanager
def _naming_missing_targets() -> Iterator[None]:
    """Say what to do about missing targets."""
    try:
        yield
    except ValueError as error:
        if "contains NaN" not in str(error):
            raise
        raise ValueError(
            f"{error} Leave its rows out, or fit with missing_targets='ignore', by "
            "which each output learns from the rows that have it."
        ) from error


class RegressionTargets(BaseCFLL):
    """Reads numbers, on grids too, and encodes them."""

    missing_targets: str
    sample_norm: str | None
    _kind_of_targets = StandardisedTargets

    def _read_targets(self, y: Any) -> NDArray[Any]:
        finite: Any = True if self.missing_targets == "error" else "allow-nan"
        with numbers_wanted("y", y, IN_Y), _naming_missing_targets():
            y = check_array(
                y,
                ensure_2d=False,
                allow_nd=True,
                dtype=np.float64,
                ensure_all_finite=finite,
                input_name="y",
                estimator=self,
            )
        return y

    def _read_weights(
        self, sample_weight: Any, X: Any, y: NDArray[Any], *, reset: bool
    ) -> Any:
        weight = super()._read_weights(sample_weight, X, y, reset=reset)
        absent = np.isnan(y).reshape(len(y), -1).all(1)
        if absent.any():
            weight = np.where(absent, 0.0, 1.0 if weight is None else weight)
            if not weight.any():
                where = "" if absent.all() else " in a row that has weight"
                raise ValueError(
                    f"y holds no known target{where}; pass rows that have one."
                )
        if self.sample_norm is None:
            return weight
        # Rows that come later are weighed as those of fit are.
        unit = None if reset else vars(self).get("_norm_unit")
        weight, self._norm_unit = relative_weights(y, weight, unit)
        return weight

    @property
    def _weights_are_relative(self) -> bool:
        return self.sample_norm is not None

    def _learn_targets(self, y: NDArray[Any], weight: NDArray[Any] | None) -> None:
        self._learn_grid(y, weight, 0)

    def _learn_grid(
        self, y: NDArray[Any], weight: NDArray[Any] | None, n_grid_axes: int
    ) -> None:
        """Learn how to encode y, on a grid of so many axes."""
        if n_grid_axes:
            self._refuse_on_grid(y)
        self._targets = StandardisedTargets.fitted(
            y,
            weight,
            n_grid_axes=n_grid_axes,
            shared_scale=self._weights_are_relative,
        )
        self.n_outputs_ = self._targets.n_outputs

    def _refuse_on_grid(self, y: NDArray[Any]) -> None:
        if self.store_loo:
            raise ValueError(
                "store_loo=True is not available for targets on a grid, whose points "
                "resemble each other; leave it out, and hold samples out instead "
                "(early_stopping=True or X_val)."
            )
        if np.isnan(y).any():
            raise ValueError(
                "y holds not-a-number, which missing_targets='ignore' does not take "
                "for targets on a grid; leave out the samples, or fill the points."
            )
