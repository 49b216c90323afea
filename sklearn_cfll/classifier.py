"""The classifier."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, column_or_1d
from torch import Tensor

from sklearn_cfll._class_streaming import ClassStreaming
from sklearn_cfll._docs import document
from sklearn_cfll._logits import LinearLogits, calibrate
from sklearn_cfll._parameters import Parameters
from sklearn_cfll._problem import Problem
from sklearn_cfll._sets import PredictionSets
from sklearn_cfll._targets import ClassTargets, weights_of_classes
from sklearn_cfll._transfer import Transfer
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.losses import TrueClassWeight, accuracy
from sklearn_cfll.net import CFLLNet


@document
class CFLLClassifier(ClassifierMixin, ClassStreaming, Transfer, PredictionSets):
    """Neural network classifier whose last layer is solved in closed form.

    Squared loss on targets of minus one and one, one output for each class and a
    single one for two classes, train the backbone. Logits are a blend of the solved
    head's scores and of a logistic head on the same features, fitted in the end: the
    blend, of one weight for each, has the least log loss on held-out rows.
    ``target_scale`` and ``true_class_weight`` make the loss the rescaled square loss of
    Hui and Belkin.

    {parameters}
    class_weight : dict or "balanced", default=None
        Weights of the classes, multiplied with ``sample_weight``; "balanced" makes
        their products have the same sum in each class.
    target_scale : float, default=1.0
        The M of the rescaled square loss: targets are -M and M, and so are the solved
        head's scores, about. Gradients grow by its square, so that SGD at a rate over
        M squared does the same as at M = 1; Adam's methods see it by their ``eps``
        alone. Logits don't depend on it otherwise.
    true_class_weight : float, default=1.0
        The k of the rescaled square loss: weight of the output of a row's true class,
        where the other outputs weigh one, in the training's loss, the solves and the
        choice of ``alpha``. Scores of the true class rise with it. It has no effect
        with two classes, whose single output is that of the true class in each row.
        Other values than one solve for each class apart: with c classes and d
        features a step's solve costs c times as much, and the last one takes memory
        ``O(c d^2)``.

    Attributes
    ----------
    {attributes}
    classes_ : array of shape (n_classes,)
        The labels, sorted.
    calibration_ : array of shape (2,)
        Weights of the solved head's scores and of the logistic head in the logits.
        Where no rows were held out, the second is zero and the first suits the solved
        head's leave-one-out scores, which is optimistic, since the backbone has seen
        those rows.
    coef_ : array of shape (1, d) or (n_classes, d)
        Weights of both heads together: ``decision_function`` gives
        ``transform(X) @ coef_.T + intercept_``. The solved head alone is
        ``net_.module_.head``. They say nothing of single columns of X, for which
        there is ``permutation_importance``.
    intercept_ : array of shape (1,) or (n_classes,)
        The intercept of both heads together.

    {notes}

    Hui and Belkin, "Evaluation of Neural Architectures Trained with Square Loss vs
    Cross-Entropy in Classification Tasks", arXiv 2006.07322, 2020. Their targets are 0
    and M; as the head's intercept is free, that is the same up to the scale of the
    scores, but for the pull of the first heads towards zero.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_cfll import CFLLClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = CFLLClassifier(random_state=0).fit(X[::2], y[::2])
    >>> bool(model.score(X[1::2], y[1::2]) > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **Parameters._parameter_constraints,
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "target_scale": [Interval(Real, 0, None, closed="neither")],
        "true_class_weight": [Interval(Real, 0, None, closed="neither")],
    }
    _train_score = staticmethod(accuracy)
    _kind_of_targets = ClassTargets

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
        class_weight: Any = None,
        target_scale: float = 1.0,
        true_class_weight: float = 1.0,
        dtype: str = "auto",
        device: Any = "auto",
        callbacks: Any = None,
        net_params: dict[str, Any] | None = None,
        warm_start: bool = False,
        stream_epochs: Any = "auto",
        forgetting: float = 1.0,
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
        self.class_weight = class_weight
        self.target_scale = target_scale
        self.true_class_weight = true_class_weight

    # Targets --------------------------------------------------------------------

    def _read_targets(self, y: Any) -> NDArray[Any]:
        y = column_or_1d(y, warn=True)
        y = _check_y(y, multi_output=False, y_numeric=False, estimator=self)
        check_classification_targets(y)
        return np.asarray(y)

    def _read_weights(
        self, sample_weight: Any, X: Any, y: NDArray[Any], *, reset: bool
    ) -> Any:
        weight = super()._read_weights(sample_weight, X, y, reset=reset)
        if self.class_weight is None:
            return weight
        if reset:
            labels, given = y, self.class_weight
            if not isinstance(given, str) and self.warm_start and hasattr(self, "net_"):
                labels = np.concatenate([y, self.classes_])
            self._class_weight = weights_of_classes(given, labels, weight)
        of_class = [self._class_weight.get(label, 1.0) for label in y.tolist()]
        return np.asarray(of_class) * (1.0 if weight is None else weight)

    def _learn_targets(self, y: NDArray[Any], weight: NDArray[Any] | None) -> None:
        super()._learn_targets(y, weight)
        self.classes_ = self._targets.classes

    def _encode(self, y: NDArray[Any], name: str = "y") -> Any:
        return self._targets.encode(y, name, float(self.target_scale))

    @property
    def _loss_unit(self) -> float:
        return float(self.target_scale) ** 2

    @property
    def _output_weight(self) -> Callable[..., Tensor] | None:
        if self.true_class_weight == 1 or len(self.classes_) == 2:
            return None
        return TrueClassWeight(float(self.true_class_weight))

    # Probabilities --------------------------------------------------------------

    def _publish(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        self.calibration_, logits = calibrate(
            net, problem, path, self.alpha_, self.target_scale
        )
        self._take(logits)
        self._learn_sets(net, problem, logits)

    def _adopt(self, net: CFLLNet, input_dtype: torch.dtype) -> None:
        super()._adopt(net, input_dtype)
        # Scores in the unit of the targets; logits come at the end of the training.
        head = LinearLogits(net.module_.head.weight, net.module_.head.bias)
        self._take(head.times(1 / self.target_scale))

    def _take(self, logits: LinearLogits) -> None:
        self.coef_ = logits.weight.double().cpu().numpy().T.copy()
        self.intercept_ = logits.bias.double().cpu().numpy().copy()

    def _predicting_head(self) -> tuple[Tensor, Tensor]:
        # Copies: these arrays may be read-only, as joblib's memory maps are.
        weight = torch.tensor(self.coef_, device="cpu")
        return weight, torch.tensor(self.intercept_, device="cpu")

    # Using ----------------------------------------------------------------------

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Logits of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        logits : array of shape (n_samples,) or (n_samples, n_classes)
            Their softmax is what :meth:`predict_proba` gives. For two classes the
            logarithm of the odds of the second.
        """
        logits = self._raw_predictions(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the class of the largest logit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        y : array of shape (n_samples,)
            Labels, as in the y of fit.
        """
        predictions = self._raw_predictions(X)
        return self._targets.decode(predictions)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        probabilities : array of shape (n_samples, n_classes)
            Columns as in ``classes_``; rows sum to one.
        """
        logits = self._raw_predictions(X)
        if logits.shape[1] == 1:
            return np.hstack([expit(-logits), expit(logits)])
        probabilities: NDArray[np.float64] = softmax(logits, axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Predict logarithms of the classes' probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        logarithms : array of shape (n_samples, n_classes)
            Of what :meth:`predict_proba` gives, finite where it rounds to zero.
        """
        logits = self._raw_predictions(X)
        if logits.shape[1] == 1:
            return np.hstack([log_expit(-logits), log_expit(logits)])
        logarithms: NDArray[np.float64] = log_softmax(logits, axis=1)
        return logarithms
