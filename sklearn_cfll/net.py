"""The skorch net: one training step of backbone and closed-form head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochTimer
from skorch.utils import TeeGenerator, to_device
from torch import Tensor, nn
from torch.utils.data import Subset

from sklearn_cfll.batches import Batch, TensorBatches
from sklearn_cfll.callbacks import Progress, StopTraining
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.losses import SquaredLoss, Tally
from sklearn_cfll.optimizers import (
    SCHEDULES,
    NoOptimizer,
    has_learnable_parameters,
    searches_along_lines,
)
from sklearn_cfll.recovery import FEW_STEPS, Recovery, Trouble, unsolved
from sklearn_cfll.updates import HeadUpdate, ProximalUpdate


class Network(nn.Module):
    """A backbone and the closed-form head on its features.

    Parameters
    ----------
    backbone : torch.nn.Module
    head : ClosedFormHead
    """

    def __init__(self, backbone: nn.Module, head: ClosedFormHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, X: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Predict targets; the weight is there for batches that carry one.

        Parameters
        ----------
        X : Tensor of shape (n, ...)
        sample_weight : Tensor of shape (n,), default=None
            Unused.

        Returns
        -------
        predictions : Tensor of shape (n, ..., k)
        """
        return self.head(self.backbone(X))


class _StepUndone(Exception):  # noqa: N818 (no error: the pass starts again)
    """The training went back to an earlier state."""


