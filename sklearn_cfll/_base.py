"""What all estimators share: validate, encode, build, train, solve the head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.base import (
    _fit_context,
    is_classifier,
)
from torch import Tensor

from sklearn_cfll._build import build_net
from sklearn_cfll._device import lapack_on_one_thread, own_settings, seeded
from sklearn_cfll._final import described_path, solve_head
from sklearn_cfll._predicting import Predicting
from sklearn_cfll._problem import Problem, state_problem
from sklearn_cfll._stream import naming_features
from sklearn_cfll._stream_terms import refuse_changed_network, settle_terms
from sklearn_cfll._sums import HeadSums
from sklearn_cfll._undo import all_or_nothing
from sklearn_cfll._validation import (
    Rows,
    check_alpha,
    naming_weights,
    read_rows,
    read_weights,
)
from sklearn_cfll.functional.paths import AnyPath
from sklearn_cfll.net import CFLLNet


class BaseCFLL(Predicting):
    """Fits a backbone by gradient steps and its head in closed form.

    A subclass reads and encodes targets, and decodes predictions.
    """

    # Of the rate that ``lr`` gives; a chunk of a stream has less, whoever schedules it.
    _rate_factor = 1.0

    # Fitting --------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Any:
        """Train the backbone and solve the head.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Training rows; n-D where the backbone takes it.
        y : array-like of shape (n_samples,), (n_samples, n_outputs) or on a grid
            Targets. Where the features are ``(n_samples, *grid, d)``, those of a
            regression are ``(n_samples, *grid)`` or ``(n_samples, *grid, k)``.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows, in the head's solves and in the backbone's loss. A
            row of weight zero counts as absent.
        X_val, y_val : array-like, default=None
            Held-out rows, in place of a ``validation_fraction`` of the training rows.
        sample_weight_val : array-like, default=None
            Weights of the held-out rows.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            Where a parameter, the data or the backbone can't be used, or with
            ``warm_start`` the backbone or ``sample_norm`` has changed. What was fitted
            before is kept.
        FloatingPointError
            Where the training diverges, again and again.

        Warns
        -----
        ConvergenceWarning
            Where the training diverged and went on from an earlier state, where it was
            interrupted (Ctrl-C), which leaves a fitted estimator, and where the
            backbone's features don't vary.
        """
        with all_or_nothing(self), naming_weights(sample_weight), own_settings():
            again = self.warm_start and hasattr(self, "net_")
            if again:
                refuse_changed_network(self)
            settle_terms(self)
            train = read_rows(
                self, X, y, sample_weight, reset=not again, new_targets=True
            )
            held_out = self._read_held_out(X_val, y_val, sample_weight_val)
            if not again:
                self._learn_targets(train.chosen(train.y), train.chosen(train.weight))
            problem = state_problem(self, train, held_out)
            device = problem.batches.device
            with lapack_on_one_thread():
                with seeded(problem.seed, device):
                    net = build_net(self, problem, self.net_.module_ if again else None)
                    with naming_features(net, problem):
                        net.fit(problem.batches, None)
                with naming_features(net, problem):
                    self._finish(net, problem)
        return self

    def _read_held_out(self, X: Any, y: Any, sample_weight: Any) -> Rows | None:
        if X is None and y is None:
            if sample_weight is not None:
                raise ValueError("sample_weight_val was given without X_val and y_val.")
            return None
        if X is None or y is None:
            missing = "X_val" if X is None else "y_val"
            raise ValueError(f"{missing} is missing; pass X_val and y_val together.")
        try:
            return read_rows(self, X, y, sample_weight, reset=False)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"held-out rows (X_val, y_val): {error}") from error

    def _learn_targets(self, y: NDArray[Any], weight: NDArray[Any] | None) -> None:
        """Learn how to encode y."""
        self._targets = self._kind_of_targets.fitted(y, weight)
        self.n_outputs_ = self._targets.n_outputs

    def _finish(self, net: CFLLNet, problem: Problem) -> None:
        """Solve the exact head over all rows, and publish what was learnt."""
        path = self._solve(net, problem)
        self.n_recoveries_ = net.n_recoveries_
        history = net.history
        if self.warm_start and "history_" in vars(self):
            history = type(history)([*vars(self)["history_"], *history])
            for i, row in enumerate(history):
                row["epoch"] = i + 1
        self.history_, self.n_iter_ = history, len(history)
        self._adopt(net, problem.batches.input_dtype)
        self._publish(net, problem, path)
        net.release()

    def _solve(self, net: CFLLNet, problem: Problem) -> AnyPath:
        """Solve the exact head over all rows."""
        head = net.module_.head
        alpha = check_alpha(self.alpha, head.weight.shape[1])
        path, self.alpha_, errors = solve_head(
            net,
            problem,
            alpha=alpha,
            pooled=is_classifier(self),
            loss_unit=self._loss_unit,
            leave_out=bool(self.store_loo),
        )
        self.alpha_path_ = described_path(errors)
        self._sums = HeadSums.of(path.moments, problem)
        return path

    def _adopt(self, net: CFLLNet, input_dtype: torch.dtype) -> None:
        """Predict by a net from now on."""
        self.net_, self._input_dtype = net, input_dtype

    def _as_trained(self, **params: Any) -> Any:
        """Give a view of the estimator by which trained parts are used further.

        No rows are held out, and the precision is that of the training.
        """
        view = copy.copy(self)
        dtype = str(self._sums.dtype).removeprefix("torch.")
        view.__dict__.update(early_stopping=False, dtype=dtype, **params)
        return view

    # For subclasses -------------------------------------------------------------

    def _read_weights(
        self, sample_weight: Any, X: Any, y: NDArray[Any], *, reset: bool
    ) -> Any:
        return read_weights(sample_weight, X)

    def _read_targets(self, y: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _encode(self, y: NDArray[Any], name: str = "y") -> Any:
        """Give targets as the head sees them."""
        return self._targets.encode(y, name)

    @property
    def _loss_unit(self) -> float:
        """Squared error of targets that are not predicted at all, about."""
        return 1.0

    @property
    def _weights_are_relative(self) -> bool:
        """Whether weights are other than counts of equal rows."""
        return False

    @property
    def _output_weight(self) -> Callable[..., Tensor] | None:
        """The net's ``output_weight``."""
        return None

    def _publish(self, net: CFLLNet, problem: Problem, path: AnyPath) -> None:
        """Set the coefficients, and what else is learnt once the head is solved."""
        raise NotImplementedError

    store_loo: bool = False
    _kind_of_targets: Any
    _train_score: Callable[..., Tensor] | None = None
