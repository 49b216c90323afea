"""What the displays share: matplotlib, imported late, and checks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted


class Display:
    """A picture of numbers that are kept beside it."""

    def _start(self, ax: Any) -> Any:
        """Give the axes to draw on, and keep them."""
        self.ax_ = _new_axes(type(self).__name__) if ax is None else ax
        self.figure_ = self.ax_.figure
        return self.ax_

    ax_: Any
    figure_: Any


def _new_axes(name: str) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f"{name} draws with matplotlib, which is not installed; install it by "
            "`pip install matplotlib`."
        ) from error
    return pyplot.subplots()[1]


def fitted(estimator: Any, display: type[Display], method: str = "predict") -> Any:
    """Give a fitted estimator that has the method, out of its pipeline if any."""
    found = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if not hasattr(type(found), "_kind_of_targets"):
        raise TypeError(
            f"{display.__name__} shows a CFLLRegressor or a CFLLClassifier, or a "
            f"pipeline that ends in one, got {estimator!r}; {_cure(found)}."
        )
    check_is_fitted(found)
    if not hasattr(found, method):
        raise TypeError(
            f"{display.__name__} needs {method}, which {type(found).__name__} "
            "doesn't have; pass a CFLLRegressor."
        )
    return found


def _cure(estimator: Any) -> str:
    """Say what to do about an estimator that a display doesn't show."""
    if hasattr(estimator, "summary") and hasattr(estimator, "history_"):
        return "its losses are in history_, and what it has found in summary()"
    return "of a search pass its best_estimator_"


def transformed(estimator: Any, X: Any) -> Any:
    """Give rows as the last step of a pipeline gets them."""
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        return estimator[:-1].transform(X)
    return X


def column(values: Any, output: Any, name: str) -> NDArray[np.float64]:
    """Choose one output of values (n,) or (n, k)."""
    values = np.asarray(values, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2:
        raise ValueError(
            f"{name} has shape {values.shape}; it must be (n_samples,) or "
            "(n_samples, n_outputs)."
        )
    n_outputs = values.shape[1]
    whole = isinstance(output, (int, np.integer)) and not isinstance(output, bool)
    if not (whole and 0 <= output < n_outputs):
        raise ValueError(
            f"output must be a whole number below {n_outputs}, as {name} has "
            f"{n_outputs} outputs, counted from 0; got {output!r}."
        )
    if not np.isfinite(values[:, output]).all():
        raise ValueError(
            f"{name} holds numbers that are not finite; leave these rows out."
        )
    return values[:, output]
