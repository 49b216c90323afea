"""The regressor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_cfll._docs import document
from sklearn_cfll._parameters import Parameters
from sklearn_cfll._problem import Problem
from sklearn_cfll._regression_targets import RegressionTargets
from sklearn_cfll._streaming import Streaming
from sklearn_cfll._targets import r2
from sklearn_cfll._transfer import Transfer
from sklearn_cfll._uncertainty import ErrorBars
from sklearn_cfll._validation import read_weights
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.net import CFLLNet


@document
class CFLLRegressor(RegressorMixin, RegressionTargets, Streaming, Transfer, ErrorBars):
    """Neural network regressor whose last layer is solved in closed form.

    {parameters}
    missing_targets : {"error", "ignore"}, default="error"
        "ignore" takes not-a-number in y for a target that isn't known: each output is
        trained and solved on the rows that have it. The outputs then have a solve each:
        with k of them and d features a step's solve costs k times as much, and the last
        one takes memory ``O(k d^2)``.
    store_loo : bool, default=False
        Keep the leave-one-out predictions of the training rows, and their score. It
        costs a further pass over the rows. Not for targets on a grid.
    sample_norm : None or "relative", default=None
        "relative" weighs each sample by the inverse of its targets' mean square, in
        addition to ``sample_weight``, so that the loss is the squared relative L2
        error of a field. All outputs then have one scale.

    Attributes
    ----------
    {attributes}
    coef_ : array of shape (d,) or (n_outputs, d)
        Weights of the head in the units of y: predictions are
        ``transform(X) @ coef_.T + intercept_``. They say nothing of single columns of
        X, for which there is ``permutation_importance``.
    intercept_ : float or array of shape (n_outputs,)
        The head's intercept, in the units of y.
    noise_ : float or array of shape (n_outputs,)
        Standard deviation of the noise, in the units of y, fitted to the errors on the
        held-out rows; where there are none, to leave-one-out errors, which are too
        small, since the backbone has seen the rows. In a stream without ``fit``, to the
        errors of each chunk before it is learnt, or where the backbone doesn't move,
        what the errors leave after the head's degrees of freedom.
    posterior_scale_ : float
        The variance of the head's posterior is so many times that which the ridge
        model has with this noise; fitted along with the noise.
    effective_dof_ : float or array of shape (n_outputs,)
        Effective degrees of freedom of the head, its intercept included.
    log_evidence_ : float or array of shape (n_outputs,)
        Logarithm of the probability density of the training targets, given the
        features, at this noise. Gone once a stream has moved the backbone or has
        lowered the weight of rows.
    loo_predictions_ : array of shape (n_samples,) or (n_samples, n_outputs)
        With ``store_loo``: predictions of the rows of fit by the exact head at
        ``alpha_`` that is solved without each of them. Rows that were held out in fit
        have their predictions, as the head has not been solved on them.
    loo_score_ : float
        With ``store_loo``: R2 of the leave-one-out predictions, held-out rows aside.

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
        "store_loo": ["boolean"],
        "missing_targets": [StrOptions({"error", "ignore"})],
        "sample_norm": [None, StrOptions({"relative"})],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        alpha: Any = "auto",
        prox: Any = None,
        update_order: str = "head_first",
        optimizer: Any = "adamw",
        lr: Any = "auto",
        weight_decay: float | None = None,
        optimizer_params: dict[str, Any] | None = None,
        lr_schedule: Any = "cooldown",
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
        store_loo: bool = False,
        sample_norm: str | None = None,
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
        self.store_loo = store_loo
        self.missing_targets = missing_targets
        self.sample_norm = sample_norm

    def _publish(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        self._take(net)
        self._take_path(problem)
        self._learn_errors(net, problem, path)

    def _before(self, problem: Problem | None) -> Any:
        return self._unlearnt_noise(problem)

    def _publish_streamed(
        self, net: CFLLNet, problem: Problem, path: AnyPath, before: Any
    ) -> None:
        self._take(net)
        self._update_errors(net, problem, path, before)

    def _take(self, net: CFLLNet) -> None:
        head = net.module_.head
        targets = self._targets
        weight, bias = head.weight.double().cpu().numpy(), head.bias.double().cpu()
        coefficients = weight.T * targets.scale[:, None]
        intercept = bias.numpy() * targets.scale + targets.mean
        single = targets.shape == ()
        self.coef_ = coefficients[0] if single else coefficients
        self.intercept_ = float(intercept[0]) if single else intercept

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False
    ) -> Any:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        return_std : bool, default=False
            Whether to return the standard deviation of each target, too.
        return_cov : bool, default=False
            Whether to return the covariances of the targets of all rows, too.

        Returns
        -------
        y : array of shape (n_samples,) or (n_samples, n_outputs)
            In the units and the shape of the y of fit, in float64.
        y_std : array like y
            With ``return_std``: of the head's posterior and the noise together; on a
            grid that of each point by itself.
        y_cov : array of shape (n_samples, n_samples) or (..., n_outputs)
            With ``return_cov``: its diagonal is the square of the standard deviations.

        Warns
        -----
        UserWarning
            Where a spread is asked for and no rows were held out in fit.

        Notes
        -----
        The variance is ``noise_**2 * (1 + posterior_scale_ * leverage(X))``. The
        posterior is that of the head *given the backbone*, whose own uncertainty is in
        it only as far as ``posterior_scale_``, fitted on rows that the backbone has not
        seen, stands for it. Where no rows were held out the noise is fitted to
        leave-one-out errors, and is too small.
        """
        if return_std and return_cov:
            raise ValueError(
                "return_std and return_cov are both True; ask for one of them (the "
                "diagonal of the covariance is the square of the standard deviation)."
            )
        if not (return_std or return_cov):
            outputs = self._raw_predictions(X)
            return self._targets.decode(outputs)
        check_is_fitted(self)
        self._warn_of_seen_noise()
        return self._with_covariance(X) if return_cov else self._with_deviation(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute R2, the coefficient of determination of the predictions.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        y : array-like
            In the shape that :meth:`predict` gives; not-a-number for a target that
            isn't known, where ``missing_targets`` is "ignore".
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        score : float
            The mean over the outputs, each on the rows that have its target. The
            points of a grid count as rows.
        """
        check_is_fitted(self)
        predictions = self.predict(X)
        y = self._read_targets(y)
        if not self._targets.n_grid_axes and not np.isnan(y).any():
            return r2(y, predictions, sample_weight)
        n_samples = len(predictions)
        if {y.shape, predictions.shape} == {(n_samples,), (n_samples, 1)}:
            y = y.reshape(predictions.shape)  # R2 takes a column for a vector
        if y.shape != predictions.shape:
            raise ValueError(
                f"y has shape {y.shape} but the predictions for X have shape "
                f"{predictions.shape}; pass the targets of the same samples and "
                f"{'points' if self._targets.n_grid_axes else 'outputs'}."
            )
        weight = read_weights(sample_weight, predictions)
        return self._targets.score(predictions, y, weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
