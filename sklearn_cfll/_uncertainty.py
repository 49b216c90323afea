"""Standard deviations, draws and intervals of the regressor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor

from sklearn_cfll._calibration import Calibration
from sklearn_cfll._learnt_errors import LearntErrors

SEEN_NOISE = (
    "no rows were held out in fit, so that standard deviations rest on rows that the "
    "backbone was trained on: they are too small, often many times. Fit with "
    "early_stopping=True or X_val; or take predict_interval after conformalize(X, y) "
    "with rows that fit has not had."
)

SEEN_CHUNK = (
    "the backbone has been trained on all rows of the stream so far, so that standard "
    "deviations rest on rows that it has seen: they are too small. The next call of "
    "partial_fit mends that, as its rows are predicted before they are learnt."
)


class ErrorBars(LearntErrors, Calibration):
    """Standard deviations, draws and intervals of a regression."""

    def leverage(self, X: Any) -> NDArray[np.float64]:
        """Variance of the head's predictions in units of the noise's.

        It is small where training rows are many, and for a training row, whose weight
        is one in the mean, the share by which its prediction follows its own target.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        leverage : array of shape (n_samples,) or (n_samples, n_outputs)
            One for each output where ``alpha_`` is, and on a grid for each point.
        """
        leverage = self._with_leverage(X)[1]
        return leverage[..., 0] if leverage.shape[-1] == 1 else leverage

    def _with_beside(
        self, X: Any, beside: Callable[[Tensor], Tensor]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predict, and compute more from the features of the same pass."""
        both = self._raw_predictions(X, beside)
        outputs, more = np.split(both, [self.n_outputs_], axis=-1)
        return self._targets.decode(outputs), more

    def _with_leverage(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Add leverages (..., 1) or (..., k) to predictions."""

        def leverage(features: Tensor) -> Tensor:
            rows = features.reshape(-1, features.shape[-1])
            each = self._posterior.leverage(rows)
            return each.reshape(*features.shape[:-1], each.shape[1])

        return self._with_beside(X, leverage)

    def _with_deviation(
        self, X: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Add standard deviations, of the same shape, to predictions."""
        predictions, leverage = self._with_leverage(X)
        relative = np.sqrt(1 + self.posterior_scale_ * leverage)
        deviation = relative * np.reshape(self.noise_, -1)
        return predictions, deviation.reshape(predictions.shape)

    def _with_features(self, X: Any) -> tuple[NDArray[np.float64], Tensor]:
        """Add features (n, d) of rows, or of all points of grids, to predictions."""
        predictions, features = self._with_beside(X, lambda features: features)
        return predictions, torch.from_numpy(features.reshape(-1, features.shape[-1]))

    def _with_covariance(
        self, X: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Add covariances (n, n) or (n, n, k), in the units of y, to predictions."""
        if self._targets.n_grid_axes:
            raise ValueError(
                "return_cov=True is not available for targets on a grid, whose points "
                "are too many; take return_std=True, or draws of sample_y."
            )
        predictions, features = self._with_features(X)
        between = self._posterior.covariance(features).numpy()
        relative = self.posterior_scale_ * between + np.eye(len(features))[..., None]
        covariance = relative * np.square(np.reshape(self.noise_, (1, 1, -1)))
        return predictions, covariance.reshape(
            *relative.shape[:2], *self._targets.shape
        )

    def _warn_of_seen_noise(self) -> None:
        """Warn the caller's caller where the noise is that of rows seen in training."""
        if self._noise_is_seen:
            text = SEEN_CHUNK if self._sums.streamed else SEEN_NOISE
            warnings.warn(text, UserWarning, stacklevel=3)

    def sample_y(
        self, X: Any, n_samples: int = 1, random_state: Any = 0
    ) -> NDArray[np.float64]:
        """Draw targets from the predictive distribution.

        Each draw is a head from its posterior, the same for all rows, and noise. It
        has the mean and the covariance that :meth:`predict` gives.

        Parameters
        ----------
        X : array-like of shape (n_rows, n_features) or (n_rows, ...)
        n_samples : int, default=1
            Draws for each row.
        random_state : int, RandomState or None, default=0

        Returns
        -------
        y : array of shape (n_rows, n_samples) or (n_rows, n_outputs, n_samples)
            In the units of y.
        """
        predictions, features = self._with_features(X)
        self._warn_of_seen_noise()
        random = check_random_state(random_state)
        shape = (features.shape[1] + 1, self.n_outputs_, n_samples)
        normal = torch.from_numpy(random.standard_normal(shape))
        heads = self._posterior.deviations(features, normal).numpy()
        rows = random.standard_normal(heads.shape)
        noise = np.reshape(self.noise_, (1, -1, 1))
        deviations = noise * (np.sqrt(self.posterior_scale_) * heads + rows)
        return predictions[..., None] + deviations.reshape(*predictions.shape, -1)

    # Intervals ------------------------------------------------------------------

    def _scores_of(self, X: Any, y: Any) -> NDArray[np.float64]:
        predictions, deviation = self._with_deviation(X)
        scores = np.abs(self._read_labelled(predictions, y) - predictions) / deviation
        by_point: NDArray[np.float64] = scores.reshape(len(scores), -1, self.n_outputs_)
        return by_point.max(1)

    def predict_interval(
        self, X: Any, coverage: float = 0.9, *, groups: Any = None
    ) -> NDArray[np.float64]:
        """Predict intervals that hold the target with a given probability.

        Split-conformal intervals: the prediction plus and minus a multiple of its
        standard deviation, which is a quantile of such multiples on the rows that were
        held out in fit, or on those of :meth:`conformalize`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        coverage : float, default=0.9
            Probability for each output by itself.
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, where :meth:`conformalize` was given such.

        Returns
        -------
        intervals : array of shape (n_samples, 2) or (n_samples, n_outputs, 2)
            Lower and upper ends, in the units of y. On a grid they are a band, which
            holds an output's whole field with this probability.

        Raises
        ------
        ValueError
            Where no rows were held out, or too few for the coverage: n rows are enough
            for ``n / (n + 1)``.

        Notes
        -----
        On rows that are exchangeable with the calibration rows the coverage is at least
        the one asked for, whatever the model, on average over calibration sets and
        rows; not for each row or region. With the rows that were held out in fit it is
        so only nearly, as these have also chosen the epoch and ``alpha`` and fitted the
        noise: errors on them are a little small. With :meth:`conformalize` on fresh
        rows it is exact. Rows count alike, whatever their weights. Of many calibration
        rows the quantiles of whole per cents are kept, and a few more: other coverages
        are rounded up.

        References
        ----------
        Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-Free Predictive
        Inference for Regression", JASA 113, 2018, sections 2.2 and 5.2.
        """
        return self._intervals(X, [coverage], groups)[0]

    def _intervals(
        self, X: Any, coverages: Iterable[float], groups: Any
    ) -> list[NDArray[np.float64]]:
        """Give the intervals of several coverages from one pass."""
        predictions, deviation = self._with_deviation(X)
        shape = (-1, *[1] * self._targets.n_grid_axes, *self._targets.shape)
        limits = (self._limits(c, predictions, groups) for c in coverages)
        rounding = self._rounding * np.reshape(self._targets.scale, shape[1:])
        rounding = rounding + 8 * np.spacing(np.abs(predictions))
        halves = [limit.reshape(shape) * deviation + rounding for limit in limits]
        return [np.stack([predictions - h, predictions + h], axis=-1) for h in halves]
