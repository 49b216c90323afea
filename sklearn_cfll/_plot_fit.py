"""Displays of a fit: its training, and the path of its ridges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_cfll._display import Display, column, fitted

_QUANTITIES = ("loss", "score")
_LABELS = {
    "held_out": "held-out rows",
    "leave_one_out": "leave-one-out",
    "cross_validation": "cross-validation over samples",
}


class TrainingCurveDisplay(Display):
    """Loss or score by epoch, of the training rows and the held-out ones.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    train : array-like of shape (n_epochs,)
        Of the training rows, taken in passing: each batch under the head that has just
        been solved on it, so that a loss is a little small.
    valid : array-like of shape (n_epochs,), default=None
        Of the held-out rows after each epoch, not-a-number in those of a warm start
        without any; None where there are none.
    quantity : str, default="loss"
        What the curves are of: the name of the axis.
    best_epoch : int, default=None
        The epoch whose network was kept, counted from 1.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    train_line_, valid_line_ : matplotlib Line2D
        The latter is None where no rows were held out.
    best_line_ : matplotlib Line2D or None
        Vertical, at the epoch that was kept.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.plot import TrainingCurveDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(max_epochs=5, random_state=0).fit(X, y)
    >>> display = TrainingCurveDisplay.from_estimator(model)
    >>> display.ax_.get_ylabel()
    'loss'
    """

    def __init__(
        self,
        *,
        train: ArrayLike,
        valid: ArrayLike | None = None,
        quantity: str = "loss",
        best_epoch: int | None = None,
    ) -> None:
        self.train = train
        self.valid = valid
        self.quantity = quantity
        self.best_epoch = best_epoch

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        quantity: str = "loss",
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> TrainingCurveDisplay:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : CFLLRegressor, CFLLClassifier or Pipeline
            Fitted; a pipeline must end in one.
        quantity : {"loss", "score"}, default="loss"
            The squared error of the encoded targets, or R2 and accuracy; with
            ``scoring`` the held-out rows have its score.
        ax : matplotlib Axes, default=None
        line_kwargs : dict, default=None
            Passed to both lines.

        Returns
        -------
        display : TrainingCurveDisplay
            Where early stopping kept an epoch, that is marked; not with ``warm_start``,
            whose history may be that of several trainings.
        """
        model = fitted(estimator, cls)
        if quantity not in _QUANTITIES:
            raise ValueError(
                f"quantity must be one of {', '.join(map(repr, _QUANTITIES))}, got "
                f"{quantity!r}."
            )
        history = model.history_
        if not len(history):
            raise ValueError(
                "history_ is empty: no pass over the rows trained the backbone; fit, "
                "or stream with stream_epochs of at least 1."
            )
        display = cls(
            train=np.array(history[:, f"train_{quantity}"]),
            valid=_by_epoch(history, f"valid_{quantity}"),
            quantity=quantity,
            best_epoch=_kept_epoch(model),
        )
        return display.plot(ax, line_kwargs=line_kwargs)

    def plot(
        self, ax: Any = None, *, line_kwargs: dict[str, Any] | None = None
    ) -> TrainingCurveDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        line_kwargs : dict, default=None
            Passed to both lines.

        Returns
        -------
        self : TrainingCurveDisplay
        """
        ax = self._start(ax)
        settings = line_kwargs or {}
        epochs = np.arange(1, len(np.asarray(self.train)) + 1)
        self.valid_line_ = self.best_line_ = None
        (self.train_line_,) = ax.plot(
            epochs, self.train, **{"label": "training rows", **settings}
        )
        if self.valid is not None:
            (self.valid_line_,) = ax.plot(
                epochs, self.valid, **{"label": "held-out rows", **settings}
            )
        if self.best_epoch is not None:
            self.best_line_ = ax.axvline(
                self.best_epoch,
                color="0.5",
                linestyle=":",
                label=f"kept: epoch {self.best_epoch}",
            )
        ax.set(xlabel="epoch", ylabel=self.quantity)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
        return self


def _kept_epoch(model: Any) -> int | None:
    """Epoch, from 1 on, that early stopping went back to."""
    if model.early_stopping is False or model.warm_start:
        return None
    score = model.scoring is not None
    values = _by_epoch(model.history_, "valid_score" if score else "valid_loss")
    if values is None or not np.isfinite(values).any():
        return None
    return int(np.nanargmax(values if score else -values)) + 1


def _by_epoch(history: Any, name: str) -> np.ndarray | None:
    """Values of all epochs; a warm start may hold out rows in some of them alone."""
    values = np.array([row.get(name, np.nan) for row in history], dtype=float)
    return values if any(name in row for row in history) else None


class AlphaPathDisplay(Display):
    """Error of the last head by its ridge.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    alphas : array-like of shape (n_alphas,)
    errors : dict of array-like of shape (n_alphas,)
        Mean squared errors of one output by what they are of: "held_out",
        "leave_one_out" or both. Those of leave-one-out are optimistic, as the backbone
        has seen the rows: they order the ridges.
    alpha : float, default=None
        The ridge that was taken.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    lines_ : dict of matplotlib Line2D
        By the keys of ``errors``.
    alpha_line_ : matplotlib Line2D or None
        Vertical, at the ridge that was taken.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.plot import AlphaPathDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(max_epochs=5, random_state=0).fit(X, y)
    >>> sorted(AlphaPathDisplay.from_estimator(model).lines_)
    ['held_out']
    """

    def __init__(
        self,
        *,
        alphas: ArrayLike,
        errors: dict[str, Any],
        alpha: float | None = None,
    ) -> None:
        self.alphas = alphas
        self.errors = errors
        self.alpha = alpha

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        output: int = 0,
        ax: Any = None,
        line_kwargs: dict[str, Any] | None = None,
    ) -> AlphaPathDisplay:
        """Draw the path that a fitted estimator took its ridge from.

        Parameters
        ----------
        estimator : CFLLRegressor, CFLLClassifier or Pipeline
            Fitted with ``alpha="auto"``; a pipeline must end in one.
        output : int, default=0
            Which output of several. A classifier has one path for all of them.
        ax : matplotlib Axes, default=None
        line_kwargs : dict, default=None
            Passed to the lines of the errors.

        Returns
        -------
        display : AlphaPathDisplay
        """
        model = fitted(estimator, cls)
        if model.alpha_path_ is None:
            raise ValueError(
                f"no path of alpha was tried, as alpha={model.alpha!r} was given; fit "
                "with alpha='auto'."
            )
        errors = {
            name: column(values, output, "the path")
            for name, values in model.alpha_path_.items()
            if name != "alphas"
        }
        chosen = np.ravel(model.alpha_)
        display = cls(
            alphas=model.alpha_path_["alphas"],
            errors=errors,
            alpha=float(chosen[min(output, len(chosen) - 1)]),
        )
        return display.plot(ax, line_kwargs=line_kwargs)

    def plot(
        self, ax: Any = None, *, line_kwargs: dict[str, Any] | None = None
    ) -> AlphaPathDisplay:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
        line_kwargs : dict, default=None
            Passed to the lines of the errors.

        Returns
        -------
        self : AlphaPathDisplay
        """
        ax = self._start(ax)
        self.lines_ = {}
        for name, values in self.errors.items():
            settings = {"marker": ".", "label": _LABELS.get(name, name)}
            settings |= line_kwargs or {}
            (self.lines_[name],) = ax.plot(self.alphas, values, **settings)
        self.alpha_line_ = None
        if self.alpha is not None:
            self.alpha_line_ = ax.axvline(
                self.alpha, color="0.5", linestyle=":", label=f"taken: {self.alpha:.3g}"
            )
        ax.set(xscale="log", xlabel="alpha", ylabel="mean squared error")
        ax.legend()
        return self
