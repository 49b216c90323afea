"""What the regressor's exact head knows of its own errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._conformal import ConformalScores, scores_or_error
from sklearn_cfll._final import stream
from sklearn_cfll._problem import Problem
from sklearn_cfll._unseen import UnseenRows, left_out, rows_weight, unseen_rows
from sklearn_cfll._validation import read_X
from sklearn_cfll.functional.paths import AnyPath, path_of
from sklearn_cfll.functional.posterior import (
    HeadPosterior,
    effective_dof,
    fit_noise,
    log_evidence,
    noise_left,
    weight_sums,
)
from sklearn_cfll.net import CFLLNet

# Rows whose features are in memory at once.
_SLICE = 8_192


class ErrorBars(BaseCFLL):
    """Standard deviations, intervals, and leave-one-out of a regression."""

    _conformal: ConformalScores | None

    # Learning -------------------------------------------------------------------

    def _learn_errors(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        """Fit the noise to rows that were left out, and keep the head's posterior."""
        alpha = torch.as_tensor(self.alpha_, dtype=torch.float64)
        self._posterior = HeadPosterior.of(path, alpha)
        rows = unseen_rows(net, problem, path, alpha, self._posterior)
        variance, self.posterior_scale_ = fit_noise(
            rows.residual, rows.leverage, rows.weight
        )
        self._conformal = self._scores(rows, variance) if rows.held_out else None
        self._describe_errors(path, alpha, variance)
        for name in {"loo_predictions_", "loo_score_"} & set(vars(self)):
            delattr(self, name)  # of an earlier fit
        if self.store_loo:
            self._leave_one_out(net, problem, path, alpha)

    def _describe_errors(self, path: AnyPath, alpha: Tensor, variance: Tensor) -> None:
        """Set what the path and the noise's variance (k,) tell."""
        scale = self._targets.scale
        self.noise_ = self._shaped(variance.sqrt().numpy() * scale)
        self.effective_dof_ = self._shaped(effective_dof(path, alpha).cpu().numpy())
        density = log_evidence(path, alpha, variance).cpu().numpy()
        n_contrasts = weight_sums(path).cpu().numpy() - 1
        self.log_evidence_ = self._shaped(density - n_contrasts * np.log(scale))

    def _update_errors(self, net: CFLLNet, path: AnyPath) -> None:
        """Bring the posterior up to date, once the head has moved with its sums.

        The noise is that of fit, or in a stream that had none the one that the rows'
        errors leave after the head's degrees of freedom.
        """
        sums = self._sums
        if sums.per_row is not sums.moments:
            path = path_of(sums.per_row)
        alpha = torch.as_tensor(self.alpha_, dtype=torch.float64)
        self._posterior = HeadPosterior.of(path, alpha)
        if sums.streamed:
            head = net.module_.head
            self.posterior_scale_ = 1.0
            variance = noise_left(path, alpha, head.weight.cpu(), head.bias.cpu())
        else:
            noise = np.reshape(self.noise_, -1) / self._targets.scale
            variance = torch.as_tensor(noise).square()
        self._describe_errors(path, alpha, variance)
        if sums.stale or sums.aged:
            del self.log_evidence_  # which is of rows, not of what is left of them

    def _scores(self, rows: UnseenRows, variance: Tensor) -> ConformalScores:
        """Errors of held-out rows in units of their standard deviations."""
        spread = variance * (1 + self.posterior_scale_ * rows.leverage)
        scores = rows.residual.abs() / spread.sqrt()
        scores[rows.weight.reshape(len(scores), -1).expand_as(scores) == 0] = np.nan
        return ConformalScores.of(scores.numpy())

    def _leave_one_out(
        self, net: CFLLNet, problem: Problem, path: AnyPath, alpha: Tensor
    ) -> None:
        """Predict each training row by the head that is solved without it."""
        rows = problem.train
        parts = []
        with torch.no_grad():
            for features, targets, weight in stream(net, problem.batches):
                weight = rows_weight(weight, targets)
                residual = left_out(
                    net, problem, path, alpha, (features, targets, weight)
                )
                parts.append((targets.to(residual) - residual).cpu())
        predictions = self._targets.decode(torch.cat(parts).numpy())
        self.loo_score_ = float("nan")
        if len(predictions) > 1:
            self.loo_score_ = float(
                r2_score(
                    rows.chosen(rows.y),
                    predictions,
                    sample_weight=rows.chosen(rows.weight),
                )
            )
        if rows.index is not None:
            # The head has not seen the others, so that there is nothing to leave out.
            everywhere = np.empty((len(rows.X), *predictions.shape[1:]))
            unseen = np.setdiff1d(np.arange(len(rows.X)), rows.index)
            everywhere[rows.index] = predictions
            outputs = self._run(rows.X[unseen], *self._predicting_head())
            everywhere[unseen] = self._targets.decode(outputs)
            predictions = everywhere
        self.loo_predictions_ = predictions

    def _shaped(self, values: NDArray[np.float64]) -> Any:
        """Give numbers (1,) or (k,) as a float, or in the shape of a row of y."""
        if self._targets.shape == () or values.size < self.n_outputs_:
            return float(values[0])
        return values.copy()

    # Using ----------------------------------------------------------------------

    def _features(self, X: NDArray[Any]) -> Tensor:
        return torch.from_numpy(self._run(X))

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
            One for each output where ``alpha_`` is.
        """
        check_is_fitted(self)
        leverage = self._leverage(read_X(self, X, reset=False))
        return leverage[:, 0] if leverage.shape[1] == 1 else leverage

    def _leverage(self, X: NDArray[Any]) -> NDArray[np.float64]:
        slices = (X[start : start + _SLICE] for start in range(0, len(X), _SLICE))
        parts = [self._posterior.leverage(self._features(part)) for part in slices]
        leverage: NDArray[np.float64] = torch.cat(parts).numpy()
        return leverage

    def _deviation(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Give standard deviations (n, k), in the units of y."""
        relative = np.sqrt(1 + self.posterior_scale_ * self._leverage(X))
        return relative * np.reshape(self.noise_, (1, -1))

    def _covariance(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Give covariances (n, n) or (n, n, k), in the units of y."""
        between = self._posterior.covariance(self._features(X)).numpy()
        relative = self.posterior_scale_ * between + np.eye(len(X))[..., None]
        covariance = relative * np.square(np.reshape(self.noise_, (1, 1, -1)))
        return covariance.reshape(len(X), len(X), *self._targets.shape)

    def _with_spread(
        self, X: Any, predictions: NDArray[np.float64], *, covariance: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Add standard deviations, or covariances, to predictions."""
        X = read_X(self, X, reset=False)
        if covariance:
            return predictions, self._covariance(X)
        return predictions, self._deviation(X).reshape(predictions.shape)

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
        predictions = self.predict(X)
        random = check_random_state(random_state)
        features = self._features(read_X(self, X, reset=False))
        shape = (features.shape[1] + 1, self.n_outputs_, n_samples)
        normal = torch.from_numpy(random.standard_normal(shape))
        heads = self._posterior.deviations(features, normal).numpy()
        rows = random.standard_normal(heads.shape)
        noise = np.reshape(self.noise_, (1, -1, 1))
        deviations = noise * (np.sqrt(self.posterior_scale_) * heads + rows)
        return predictions[..., None] + deviations.reshape(*predictions.shape, -1)

    # Intervals ------------------------------------------------------------------

    def conformalize(self, X: Any, y: Any, *, groups: Any = None) -> Any:
        """Calibrate :meth:`predict_interval` on rows that fit has not had.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that neither trained the model nor were held out in fit.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, in each of which the coverage then holds by itself
            (Mondrian conformal prediction). Each needs rows enough.

        Returns
        -------
        self : object
            Predictions are as they were; the intervals change.
        """
        check_is_fitted(self)
        predictions = self.predict(X)
        y = self._read_targets(y)
        check_consistent_length(predictions, y)
        self._encode(y)  # says what is wrong with another number of outputs
        deviation = self._deviation(read_X(self, X, reset=False))
        errors = np.abs(y - predictions).reshape(deviation.shape)
        self._conformal = ConformalScores.of(errors / deviation, groups)
        return self

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
            Lower and upper ends, in the units of y.

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
        rows it is exact. Rows count alike, whatever their weights.

        References
        ----------
        Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, "Distribution-Free Predictive
        Inference for Regression", JASA 113, 2018, sections 2.2 and 5.2.
        """
        check_is_fitted(self)
        predictions, deviation = self.predict(X, return_std=True)
        scores = scores_or_error(self._conformal, moved=self._sums.moved)
        limits = scores.limits(coverage, predictions, groups)
        half = limits.reshape(-1, *predictions.shape[1:]) * deviation
        return np.stack([predictions - half, predictions + half], axis=-1)
