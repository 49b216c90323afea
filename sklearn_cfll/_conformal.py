"""Split-conformal prediction: how large the errors of unseen rows are.

With n exchangeable rows the error of a further row is at most their k-th smallest, k
being ``ceil((n + 1) coverage)``, with a probability of at least ``coverage``, whatever
the model is (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World",
2005; Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, JASA 113, 2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d


@dataclass(frozen=True)
class ConformalScores:
    """Scores of the calibration rows, sorted; no row is kept.

    Attributes
    ----------
    scores : tuple of tuples of arrays
        For each group and output, the scores of the group's rows. What is
        not-a-number is left out.
    groups : array of shape (n_groups,) or None
        The groups' labels; None where there is one group alone.
    """

    scores: tuple[tuple[NDArray[np.float64], ...], ...]
    groups: NDArray[Any] | None = None

    @classmethod
    def of(cls, scores: NDArray[np.float64], groups: Any = None) -> ConformalScores:
        """Sort scores (n, k), by group where groups (n,) are given."""
        if groups is None:
            return cls((_sorted_columns(scores),))
        groups = read_groups(groups, scores)
        labels, index = np.unique(groups, return_inverse=True)
        parts = (_sorted_columns(scores[index == i]) for i in range(len(labels)))
        return cls(tuple(parts), labels)

    def limits(
        self, coverage: float, X: Any, groups: Any = None
    ) -> NDArray[np.float64]:
        """Largest score (n, k) or (1, k) that a row of X is expected to have.

        Parameters
        ----------
        coverage : float
            In (0, 1).
        X : array of shape (n, ...)
        groups : array of shape (n,), default=None
            Must be given where the scores are by group, and then alone.
        """
        if not (isinstance(coverage, (int, float, np.number)) and 0 < coverage < 1):
            raise ValueError(
                f"coverage must be a number between 0 and 1, got {coverage!r}."
            )
        if (groups is None) != (self.groups is None):
            had = "with" if groups is None else "without"
            raise ValueError(
                f"the intervals were calibrated {had} groups; pass groups to both "
                "conformalize and the prediction, or to neither."
            )
        if groups is None:
            index = np.zeros(1, dtype=np.intp)
        else:
            index = self._index(read_groups(groups, X))
        used = np.unique(index)
        limits = np.full((len(self.scores), len(self.scores[0])), np.nan)
        for i in used:
            limits[i] = [self._limit(column, coverage, i) for column in self.scores[i]]
        return limits[index]

    def _index(self, groups: NDArray[Any]) -> NDArray[np.intp]:
        labels = self.groups
        assert labels is not None
        index = np.searchsorted(labels, groups).clip(max=len(labels) - 1)
        unknown = labels[index] != groups
        if unknown.any():
            raise ValueError(
                f"groups holds {groups[unknown].tolist()[0]!r}, none of the groups "
                f"{labels.tolist()} of conformalize; calibrate on rows of it, too."
            )
        return index

    def _limit(self, column: NDArray[np.float64], coverage: float, i: int) -> float:
        # Without the rounding of the product, which may lift it above a whole number.
        rank = math.ceil((len(column) + 1) * coverage - 1e-9)
        if rank <= len(column):
            return float(column[max(rank, 1) - 1])
        wanted = math.ceil(coverage / (1 - coverage) - 1e-9)
        where = "" if self.groups is None else f" of group {self.groups.tolist()[i]!r}"
        raise ValueError(
            f"coverage={coverage} needs at least {wanted} calibration rows{where}, got "
            f"{len(column)}; hold out more rows (validation_fraction or X_val), pass "
            "more to conformalize, or ask for less coverage."
        )


def _sorted_columns(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.sort(column[~np.isnan(column)]) for column in scores.T)


def read_groups(groups: Any, X: Any) -> NDArray[Any]:
    """Check groups: one label for each row."""
    groups = column_or_1d(groups, input_name="groups")
    check_consistent_length(X, groups)
    return np.asarray(groups)


NONE_UNSEEN = (
    "no rows were held out in fit, so that errors on unseen rows are not known; fit "
    "with early_stopping=True or X_val, or call conformalize(X, y) with rows that fit "
    "has not had."
)


HEAD_MOVED = (
    "no rows are held out of the head as it is, which partial_fit or forget has moved; "
    "call conformalize(X, y) with rows that it has not had, each time that it has "
    "moved."
)


def scores_or_error(
    scores: ConformalScores | None, *, moved: bool = False
) -> ConformalScores:
    """Give the scores, or say how to come by some."""
    if scores is None:
        raise ValueError(HEAD_MOVED if moved else NONE_UNSEEN)
    return scores
