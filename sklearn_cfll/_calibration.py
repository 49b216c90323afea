"""Calibration of intervals and sets on rows that fit has not had."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._conformal import ConformalScores, scores_or_error

# Predictions of equal rows, in batches of other sizes, differ by up to ten spacings.
_ROUNDING = 64


class Calibration(BaseCFLL):
    """Keeps conformal scores; a subclass says what a row's score is."""

    _conformal: ConformalScores | None

    def conformalize(self, X: Any, y: Any, *, groups: Any = None) -> Any:
        """Calibrate intervals, or sets of labels, on rows that fit has not had.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that neither trained the model nor were held out in fit.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, in each of which the coverage then holds by itself
            (Mondrian conformal prediction). Each needs rows enough; none may be
            missing.

        Returns
        -------
        self : object
            Predictions are as they were; the intervals or sets change.
        """
        check_is_fitted(self)
        scores = self._scores_of(X, y)
        self._conformal = ConformalScores.of(scores, groups)
        return self

    def _limits(
        self, coverage: float, X: Any, groups: Any = None
    ) -> NDArray[np.float64]:
        """Largest scores (n, k) or (1, k) that the rows of X are expected to have."""
        scores = scores_or_error(self._conformal, moved=self._sums.moved)
        return scores.limits(coverage, X, groups)

    @property
    def _rounding(self) -> float:
        """Difference of predictions of size one that is rounding.

        Without it ties would be cut by chance: a row that equals a calibration row, on
        the edge of whose interval or set its target lies, would lose it half the time.
        """
        return _ROUNDING * float(torch.finfo(self._sums.dtype).eps)

    def _read_labelled(self, predictions: NDArray[Any], y: Any) -> NDArray[Any]:
        """Check targets of rows that were predicted."""
        y = self._read_targets(y)
        check_consistent_length(predictions, y)
        self._encode(y)  # says what is wrong with other labels or other outputs
        return y

    def _scores_of(self, X: Any, y: Any) -> NDArray[np.float64]:
        """How far off (n, k) the predictions of these rows are."""
        raise NotImplementedError
