"""Sets of labels that hold the true one with a given probability."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._conformal import ConformalScores, scores_or_error
from sklearn_cfll._logits import ClassRows, LinearLogits, both_sides
from sklearn_cfll._problem import Problem
from sklearn_cfll.net import CFLLNet

# Held-out rows, and their probabilities, that are enough for a quantile.
_MOST_ROWS = 20_000
_MOST_NUMBERS = 2**22
_LEAST_ROWS = 1_000


class PredictionSets(BaseCFLL):
    """Split-conformal sets of a classifier."""

    def _learn_sets(self, net: CFLLNet, problem: Problem, logits: LinearLogits) -> None:
        """Keep how improbable the held-out rows' labels were taken to be."""
        self._conformal = None
        if problem.held_out_batches is None:
            return
        most = max(_LEAST_ROWS, _MOST_NUMBERS // logits.weight.shape[1])
        rows = ClassRows.of(net, problem.held_out_batches, min(most, _MOST_ROWS))
        probabilities = softmax(both_sides(logits.of(rows.features)), axis=1)
        self._conformal = _scores(probabilities, rows.label.cpu().numpy())

    def conformalize(self, X: Any, y: Any, *, groups: Any = None) -> Any:
        """Calibrate :meth:`predict_set` on rows that fit has not had.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that neither trained the model nor were held out in fit.
        y : array-like of shape (n_samples,)
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, in each of which the coverage then holds by itself
            (Mondrian conformal prediction). Each needs rows enough.

        Returns
        -------
        self : object
            Predictions are as they were; the sets change.
        """
        check_is_fitted(self)
        probabilities = self.predict_proba(X)
        y = self._read_targets(y)
        check_consistent_length(probabilities, y)
        self._encode(y)  # says which label is unknown
        index = np.searchsorted(self._targets.classes, y)
        self._conformal = _scores(probabilities, index, groups)
        return self

    def predict_set(
        self, X: Any, coverage: float = 0.9, *, groups: Any = None
    ) -> NDArray[np.bool_]:
        """Predict sets of labels that hold the true one with a given probability.

        A label is in a row's set where its probability is not less than a quantile of
        those of the true labels of rows that the model was not trained on: those held
        out in fit, or those of :meth:`conformalize`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        coverage : float, default=0.9
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, where :meth:`conformalize` was given such.

        Returns
        -------
        sets : bool array of shape (n_samples, n_classes)
            Columns as in ``classes_``. Where the model is right more often than
            ``coverage``, some sets are empty: those of the rows that it is least sure
            of.

        Raises
        ------
        ValueError
            Where no rows were held out, or too few for the coverage: n rows are enough
            for ``n / (n + 1)``.

        Notes
        -----
        On rows that are exchangeable with the calibration rows the coverage is at least
        the one asked for, whatever the model, on average over calibration sets and
        rows; not for each class or region. With the rows that were held out in fit it
        is so only nearly, as these have also chosen the epoch and ``alpha`` and fitted
        the probabilities. With :meth:`conformalize` on fresh rows it is exact. Rows
        count alike, whatever their weights. Of many calibration rows the quantiles of
        whole per cents are kept, and a few more: other coverages are rounded up.

        References
        ----------
        Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded
        Error Levels", JASA 114, 2019: the smallest sets on average (LAC).
        """
        check_is_fitted(self)
        doubt = 1 - self.predict_proba(X)
        scores = scores_or_error(self._conformal, moved=self._sums.moved)
        sets: NDArray[np.bool_] = doubt <= scores.limits(coverage, doubt, groups)
        return sets

    _conformal: ConformalScores | None


def _scores(
    probabilities: NDArray[Any], index: NDArray[np.intp], groups: Any = None
) -> ConformalScores:
    doubt = 1 - probabilities[np.arange(len(index)), index]
    return ConformalScores.of(doubt[:, None].astype(np.float64), groups)
