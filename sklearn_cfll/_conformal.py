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

# Coverages whose quantiles are kept, so that a model doesn't grow with its rows.
_LEVELS = np.sort([*np.arange(1, 100) / 100, 0.005, 0.025, 0.975, 0.995, 0.999])


@dataclass(frozen=True)
class Quantiles:
    """Order statistics of some scores: those of the levels that are kept, and the last.

    Attributes
    ----------
    n_rows : int
    values : array of shape (n_kept,)
        The scores of the ranks that :func:`kept_ranks` gives.
    """

    n_rows: int
    values: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.float64]) -> Quantiles:
        """Sort scores (n,), without what is not-a-number."""
        scores = np.sort(scores[~np.isnan(scores)])
        return cls(len(scores), scores[kept_ranks(len(scores)) - 1])

    def at(self, rank: int) -> float:
        """Score of a rank, or of the next larger one that is kept."""
        index = np.searchsorted(kept_ranks(self.n_rows), rank)
        return float(self.values[index])


def rank_of(coverage: Any, n_rows: int) -> Any:
    """Rank of the score that a further row exceeds with the rest of the probability."""
    # Without the rounding of the product, which may lift it above a whole number.
    return np.ceil((n_rows + 1) * coverage - 1e-9).clip(1).astype(np.intp)


def kept_ranks(n_rows: int) -> NDArray[np.intp]:
    """Ranks, from 1 on, of the scores that are kept of so many."""
    ranks = np.append(rank_of(_LEVELS, n_rows), n_rows)
    return np.unique(ranks[(ranks > 0) & (ranks <= n_rows)])


@dataclass(frozen=True)
class ConformalScores:
    """Quantiles of the calibration rows' scores; no row is kept.

    Attributes
    ----------
    scores : tuple of tuples of Quantiles
        For each group and output, those of the group's rows.
    groups : array of shape (n_groups,) or None
        The groups' labels; None where there is one group alone.
    """

    scores: tuple[tuple[Quantiles, ...], ...]
    groups: NDArray[Any] | None = None

    @classmethod
    def of(cls, scores: NDArray[np.float64], groups: Any = None) -> ConformalScores:
        """Take scores (n, k), by group where groups (n,) are given."""
        if groups is None:
            return cls((_columns(scores),))
        groups = read_groups(groups, scores)
        try:
            labels, index = np.unique(groups, return_inverse=True)
        except TypeError as error:
            kinds = ", ".join(sorted({type(label).__name__ for label in groups}))
            raise TypeError(
                f"groups holds labels that can't be sorted ({kinds}); pass labels of "
                "one type, by astype(str) for example."
            ) from error
        parts = (_columns(scores[index == i]) for i in range(len(labels)))
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
        check_coverage(coverage)
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
            columns = enumerate(self.scores[i])
            limits[i] = [self._limit(one, coverage, i, k) for k, one in columns]
        return limits[index]

    def _index(self, groups: NDArray[Any]) -> NDArray[np.intp]:
        labels = self.groups
        assert labels is not None
        try:
            index = np.searchsorted(labels, groups).clip(max=len(labels) - 1)
            unknown = np.asarray(labels[index] != groups)
        except TypeError:  # labels of another type
            index, unknown = np.zeros(len(groups), np.intp), np.ones(len(groups), bool)
        if unknown.any():
            raise ValueError(
                f"groups holds {groups[unknown].tolist()[0]!r}, none of the groups "
                f"{labels.tolist()} of conformalize; calibrate on rows of it, too."
            )
        return index

    def _limit(self, column: Quantiles, coverage: float, i: int, k: int) -> float:
        rank = int(rank_of(np.float64(coverage), column.n_rows))
        if rank <= column.n_rows:
            return column.at(rank)
        wanted = math.ceil(coverage / (1 - coverage) - 1e-9)
        where = "" if self.groups is None else f" of group {self.groups.tolist()[i]!r}"
        if len({one.n_rows for one in self.scores[i]}) > 1:  # targets are missing
            where += f" with a target of output {k}"
        raise ValueError(
            f"coverage={coverage} needs at least {wanted} calibration rows{where}, got "
            f"{column.n_rows}; hold out more rows (validation_fraction or X_val), pass "
            "more to conformalize, or ask for less coverage."
        )


def _columns(scores: NDArray[np.float64]) -> tuple[Quantiles, ...]:
    return tuple(Quantiles.of(column) for column in scores.T)


def check_coverage(coverage: Any) -> None:
    """Refuse what isn't a number between zero and one."""
    if not (isinstance(coverage, (int, float, np.number)) and 0 < coverage < 1):
        raise ValueError(
            f"coverage must be a number between 0 and 1, got {coverage!r}."
        )


def read_groups(groups: Any, X: Any) -> NDArray[Any]:
    """Check groups: one label for each row."""
    shape = np.shape(groups)
    if len(shape) == 0 or shape not in ((shape[0],), (shape[0], 1)):
        raise ValueError(f"groups has shape {shape}; pass one label for each row.")
    labels = np.asarray(column_or_1d(groups, input_name="groups"))
    check_consistent_length(X, labels)
    missing = _missing_labels(labels)
    if len(missing):
        raise ValueError(
            f"groups has no label for row {missing[0]}; give each row one, by fillna "
            "for example."
        )
    return labels


def _missing_labels(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Find the rows whose label is None, not-a-number, not-a-time or pandas' NA."""
    if labels.dtype.kind == "O":
        return np.flatnonzero([_is_missing(label) for label in labels])
    if labels.dtype.kind in "fmM":
        return np.flatnonzero(np.isnan(labels))
    return np.empty(0, dtype=np.intp)


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)
    except TypeError:  # NA says neither that it equals itself nor that it doesn't
        return True


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
