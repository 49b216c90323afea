"""The regressor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_array

from sklearn_cfll._base import BaseCFLL
from sklearn_cfll._docs import document
from sklearn_cfll.head import ClosedFormHead


@document
class CFLLRegressor(RegressorMixin, BaseCFLL):
    """Neural network regressor whose last layer is solved in closed form.

    {parameters}

    Attributes
    ----------
    {attributes}
    coef_ : array of shape (d,) or (n_outputs, d)
        Weights of the head in the units of y: predictions are
        ``transform(X) @ coef_.T + intercept_``.
    intercept_ : float or array of shape (n_outputs,)
        The head's intercept, in the units of y.

    {notes}

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(random_state=0).fit(X[:300], y[:300])
    >>> bool(model.score(X[300:], y[300:]) > 0.4)
    True
    """

    def _read_targets(self, y: Any) -> NDArray[Any]:
        y = check_array(
            y, ensure_2d=False, dtype=np.float64, input_name="y", estimator=self
        )
        if y.ndim > 2:
            raise ValueError(
                f"y has shape {y.shape}; it must be (n_samples,) or "
                "(n_samples, n_outputs)."
            )
        if hasattr(self, "net_") and self.warm_start and y.shape[1:] != self._y_shape:
            raise ValueError(
                f"y has {y.shape[1:] or 'one output'} but the warm-started model was "
                f"fitted on {self._y_shape or 'one output'}; set warm_start=False."
            )
        return y

    def _fit_encoder(self, y: NDArray[Any], weight: NDArray[Any] | None) -> None:
        """Learn the outputs' means and standard deviations."""
        self._y_shape = y.shape[1:]
        table = y.reshape(len(y), -1)
        self.n_outputs_ = table.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.average(table, axis=0, weights=weight)
            square = np.average((table - mean) ** 2, axis=0, weights=weight)
        deviation = np.sqrt(square)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
            raise ValueError(
                f"y holds values up to {np.abs(table).max():.3g}, whose variance "
                "overflows float64; scale y."
            )
        spacing = np.finfo(float).eps * len(y) * np.abs(mean)
        self._y_mean = mean
        self._y_scale = np.where(deviation > spacing, deviation, 1.0)

    def _encode(self, y: NDArray[Any]) -> NDArray[np.float64]:
        table = y.reshape(len(y), -1)
        if table.shape[1] != self.n_outputs_:
            raise ValueError(
                f"y_val has {table.shape[1]} outputs but y has {self.n_outputs_}; pass "
                "the same outputs for the held-out rows."
            )
        return (table - self._y_mean) / self._y_scale

    def _decode(self, predictions: NDArray[Any]) -> NDArray[Any]:
        return (predictions * self._y_scale + self._y_mean).reshape(-1, *self._y_shape)

    def _score_predictions(self, predictions: Any, y: Any, weight: Any) -> float:
        if len(y) < 2:
            return float("nan")  # R2 has no meaning on one row
        return float(r2_score(y, predictions, sample_weight=weight))

    def _publish_coefficients(self, head: ClosedFormHead) -> None:
        weight, bias = head.weight.double().cpu().numpy(), head.bias.double().cpu()
        coefficients = weight.T * self._y_scale[:, None]
        intercept = bias.numpy() * self._y_scale + self._y_mean
        single = self._y_shape == ()
        self.coef_ = coefficients[0] if single else coefficients
        self.intercept_ = float(intercept[0]) if single else intercept

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            In the units and the shape of the y of fit, in float64.
        """
        return self._decode(self._raw_predictions(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