class CFLLNet(NeuralNet):
    """Train a backbone by gradient steps and its last layer in closed form.

    The estimators compose this net; it is for those who want skorch itself. Targets
    are taken as they are: centre and scale them.

    Parameters
    ----------
    module : class or torch.nn.Module
        The backbone, without its last linear layer.
    n_features : int
        Features that the backbone gives.
    n_outputs : int
        Columns of the targets.
    alpha : float or Tensor of shape (n_outputs,), default=0.01
        Ridge of the head relative to the mean feature energy.
    prox : float, (start, end) or "auto", default=(1.0, 100.0)
        Pull of each solution to the last head; a pair is annealed geometrically, and
        "auto" follows how well each head predicts the next batch.
    head_update : HeadUpdate, default=None
        Another rule by which a batch moves the head, such as ``KalmanUpdate()``; it
        then rules alone, and ``alpha`` and ``prox`` are not used. It is copied.
    update_order : {"head_first", "backbone_first"}, default="head_first"
        Whether a step solves the head before the backbone's gradient step, with one
        forward pass, or after it, with two (the paper's algorithm 1).
    lr_schedule : {"cosine", "linear", "constant"} or callable, default="cosine"
        Factor of the rate at a progress in [0, 1).
    train_score : callable, default=None
        ``f(predictions, targets, sample_weight)``, tallied over each epoch's batches;
        None records R2.
    valid_score : callable, default=None
        ``f(net, predictions)``, the score of the held-out rows after an epoch.
    decode : callable, default=None
        Turns raw predictions into what :meth:`predict` returns.
    **kwargs
        As :class:`skorch.NeuralNet` takes them. Unlike there, ``optimizer`` is AdamW,
        ``train_split`` and ``verbose`` are off, and batches are slices of tensors in
        memory unless ``iterator_train`` is given.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606, 2025.
    """

    def __init__(
        self,
        module: Any,
        *,
        n_features: int,
        n_outputs: int,
        alpha: float | Tensor = 1e-2,
        prox: str | float | tuple[float, float] = (1.0, 100.0),
        head_update: HeadUpdate | None = None,
        update_order: str = "head_first",
        lr_schedule: str | Callable[[float], float] = "cosine",
        train_score: Callable[..., Tensor] | None = None,
        valid_score: Callable[..., float] | None = None,
        decode: Callable[[np.ndarray], np.ndarray] | None = None,
        criterion: Any = SquaredLoss,
        optimizer: Any = torch.optim.AdamW,
        lr: float = 2e-2,
        train_split: Any = None,
        iterator_train: Any = None,
        iterator_valid: Any = None,
        use_caching: Any = False,
        verbose: int = 0,
        **kwargs: Any,
    ) -> None:
        self.n_features = n_features
        self.n_outputs = n_outputs
        self.alpha = alpha
        self.prox = prox
        self.head_update = head_update
        self.update_order = update_order
        self.lr_schedule = lr_schedule
        self.train_score = train_score
        self.valid_score = valid_score
        self.decode = decode
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            train_split=train_split,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            use_caching=use_caching,
            verbose=verbose,
            **kwargs,
        )

    module_: Any
    optimizer_: Any
    last_: Any

    # Building -------------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [("epoch_timer", EpochTimer())]

    def initialize_module(self) -> CFLLNet:
        """Join the backbone to a head that is zero, or take a network as it is."""
        super().initialize_module()
        if not isinstance(self.module_, Network):
            self.module_ = Network(
                self.module_, ClosedFormHead(self.n_features, self.n_outputs)
            )
        return self

    def torch_compile(self, module: Any, name: str) -> Any:
        """Compile the backbone in place, which keeps the names of its state."""
        if self.compile and isinstance(module, Network):
            module.backbone.compile(**self.get_params_for("compile"))
        return module

    def get_all_learnable_params(self) -> Any:
        """Yield the backbone's parameters; the head has none."""
        return self.module_.backbone.named_parameters()

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> CFLLNet:
        """Make the optimizer, where the backbone has parameters to train."""
        if has_learnable_parameters(self.module_.backbone):
            super().initialize_optimizer(*args, **kwargs)
            if not hasattr(self.optimizer_, "param_groups"):
                raise TypeError(
                    f"optimizer {self.optimizer!r} made a "
                    f"{type(self.optimizer_).__name__}; it must make a "
                    "torch.optim.Optimizer."
                )
            return self
        self.optimizer_ = NoOptimizer()
        return self

    # Data -----------------------------------------------------------------------

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Wrap arrays as batches in memory."""
        if isinstance(X, TensorBatches):
            return X
        if self.iterator_train is not None or not hasattr(X, "__array__"):
            return super().get_dataset(X, y)
        if y is not None:
            y = np.asarray(y)
            y = y[:, None] if y.ndim == 1 else y
        return TensorBatches(
            X,
            y,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(torch.initial_seed()),
            dtype=_dtype_of(self.module_.backbone),
            device=self.device,
        )

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Iterate over batches in memory, shuffled in training alone."""
        if isinstance(dataset, Subset) and isinstance(dataset.dataset, TensorBatches):
            dataset = dataset.dataset.take(dataset.indices)
        own = self.iterator_train if training else self.iterator_valid
        if own is not None or not isinstance(dataset, TensorBatches):
            iterator = super().get_iterator(dataset, training=training)
            n_batches = len(iterator)
        else:
            iterator = dataset if training else dataset.in_order()
            n_batches = dataset.n_batches
        if training:
            self.n_steps_ = max(1, self.epochs_ * n_batches)
            if isinstance(dataset, TensorBatches):
                self.recovery_.set_energy(dataset.encoded)
        return iterator

    # Training -------------------------------------------------------------------

    def fit_loop(self, X: Any, y: Any = None, epochs: Any = None, **kwargs: Any) -> Any:
        """Train; counts the steps for the schedules."""
        epochs = self.max_epochs if epochs is None else epochs
        self.epochs_, self.n_steps_, self.step_ = epochs, 1, 0
        self.head_update_ = self._own_update()
        self.searches_ = searches_along_lines(self.optimizer_)
        self.rates_ = [group.get("lr") for group in self.optimizer_.param_groups]
        self._listen()
        self.recovery_, self.starting_ = Recovery(self), True
        self.n_earlier_epochs_ = len(self.history)
        try:
            super().fit_loop(X, y, epochs=epochs, **kwargs)
        except KeyboardInterrupt as stop:
            if self.recovery_.check(self) is not None:
                self.recovery_.restore(self)
            if not isinstance(stop, StopTraining):
                self._end_interrupted()
            self.recovery_.finish()
            raise  # skorch ends the training by it
        self.recovery_.finish()
        return self

    def _listen(self) -> None:
        """Note what the callbacks want to hear of, since a step is short."""
        callbacks = [callback for _, callback in self.callbacks_]
        self.batch_listeners_ = any(
            _overrides(callback, "on_batch_begin", "on_batch_end")
            for callback in callbacks
        )
        self.grad_listeners_ = any(
            _overrides(callback, "on_grad_computed") for callback in callbacks
        )
        self.progress_ = [c for c in callbacks if isinstance(c, Progress)]

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell the callbacks; one that interrupts after an epoch stops the training."""
        if method_name in ("on_epoch_begin", "on_epoch_end"):
            self.epoch_ended_ = method_name == "on_epoch_end"
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as stop:
            if method_name == "on_epoch_end":
                raise StopTraining from stop
            raise

    def _end_interrupted(self) -> None:
        """Warn, and leave no row of an epoch that wasn't ended."""
        epoch = len(self.history) - self.n_earlier_epochs_
        if epoch and not self.epoch_ended_:
            del self.history[-1]
        warnings.warn(
            f"training was interrupted in epoch {max(1, epoch)} of {self.epochs_}; the "
            "best state so far is kept.",
            ConvergenceWarning,
            stacklevel=2,
        )

    @property
    def n_recoveries_(self) -> int:
        """Times that the training went back to an earlier state."""
        return self.recovery_.n_recoveries

    def _own_update(self) -> HeadUpdate:
        if self.head_update is None:
            return ProximalUpdate(self.alpha, self.prox)
        if not isinstance(self.head_update, HeadUpdate):
            raise TypeError(
                "head_update must be None or a HeadUpdate, such as KalmanUpdate(); got "
                f"{self.head_update!r}."
            )
        return copy.deepcopy(self.head_update)

    def train_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Take one step of the backbone and of the head."""
        progress = self.step_ / self.n_steps_
        self._set_rates(progress)
        self.head_progress_ = self.step_ / max(1, self.n_steps_ - 1)
        if self.starting_:
            self._start_head(batch)
            self.starting_ = False
        first: list[dict[str, Any]] = []
        if self.searches_:
            self._remember_head()

        def closure() -> Tensor:
            if first and self.searches_:
                self._recall_head()
            self.optimizer_.zero_grad()
            step = self.train_step_single(batch)
            first.append(step)
            if self.grad_listeners_:
                self.notify(
                    "on_grad_computed",
                    named_parameters=TeeGenerator(self.get_all_learnable_params()),
                    batch=batch,
                    training=True,
                )
            return step.get("objective", step["loss"])

        self.recovery_.step(self.optimizer_, closure)
        if self.searches_:
            self._recall_head()  # the last trial need not be the one that was kept
        if self.searches_ or self.update_order == "backbone_first":
            with torch.no_grad():
                self._update_head(batch, self.module_.backbone(batch[0]["X"]))
        self.step_ += 1
        return first[0]

    def train_step_single(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss and its gradient in the backbone, at a detached head."""
        inputs, targets = batch
        features = self.module_.backbone(inputs["X"])
        if features.shape[:-1] != targets.shape[:-1]:
            raise ValueError(
                f"the backbone returned features of shape {tuple(features.shape)} for "
                f"targets of shape {tuple(targets.shape)}; it must keep all axes but "
                "the last."
            )
        if self.update_order == "head_first":
            self._update_head(batch, features)
        # The head is optimal, so that the loss has no gradient through it
        # (the envelope theorem; theorems 1 and 2 of the paper).
        predictions = self.module_.head(features)
        loss = self.get_loss(predictions, targets, X=inputs, training=True)
        step = {"loss": loss.detach(), "y_pred": predictions.detach()}
        if self.searches_:
            loss = loss + self.head_update_.penalty(
                self.module_.head, features, inputs.get("sample_weight"), self.last_[:2]
            )
            step["objective"] = loss.detach()
        if loss.requires_grad:
            loss.backward()
        return step

    def get_loss(
        self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False
    ) -> Tensor:
        """Compute the criterion, with the batch's weights where it has any."""
        weight = X.get("sample_weight") if isinstance(X, dict) else None
        if weight is None:
            return self.criterion_(y_pred, y_true)
        return self.criterion_(y_pred, y_true, weight)

    def _update_head(self, batch: Batch, features: Tensor) -> None:
        inputs, targets = batch
        self.head_update_.update_(
            self.module_.head,
            features,
            targets,
            inputs.get("sample_weight"),
            self.head_progress_,
        )

    def _start_head(self, batch: Batch) -> None:
        """Prepare the head and its update by the first batch."""
        inputs, targets = batch
        with torch.no_grad():
            features = self.module_.backbone(inputs["X"])
        self.head_update_.start_(
            self.module_.head, features, targets, inputs.get("sample_weight")
        )

    def _remember_head(self) -> None:
        """Keep the head, from which every trial of a step is to start."""
        head = self.module_.head
        update = copy.deepcopy(self.head_update_)
        self.last_ = head.weight, head.bias, head.slope, update

    def _recall_head(self) -> None:
        head = self.module_.head
        head.weight, head.bias, head.slope, update = self.last_
        self.head_update_ = copy.deepcopy(update)

    def _set_rates(self, progress: float) -> None:
        schedule: Any = self.lr_schedule
        schedule = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        if schedule is None:
            return
        for group, rate in zip(self.optimizer_.param_groups, self.rates_, strict=True):
            if rate is not None:
                group["lr"] = rate * schedule(progress)

    def run_single_epoch(
        self,
        iterator: Any,
        training: bool,
        prefix: str,
        step_fn: Callable[..., Any],
        **fit_params: Any,
    ) -> None:
        """Run one pass; one of training that explodes is undone and run again."""
        if iterator is None:
            return
        self._set_training(training)
        if not training:
            self._record(prefix, *self._run_pass(iterator, False, step_fn, fit_params))
            return
        first_step = self.step_
        while True:
            try:
                tallies = self._run_pass(iterator, True, step_fn, fit_params)
                break
            except _StepUndone:
                for progress in self.progress_:
                    progress.on_undo(self.step_ - first_step)
                self.step_, self.starting_ = first_step, True
                self.history[-1]["batches"].clear()
        if not self.batch_listeners_:
            self.history.new_batch()  # skorch's Checkpoint looks for one
        self._record(prefix, *tallies)

    def _run_pass(
        self,
        iterator: Any,
        training: bool,
        step_fn: Callable[..., Any],
        fit_params: dict[str, Any],
    ) -> tuple[Tally, Tally, list[Tensor]]:
        """Take all batches; values stay on the device until it is time to check."""
        loss, score = Tally(), Tally()
        predictions = []
        for given in iterator:
            batch = _as_batch(given, self.device)
            inputs, targets = batch
            if self.batch_listeners_:
                self.notify("on_batch_begin", batch=batch, training=training)
            step = self._try_step(step_fn, batch, fit_params)
            weight = inputs.get("sample_weight")
            size = len(targets) if weight is None else weight.sum()
            loss.add(step["loss"], size)
            if not training:
                predictions.append(step["y_pred"])
            elif self.train_score is not None:
                score.add(self.train_score(step["y_pred"], targets, weight), size)
            if self.batch_listeners_:
                prefix = "train" if training else "valid"
                self.history.record_batch(f"{prefix}_loss", step["loss"].item())
                self.history.record_batch(f"{prefix}_batch_size", len(targets))
                self.notify("on_batch_end", batch=batch, training=training, **step)
            if training:
                for progress in self.progress_:
                    progress.on_step()
                if self.recovery_.watch(step["loss"]):
                    self._check()
        if training and self._must_check(loss):
            self._check()
        return loss, score, predictions

    def _must_check(self, loss: Tally) -> bool:
        """Whether a pass may not end unchecked; one of few steps may."""
        return (
            self.train_split is not None
            or self.step_ >= self.n_steps_
            or self.recovery_.n_waiting >= FEW_STEPS
            or not np.isfinite(loss.mean())
        )

    def _try_step(
        self, step_fn: Callable[..., Any], batch: Batch, fit_params: dict[str, Any]
    ) -> Any:
        """Take a step; one that LAPACK gives up on is undone."""
        try:
            return step_fn(batch, **fit_params)
        except torch.linalg.LinAlgError:
            self._undo(unsolved(self))

    def _check(self) -> None:
        trouble = self.recovery_.check(self)
        if trouble is not None:
            self._undo(trouble)

    def _undo(self, trouble: Trouble) -> NoReturn:
        self.recovery_.undo(self, trouble)
        raise _StepUndone

    def _record(
        self, prefix: str, loss: Tally, score: Tally, predictions: list[Tensor]
    ) -> None:
        """Write the epoch's row of the history."""
        row: dict[str, Any] = {f"{prefix}_loss": loss.mean()}
        if prefix == "train":
            r2 = 1 - row["train_loss"]
            row["train_score"] = r2 if self.train_score is None else score.mean()
            rate = self.optimizer_.param_groups[0].get("lr")
            row["lr"] = rate if rate is None else rate * self.recovery_.rate_factor
            if self.head_update_.prox is not None:
                row["prox"] = self.head_update_.prox
        elif self.valid_score is not None:
            row["valid_score"] = self.valid_score(self, torch.cat(predictions))
        for name, value in row.items():
            self.history.record(name, value)
        earlier = self.history[:-1, f"{prefix}_loss"] if len(self.history) > 1 else []
        best = row[f"{prefix}_loss"] < min(earlier, default=np.inf)
        self.history.record(f"{prefix}_loss_best", best)

    def validation_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Predict a held-out batch."""
        inputs, targets = batch
        with torch.inference_mode():
            predictions = self.module_(inputs["X"])
            loss = self.get_loss(predictions, targets, X=inputs)
        return {"loss": loss, "y_pred": predictions}

    # Using ----------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets, decoded where the net has a decoder.

        Parameters
        ----------
        X : array of shape (n_samples, ...)

        Returns
        -------
        y : array of shape (n_samples, n_outputs), or as ``decode`` gives it
        """
        predictions = self.predict_proba(X)
        return predictions if self.decode is None else self.decode(predictions)

    def release(self) -> None:
        """Let go of the optimizer and of all that holds training data."""
        self.valid_score = self.train_score = self.train_split = None
        self.optimizer_ = None
        self.progress_, self.last_ = [], None

    def move_to(self, device: torch.device) -> None:
        """Move the network, for predictions on another device.

        Parameters
        ----------
        device : torch.device
        """
        self.module_.to(device)
        self.device = str(device)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        module = state.get("module_")
        if module is not None and next(module.buffers()).device.type != "cpu":
            state["module_"] = copy.deepcopy(module).cpu()
            state["device"] = "cpu"
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _as_batch(batch: Any, device: str) -> Batch:
    """Give what an iterator of the user's own yields the form of our batches."""
    inputs, targets = batch
    if isinstance(inputs, dict):
        return inputs, targets
    return {"X": to_device(inputs, device)}, to_device(targets, device)


def _dtype_of(module: nn.Module) -> torch.dtype:
    """Precision in which a module computes, by its first real parameter."""
    parameters = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(parameters, torch.float32)


def _overrides(callback: Callback, *methods: str) -> bool:
    return any(
        getattr(type(callback), method) is not getattr(Callback, method)
        for method in methods
    )
