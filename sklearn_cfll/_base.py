"""What all estimators share: validate, encode, build, train, solve the head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.callbacks import LRScheduler
from skorch.helper import predefined_split
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
    is_classifier,
)
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_cfll import _defaults as defaults
from sklearn_cfll._device import (
    device_or_cpu,
    place,
    resolve_device,
    resolve_dtype,
    seeded,
)
from sklearn_cfll._final import solve_head
from sklearn_cfll._validation import (
    Rows,
    check_alpha,
    check_prox,
    read_rows,
    read_weights,
    read_X,
    split_rows,
)
from sklearn_cfll.backbones import Backbone, ModuleBackbone, as_backbone
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.callbacks import BestState, Patience, Progress
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.net import CFLLNet, Network
from sklearn_cfll.optimizers import OPTIMIZERS, SCHEDULES, optimizer_factory


@dataclass
class _Problem:
    """One call of fit: its rows, settings resolved for them, and its batches."""

    train: Rows
    held_out: Rows | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    batches: TensorBatches
    held_out_batches: TensorBatches | None


class BaseCFLL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Fits a backbone by gradient steps and its head in closed form.

    A subclass reads and encodes targets, and decodes predictions.
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": "no_validation",
        "alpha": [
            StrOptions({"auto"}),
            Interval(Real, 0, None, closed="left"),
            "array-like",
        ],
        "prox": [Interval(Real, 0, None, closed="neither"), tuple, list, np.ndarray],
        "update_order": [StrOptions({"head_first", "backbone_first"})],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "weight_decay": [None, Interval(Real, 0, None, closed="left")],
        "optimizer_params": [None, dict],
        "lr_schedule": [StrOptions(set(SCHEDULES)), callable],
        "batch_size": [
            StrOptions({"auto", "full"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "max_epochs": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
        ],
        "early_stopping": [StrOptions({"auto"}), "boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "scoring": [None, StrOptions(set(get_scorer_names())), callable],
        "dtype": [StrOptions({"auto", "float32", "float64"})],
        "device": [str, torch.device],
        "callbacks": [None, list, tuple],
        "net_params": [None, dict],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # Set by the subclasses.
    _rows_to_hold_out: int

    def __init__(
        self,
        backbone: Any = None,
        *,
        alpha: Any = "auto",
        prox: Any = (0.3, 100.0),
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
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.alpha = alpha
        self.prox = prox
        self.update_order = update_order
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer_params = optimizer_params
        self.lr_schedule = lr_schedule
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.scoring = scoring
        self.dtype = dtype
        self.device = device
        self.callbacks = callbacks
        self.net_params = net_params
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

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
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
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
            Where a parameter, the data or the backbone can't be used. What was fitted
            before is kept.
        FloatingPointError
            Where the training diverged.
        """
        with _all_or_nothing(self):
            again = self.warm_start and hasattr(self, "net_")
            train = read_rows(self, X, y, sample_weight, reset=not again)
            held_out = self._read_held_out(X_val, y_val, sample_weight_val)
            problem = self._state_problem(train, held_out, again)
            with seeded(problem.seed, problem.device):
                net = self._build_net(problem, again)
                self._train(net, problem)
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
        return read_rows(self, X, y, sample_weight, reset=False)

    def _state_problem(
        self, train: Rows, held_out: Rows | None, again: bool
    ) -> _Problem:
        """Split, encode and resolve what is "auto"."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        device = resolve_device(self.device)
        dtype = resolve_dtype(
            self.dtype, len(train), device, defaults.FLOAT64_ROWS
        )
        if not again:
            self._fit_encoder(train.chosen(train.y), train.chosen(train.weight))
        hold_out = self.early_stopping
        if hold_out == "auto":
            hold_out = len(train) >= self._rows_to_hold_out
        if held_out is None and hold_out:
            train, held_out = split_rows(
                train, self.validation_fraction, seed, stratify=is_classifier(self)
            )
        batch_size = self._batch_size(len(train))
        generator = torch.Generator().manual_seed(seed)
        batches = self._as_batches(
            train, dtype, device, batch_size=batch_size, generator=generator
        )
        held_out_batches = None
        if held_out is not None:
            rows = max(1, min(batches.n_samples, 2048))
            held_out_batches = self._as_batches(
                held_out, dtype, device, batch_size=rows
            )
        return _Problem(train, held_out, seed, device, dtype, batches, held_out_batches)

    def _batch_size(self, n_samples: int) -> int:
        if self.batch_size == "full":
            return n_samples
        if self.batch_size == "auto":
            return defaults.batch_size(n_samples)
        return min(int(self.batch_size), n_samples)

    def _as_batches(
        self, rows: Rows, dtype: torch.dtype, device: torch.device, **kwargs: Any
    ) -> TensorBatches:
        weight = rows.chosen(rows.weight)
        limit = torch.finfo(dtype).max
        if dtype == torch.float32 and rows.X.dtype == np.float64:
            _check_range(rows.X, limit)
        return TensorBatches(
            rows.X,
            self._encode(rows.chosen(rows.y)),
            None if weight is None else weight / weight.mean(),
            rows=rows.index,
            labels=rows.chosen(rows.y),
            dtype=dtype,
            device=device,
            **kwargs,
        )

    def _build_net(self, problem: _Problem, again: bool) -> CFLLNet:
        """Make the skorch net, with a new network or a copy of the trained one."""
        if again:
            network = copy.deepcopy(self.net_.module_)
            place(network, problem.device, problem.dtype)
            network.head.double() if problem.device.type != "mps" else None
        else:
            network = self._build_network(problem)
        factory, lr, params = optimizer_factory(
            self.optimizer, self.lr, self.weight_decay, self.optimizer_params
        )
        callbacks = self._callbacks(problem)
        schedule = self.lr_schedule
        if any(isinstance(_bare(c), LRScheduler) for c in callbacks):
            schedule = "constant"  # the user's scheduler rules alone
        valid = problem.held_out_batches
        settings: dict[str, Any] = {
            "n_features": network.head.weight.shape[0],
            "n_outputs": network.head.weight.shape[1],
            "alpha": self._alpha_in_training(network.head),
            "prox": check_prox(self.prox),
            "update_order": self.update_order,
            "lr_schedule": schedule,
            "train_score": self._train_score,
            "valid_score": None if valid is None else self._valid_score(problem),
            "decode": self._decode,
            "optimizer": factory,
            "lr": lr,
            "max_epochs": self._epochs(problem.batches),
            "batch_size": problem.batches.batch_size,
            "train_split": None if valid is None else predefined_split(valid),
            "callbacks": callbacks,
            "device": str(problem.device),
            **{f"optimizer__{name}": value for name, value in params.items()},
            **(self.net_params or {}),
        }
        return CFLLNet(network, **settings)

    def _build_network(self, problem: _Problem) -> Network:
        backbone = as_backbone(self.backbone)
        name = _describe(backbone)
        try:
            module = backbone.build(problem.batches)
        except (RuntimeError, MemoryError, OverflowError) as error:
            raise ValueError(
                f"backbone {name} could not be built: {error}"
            ) from error
        module = place(module, problem.device, problem.dtype)
        n_features = _probe(module, name, problem.batches)
        wide = torch.float32 if problem.device.type == "mps" else torch.float64
        n_outputs = problem.batches.targets.shape[-1]
        head = ClosedFormHead(n_features, n_outputs, dtype=wide)
        return Network(module, head.to(problem.device))

    def _epochs(self, batches: TensorBatches) -> int:
        if self.max_epochs == "auto":
            return defaults.max_epochs(batches.n_batches)
        return int(self.max_epochs)

    def _alpha_in_training(self, head: ClosedFormHead) -> float | Tensor:
        if isinstance(self.alpha, str):
            return defaults.ALPHA_IN_TRAINING
        alpha = check_alpha(self.alpha, head.weight.shape[1])
        return alpha if isinstance(alpha, float) else torch.from_numpy(alpha).to(
            head.weight
        )

    def _callbacks(self, problem: _Problem) -> list[Any]:
        """Copies of the user's callbacks between the estimator's own."""
        callbacks: list[Any] = [copy.deepcopy(c) for c in self.callbacks or []]
        stops = self.early_stopping is not False and problem.held_out is not None
        if stops:
            monitor = "valid_loss" if self.scoring is None else "valid_score"
            lower = self.scoring is None
            patience = Patience(monitor, lower, self.n_iter_no_change, self.tol)
            callbacks.insert(0, ("best_state", BestState(monitor, lower)))
            callbacks.append(("patience", patience))
        if self.verbose:
            callbacks.insert(0, ("progress", Progress()))
        return callbacks

    def _train(self, net: CFLLNet, problem: _Problem) -> None:
        net.fit(problem.batches, None)
        failures = int(net.module_.head.n_failures)
        if failures:
            raise FloatingPointError(
                f"{failures} solves of the head were not positive definite; increase "
                f"prox (now {self.prox}) or alpha (now {self.alpha})."
            )

    def _finish(self, net: CFLLNet, problem: _Problem) -> None:
        """Solve the exact head over all rows, and publish what was learnt."""
        network = net.module_
        weight = problem.train.chosen(problem.train.weight)
        unit = 1.0 if weight is None else 1 / weight.mean()
        alpha = self.alpha
        if not isinstance(alpha, str):
            alpha = check_alpha(alpha, network.head.weight.shape[1])
        path, chosen = solve_head(
            network,
            problem.batches,
            problem.held_out_batches,
            alpha=alpha,
            pooled=is_classifier(self),
            unit=unit,
        )
        kept = alpha if chosen is None else chosen
        self.alpha_ = defaults.ALPHA_IN_TRAINING if isinstance(kept, str) else kept
        self._calibrate(network, problem, path, unit)
        history = net.history
        if self.warm_start and hasattr(self, "history_"):
            history = type(history)([*self.history_, *history])
        net.release()
        self.net_, self.history_, self.n_iter_ = net, history, len(history)
        self._publish_coefficients(network.head)

    def _calibrate(self, network: Network, problem: Any, path: Any, unit: Any) -> None:
        """Fit what probabilities need; nothing for a regressor."""

    def _valid_score(self, problem: _Problem) -> Callable[[CFLLNet, Tensor], float]:
        """Score of the held-out rows, the user's or the estimator's own."""
        rows = problem.held_out
        y, weight = rows.chosen(rows.y), rows.chosen(rows.weight)
        if self.scoring is None:
            return lambda net, predictions: self._score_predictions(
                self._decode(predictions.double().cpu().numpy()), y, weight
            )
        scorer = check_scoring(self, scoring=self.scoring)

        def score(net: CFLLNet, predictions: Tensor) -> float:
            view = copy.copy(self)
            view.net_ = net
            view.__dict__.pop("feature_names_in_", None)
            net.module_.eval()
            kwargs = {} if weight is None else {"sample_weight": weight}
            return float(scorer(view, rows.chosen(rows.X), y, **kwargs))

        return score

    # Using ----------------------------------------------------------------------

    @property
    def backbone_(self) -> torch.nn.Module:
        """The trained backbone."""
        check_is_fitted(self)
        return self.net_.module_.backbone

    def transform(self, X: Any) -> NDArray[Any]:
        """Compute the backbone's features.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)

        Returns
        -------
        features : array of shape (n_samples, d)
            In the dtype of X; what the head multiplies by ``coef_``.
        """
        check_is_fitted(self)
        X = read_X(self, X, reset=False)
        return self._run(self.net_.module_.backbone, X).astype(X.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return int(self.net_.module_.head.weight.shape[0])

    def _raw_predictions(self, X: Any) -> NDArray[np.float64]:
        """Outputs of the network (n_samples, k), still encoded, in float64."""
        check_is_fitted(self)
        X = read_X(self, X, reset=False)
        return self._run(self.net_.module_, X).astype(np.float64, copy=False)

    @torch.inference_mode()
    def _run(self, module: torch.nn.Module, X: NDArray[Any]) -> NDArray[Any]:
        """Send X through a module in chunks of bounded memory."""
        network = self.net_.module_.eval()
        head = network.head
        dtype = next(
            (p.dtype for p in network.backbone.parameters() if p.is_floating_point()),
            torch.float32 if head.weight.device.type == "mps" else torch.float64,
        )
        batches = TensorBatches(X, dtype=dtype, batch_size=1, device=head.weight.device)
        chunks = batches.chunks(sum(head.weight.shape))
        outputs = [module(chunk) for chunk, _ in chunks]
        return torch.cat(outputs).cpu().numpy()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "net_"):
            # Trained on a device that isn't there: it goes on on the CPU.
            device = device_or_cpu(self.device)
            self.net_.module_.to(device)
            self.net_.device = str(device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # For subclasses -------------------------------------------------------------

    def _read_weights(
        self, sample_weight: Any, X: Any, y: NDArray[Any], *, reset: bool
    ) -> Any:
        return read_weights(sample_weight, X)

    def _read_targets(self, y: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _fit_encoder(self, y: NDArray[Any], weight: NDArray[Any] | None) -> None:
        raise NotImplementedError

    def _encode(self, y: NDArray[Any]) -> NDArray[np.float64]:
        raise NotImplementedError

    def _decode(self, predictions: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def _score_predictions(self, predictions: Any, y: Any, weight: Any) -> float:
        raise NotImplementedError

    def _publish_coefficients(self, head: ClosedFormHead) -> None:
        raise NotImplementedError

    _train_score: Callable[..., Tensor] | None = None


@contextmanager
def _all_or_nothing(estimator: BaseEstimator) -> Iterator[None]:
    """Give a fit that fails no trace: what was fitted before stands as it was."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


