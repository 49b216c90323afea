"""Display of how often intervals are right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_cfll._display import Display, column, fitted, transformed
from sklearn_cfll._plot_intervals import ends_of, intervals_of

_COVERAGES = np.arange(1, 20) / 20


class IntervalCalibrationDisplay(Display):
    """How often intervals hold the target, against how often they ought to.

    Make one with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    nominal : array-like of shape (n_coverages,)
        Coverages that were asked for.
    coverage : array-like of shape (n_coverages,)
        Shares of targets that the intervals hold.
    name : str, default=None
        For the legend.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    line_ : matplotlib Line2D
        The shares.
    reference_line_ : matplotlib Line2D or None
        Where coverage is as asked for; None where the axes had it before.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.plot import IntervalCalibrationDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(max_epochs=5, random_state=0).fit(X[:350], y[:350])
    >>> display = IntervalCalibrationDisplay.from_estimator(model, X[350:], y[350:])
    >>> display.coverage.shape
    (19,)
    """

    def __init__(
        self, *, nominal: ArrayLike, coverage: ArrayLike, name: str | None = None
    ) -> None:
        self.nominal = nominal
        self.coverage = coverage
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        coverages: ArrayLike | None = None,
        kind: str = "interval",
        groups: Any = None,
        output: int = 0,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> IntervalCalibrationDisplay:
        """Predict intervals of several coverages and draw how many are right.

        Parameters
        ----------
        estimator : CFLLRegressor or Pipeline
            Fitted; a pipeline must end in one.
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Rows that fit has not had, nor ``conformalize``.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        coverages : array-like of shape (n_coverages,), default=None
            In (0, 1); None is 0.05 to 0.95, in steps of 0.05.
        kind : {"interval", "std"}, default="interval"
            The conformal intervals of ``predict_interval``, or so many of the standard
            deviations of ``predict`` as a Gaussian needs for the coverage.
        groups : array-like of shape (n_samples,), default=None
            For ``predict_interval``.
        output : int, default=0
            Which output of several.
        name : str, default=None
            For the legend; None takes the class's.
        ax : matplotlib Axes, default=None
        **kwargs
            Passed to the line.

        Returns
        -------
        display : IntervalCalibrationDisplay
        """
        model = fitted(estimator, cls, "predict_interval")
        X = transformed(estimator, X)
        levels = np.ravel(_COVERAGES if coverages is None else coverages)
        intervals = intervals_of(model, X, levels, kind, groups)
        name = type(model).__name__ if name is None else name
        return cls.from_predictions(
            y, intervals, levels, output=output, name=name, ax=ax, **kwargs
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        intervals: Any,
        coverages: ArrayLike,
        *,
        output: int = 0,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> IntervalCalibrationDisplay:
        """Draw how many intervals of any estimator are right.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,) or (n_samples, n_outputs)
        intervals : sequence of array-like, each (n_samples, 2) or (n_samples, k, 2)
            One for each coverage.
        coverages : array-like of shape (n_coverages,)
        output : int, default=0
            Which output of several.
        name : str, default=None
            For the legend.
        ax : matplotlib Axes, default=None
        **kwargs
            Passed to the line.

        Returns
        -------
        display : IntervalCalibrationDisplay
        """
        levels = np.ravel(coverages)
        if len(intervals) != len(levels):
            raise ValueError(
                f"there are {len(intervals)} sets of intervals for {len(levels)} "
                "coverages; pass one set for each."
            )
        y = column(y_true, output, "y_true")
        pairs = [ends_of(ends, output, y) for ends in intervals]
        shares = [np.mean((lower <= y) & (y <= upper)) for lower, upper in pairs]
        display = cls(nominal=levels, coverage=np.array(shares), name=name)
        return display.plot(ax, **kwargs)

    def plot(
        self, ax: Any = None, *, name: str | None = None, **kwargs: Any
    ) -> IntervalCalibrationDisplay:
        """Draw the shares.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        name : str, default=None
            For the legend, in place of the display's.
        **kwargs
            Passed to the line.

        Returns
        -------
        self : IntervalCalibrationDisplay
        """
        ax = self._start(ax)
        label, self.reference_line_ = "as asked for", None
        if label not in ax.get_legend_handles_labels()[1]:
            (self.reference_line_,) = ax.plot(
                [0, 1], [0, 1], "k--", linewidth=1, label=label
            )
        settings = {"marker": ".", "label": name or self.name, **kwargs}
        (self.line_,) = ax.plot(self.nominal, self.coverage, **settings)
        ax.set(
            xlabel="coverage asked for",
            ylabel="share of targets within",
            aspect="equal",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        ax.legend(loc="upper left")
        return self
