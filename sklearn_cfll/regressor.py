"""The regressor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_array

from sklearn_cfll._docs import document
from sklearn_cfll._parameters import Parameters
from sklearn_cfll._problem import Problem
from sklearn_cfll._streaming import Streaming
from sklearn_cfll._targets import StandardisedTargets
from sklearn_cfll._transfer import Transfer
from sklearn_cfll._validation import numbers_wanted
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.net import CFLLNet


@document
class CFLLRegressor(RegressorMixin, Streaming, Transfer):
    """Neural network regressor whose last layer is solved in closed form.

    {parameters}
    missing_targets : {"error", "ignore"}, default="error"
        "ignore" takes not-a-number in y for a target that isn't known: each output is
        trained and solved on the rows that have it. The outputs then have a solve each:
        with k of them and d features a step's solve costs k times as much, and the last
        one takes memory ``O(k d^2)``.

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
    >>> from sklearn.datasets import make_friedman1
    >>> from sklearn_cfll import CFLLRegressor
    >>> X, y = make_friedman1(700, random_state=0)
    >>> model = CFLLRegressor(random_state=0).fit(X[:500], y[:500])
    >>> bool(model.score(X[500:], y[500:]) > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **Parameters._parameter_constraints,
        "missing_targets": [StrOptions({"error", "ignore"})],
    }
    _kind_of_targets = StandardisedTargets

    def __init__(
        self,
        backbone: Any = None,
        *,
        alpha: Any = "auto",
        prox: Any = (1.0, 100.0),
        update_order: str = "head_first",
        optimizer: Any = "adamw",
        lr: Any = "auto",
        weight_decay: float | None = None,
        optimizer_params: dict[str, Any] | None = None,
        lr_schedule: Any = "cosine",
        batch_size: Any = "auto",
        max_epochs: Any = "auto",
        early_stopping: Any = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        scoring: Any = None,
        dtype: str = "auto",
        device: Any = "auto",
        callbacks: Any = None,
        net_params: dict[str, Any] | None = None,
        warm_start: bool = False,
        stream_epochs: Any = "auto",
        forgetting: float = 1.0,
        missing_targets: str = "error",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            alpha=alpha,
            prox=prox,
            update_order=update_order,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            optimizer_params=optimizer_params,
            lr_schedule=lr_schedule,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            tol=tol,
            scoring=scoring,
            dtype=dtype,
            device=device,
            callbacks=callbacks,
            net_params=net_params,
            warm_start=warm_start,
            stream_epochs=stream_epochs,
            forgetting=forgetting,
            random_state=random_state,
            verbose=verbose,
        )
        self.missing_targets = missing_targets

    def _read_targets(self, y: Any) -> NDArray[Any]:
        finite: Any = True if self.missing_targets == "error" else "allow-nan"
        with numbers_wanted("y", "take CFLLClassifier for labels"):
            y = check_array(
                y,
                ensure_2d=False,
                dtype=np.float64,
                ensure_all_finite=finite,
                input_name="y",
                estimator=self,
            )
        if y.ndim > 2:
            raise ValueError(
                f"y has shape {y.shape}; it must be (n_samples,) or "
                "(n_samples, n_outputs)."
            )
        return y

    def _read_weights(
        self, sample_weight: Any, X: Any, y: NDArray[Any], *, reset: bool
    ) -> Any:
        weight = super()._read_weights(sample_weight, X, y, reset=reset)
        if self.missing_targets == "error":
            return weight
        absent = np.isnan(y).reshape(len(y), -1).all(1)
        if not absent.any():
            return weight
        return np.where(absent, 0.0, 1.0 if weight is None else weight)

    def _publish(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        head = net.module_.head
        targets = self._targets
        weight, bias = head.weight.double().cpu().numpy(), head.bias.double().cpu()
        coefficients = weight.T * targets.scale[:, None]
        intercept = bias.numpy() * targets.scale + targets.mean
        single = targets.shape == ()
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
        predictions = self._raw_predictions(X)
        return self._targets.decode(predictions)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