@torch.no_grad()
def _probe(module: torch.nn.Module, name: str, batches: TensorBatches) -> int:
    """Run the backbone on a few rows; give the number of features, or say the fault."""
    index = torch.arange(min(2, batches.n_samples))
    inputs, targets = batches[index]
    X = inputs["X"]
    given = f"X of shape {tuple(X.shape)}"
    module.eval()
    try:
        features = module(X)
    except Exception as error:
        raise ValueError(
            f"backbone {name} raised {type(error).__name__} for {given}: {error}"
        ) from error
    if not isinstance(features, Tensor):
        raise TypeError(
            f"backbone {name} returned a {type(features).__name__} for {given}; it "
            "must return one tensor of features, (n_samples, n_features)."
        )
    wanted = tuple(targets.shape[:-1])
    if tuple(features.shape[:-1]) != wanted or features.shape[-1] == 0:
        shape = ", ".join(map(str, [*wanted, "n_features"]))
        raise ValueError(
            f"backbone {name} returned features of shape {tuple(features.shape)} for "
            f"{given}; it must return ({shape}) with n_features of at least 1."
        )
    if not features.isfinite().all():
        raise ValueError(
            f"backbone {name} returned features that are not finite for {given}; "
            "scale X or check the backbone's initial weights."
        )
    module.train()
    return int(features.shape[-1])


def _describe(backbone: Backbone) -> str:
    if isinstance(backbone, ModuleBackbone):
        return type(backbone.module).__name__
    factory = getattr(backbone, "factory", None)
    return getattr(factory, "__name__", type(backbone).__name__)


def _bare(callback: Any) -> Any:
    callback = callback[1] if isinstance(callback, tuple) else callback
    return callback() if isinstance(callback, type) else callback


def _check_range(X: NDArray[Any], limit: float) -> None:
    largest = max(abs(float(X.max())), abs(float(X.min())))
    if largest > limit:
        raise ValueError(
            f"X holds {largest:.3g}, beyond float32's range; scale X or set "
            "dtype='float64'."
        )
