"""Display of predictions with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length

from sklearn_cfll._conformal import check_coverage
from sklearn_cfll._display import Display, column, fitted, transformed

_KINDS = ("interval", "std")


def intervals_of(
    model: Any, X: Any, coverages: Any, kind: str, groups: Any
) -> list[NDArray[np.float64]]:
    """Give the ends (n, 2) or (n, k, 2) of conformal intervals, or Gaussian ones.

    One set for each coverage, all from one pass of the network.
    """
    if kind not in _KINDS:
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}."
        )
    if kind == "interval":
        intervals: list[NDArray[np.float64]] = model._intervals(X, coverages, groups)
        return intervals
    for coverage in coverages:
        check_coverage(coverage)
    predictions, deviation = model.predict(X, return_std=True)
    halves = [norm.ppf((1 + coverage) / 2) * deviation for coverage in coverages]
    return [np.stack([predictions - h, predictions + h], axis=-1) for h in halves]


def ends_of(
    intervals: Any, output: int, y: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of one output."""
    intervals = np.asarray(intervals)
    if intervals.ndim not in (2, 3) or intervals.shape[-1] != 2:
        raise ValueError(
            f"intervals have shape {intervals.shape}; they must be (n_samples, 2) or "
            "(n_samples, n_outputs, 2), as predict_interval gives them."
        )
    check_consistent_length(y, intervals)
    lower, upper = (column(intervals[..., i], output, "intervals") for i in (0, 1))
    return lower, upper


class PredictionIntervalDisplay(Display):
    """Predictions against the truth, with intervals as error bars.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    y_true, y_pred, lower, upper : array-like of shape (n_samples,)
        Targets, predictions and the ends of their intervals, of one output.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    held_bars_, missed_bars_ : matplotlib ErrorbarContainer
        Rows whose interval holds the target, and those whose doesn't.
    line_ : matplotlib Line2D
        Where predictions are the targets.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.plot import PredictionIntervalDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(max_epochs=5, random_state=0).fit(X[:350], y[:350])
    >>> display = PredictionIntervalDisplay.from_estimator(model, X[350:], y[350:])
    >>> display.y_pred.shape
    (92,)
    """

    def __init__(
        self,
        *,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        lower: ArrayLike,
        upper: ArrayLike,
    ) -> None:
        self.y_true = y_true
        self.y_pred = y_pred
        self.lower = lower
        self.upper = upper

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        coverage: float = 0.9,
        kind: str = "interval",
        groups: Any = None,
        output: int = 0,
        ax: Any = None,
        **kwargs: Any,
    ) -> PredictionIntervalDisplay:
        """Predict rows and draw them.

        Parameters
        ----------
        estimator : CFLLRegressor or Pipeline
            Fitted; a pipeline must end in one.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that fit has not had.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        coverage : float, default=0.9
        kind : {"interval", "std"}, default="interval"
            The conformal intervals of ``predict_interval``, or so many of the standard
            deviations of ``predict`` as a Gaussian needs for the coverage.
        groups : array-like of shape (n_samples,), default=None
            For ``predict_interval``.
        output : int, default=0
            Which output of several.
        ax : matplotlib Axes, default=None
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        display : PredictionIntervalDisplay
        """
        model = fitted(estimator, cls, "predict_interval")
        X = transformed(estimator, X)
        (intervals,) = intervals_of(model, X, [coverage], kind, groups)
        return cls.from_predictions(
            y, model.predict(X), intervals, output=output, ax=ax, **kwargs
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_pred: Any,
        intervals: Any,
        *,
        output: int = 0,
        ax: Any = None,
        **kwargs: Any,
    ) -> PredictionIntervalDisplay:
        """Draw predictions of any estimator.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n_samples,) or (n_samples, n_outputs)
        intervals : array-like of shape (n_samples, 2) or (n_samples, n_outputs, 2)
        output : int, default=0
            Which output of several.
        ax : matplotlib Axes, default=None
        **kwargs
            For :meth:`plot`.

        Returns
        -------
        display : PredictionIntervalDisplay
        """
        check_consistent_length(y_true, y_pred)
        lower, upper = ends_of(intervals, output, y_true)
        display = cls(
            y_true=column(y_true, output, "y_true"),
            y_pred=column(y_pred, output, "y_pred"),
            lower=lower,
            upper=upper,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        subsample: int | None = 200,
        random_state: Any = None,
        bar_kwargs: dict[str, Any] | None = None,
    ) -> PredictionIntervalDisplay:
        """Draw the rows, or some of them.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        subsample : int or None, default=200
            Most rows to draw; None draws all. The shares in the legend are of all.
        random_state : int, RandomState or None, default=None
            Draws the rows.
        bar_kwargs : dict, default=None
            Passed to both sets of error bars.

        Returns
        -------
        self : PredictionIntervalDisplay
        """
        ax = self._start(ax)
        columns = (self.y_true, self.y_pred, self.lower, self.upper)
        y, predictions, lower, upper = map(np.asarray, columns)
        held = (lower <= y) & (y <= upper)
        rows = np.arange(len(y))
        if subsample is not None and subsample < len(y):
            random = check_random_state(random_state)
            rows = np.sort(random.choice(len(y), subsample, replace=False))
        settings = {"fmt": ".", "elinewidth": 0.7, **(bar_kwargs or {})}

        def bars(hit: bool, label: str) -> Any:
            chosen = rows[held[rows] == hit]
            middle = predictions[chosen]
            below, above = middle - lower[chosen], upper[chosen] - middle
            # An interval that was calibrated by others may leave its prediction out.
            lengths = np.maximum([below, above], 0)
            share = np.mean(held == hit)
            label = f"{label}: {100 * share:.1f} %"
            return ax.errorbar(y[chosen], middle, lengths, label=label, **settings)

        self.held_bars_ = bars(True, "interval holds the target")
        self.missed_bars_ = bars(False, "it doesn't")
        low, high = (f([y[rows], predictions[rows]]) for f in (np.min, np.max))
        (self.line_,) = ax.plot([low, high], [low, high], "k--", linewidth=1, zorder=3)
        ax.set(xlabel="target", ylabel="prediction")
        ax.legend(loc="upper left")
        return self
