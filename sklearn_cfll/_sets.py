"""Sets of labels that hold the true one with a given probability."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted

from sklearn_cfll._calibration import Calibration
from sklearn_cfll._conformal import ConformalScores
from sklearn_cfll._logits import ClassRows, LinearLogits, both_sides
from sklearn_cfll._problem import Problem
from sklearn_cfll.net import CFLLNet

# Held-out rows, and their probabilities, that are enough for a quantile.
_MOST_ROWS = 20_000
_MOST_NUMBERS = 2**22
_LEAST_ROWS = 1_000


class PredictionSets(Calibration):
    """Split-conformal sets of a classifier."""

    def _learn_sets(self, net: CFLLNet, problem: Problem, logits: LinearLogits) -> None:
        """Keep how improbable the held-out rows' labels were taken to be."""
        self._conformal = None
        if problem.held_out_batches is None:
            return
        most = max(_LEAST_ROWS, _MOST_NUMBERS // logits.weight.shape[1])
        rows = ClassRows.of(net, problem.held_out_batches, min(most, _MOST_ROWS))
        probabilities = softmax(both_sides(logits.of(rows.features)), axis=1)
        doubt = _doubt(probabilities, rows.label.cpu().numpy())
        self._conformal = ConformalScores.of(doubt)

    def _scores_of(self, X: Any, y: Any) -> NDArray[np.float64]:
        probabilities = self.predict_proba(X)
        y = self._read_labelled(probabilities, y)
        return _doubt(probabilities, np.searchsorted(self._targets.classes, y))

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
        limits = self._limits(coverage, doubt, groups)
        sets: NDArray[np.bool_] = doubt <= limits + self._rounding
        return sets


def _doubt(probabilities: NDArray[Any], index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Scores (n, 1): one less the probability of the true label."""
    doubt = 1 - probabilities[np.arange(len(index)), index]
    return doubt[:, None].astype(np.float64)
