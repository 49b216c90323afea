"""The passes over the rows: what is tallied, recorded, undone, interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from skorch.utils import to_device
from torch import Tensor

from sklearn_cfll.batches import Batch, TensorBatches
from sklearn_cfll.callbacks import Progress, StopTraining
from sklearn_cfll.losses import Tally
from sklearn_cfll.optimizers import has_learnable_parameters, searches_along_lines
from sklearn_cfll.recovery import FEW_STEPS, Recovery, Trouble, unsolved
from sklearn_cfll.schedules import base_rates, reset_rates
from sklearn_cfll.stepping import (
    refuse_autocast,
    refuse_inference_mode,
    set_mode,
    stepping,
    tell_no_gradient,
)


class _StepUndone(Exception):  # noqa: N818 (no error: the pass starts again)
    """The training went back to an earlier state."""


class TrainingLoop(NeuralNet):
    """skorch's loop without synchronisation in a step, and with recovery.

    A subclass takes the step and owns the network, the optimizer and the head's
    update.
    """

    module_: Any
    optimizer_: Any
    lr_schedule: Any
    train_score: Any
    valid_score: Any
    _own_update: Any
    writes_: bool | None
    is_training_ = False

    def fit_loop(self, X: Any, y: Any = None, epochs: Any = None, **kwargs: Any) -> Any:
        """Train; counts the steps for the schedules."""
        refuse_inference_mode()
        refuse_autocast(self.module_)
        epochs = self.max_epochs if epochs is None else epochs
        self.writes_, self.has_gradient_ = None, False  # of steps, once there are some
        self.epochs_, self.n_steps_, self.step_ = epochs, 1, 0
        self.head_update_ = self._own_update()
        self.searches_ = searches_along_lines(self.optimizer_)
        self.rates_ = base_rates(self.optimizer_)
        self._listen()
        self.recovery_, self.starting_ = Recovery(self), True
        self.n_earlier_epochs_ = len(self.history)
        self.is_training_ = True
        try:
            super().fit_loop(X, y, epochs=epochs, **kwargs)
        except KeyboardInterrupt as stop:
            if self.recovery_.check(self) is not None:
                self.recovery_.restore(self)
                set_mode(self.optimizer_, "eval")
            if not isinstance(stop, StopTraining):
                self._end_interrupted()
            self.recovery_.finish()
            raise  # skorch ends the training by it
        finally:
            self.is_training_ = False
            reset_rates(self.optimizer_)  # for partial_fit, which begins a schedule
        self.recovery_.finish()
        learns = has_learnable_parameters(self.module_.backbone)
        if self.step_ and learns and not self.has_gradient_:
            tell_no_gradient("the backbone")
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
        # A scheduler of the user's rules alone.
        scheduled = any(isinstance(callback, LRScheduler) for callback in callbacks)
        self.lr_schedule_ = None if scheduled else self.lr_schedule

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
        except KeyError as error:
            if self.train_split is not None or "valid_" not in str(error):
                raise
            raise ValueError(
                f"a callback raised KeyError: {error}; no rows are held out, as is "
                "usual for small tables: in fit set early_stopping=True or pass X_val "
                "and y_val (to a CFLLNet a train_split)."
            ) from error

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
                with stepping(self.optimizer_):
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
        placed = isinstance(iterator, TensorBatches)  # on the device already
        for given in iterator:
            batch = _as_batch(given, None if placed else self.device)
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


def _as_batch(batch: Any, device: str | None) -> Batch:
    """Give what an iterator of the user's own yields the form of our batches."""
    inputs, targets = batch
    if not isinstance(inputs, dict):
        inputs = {"X": inputs}
    if device is not None:
        inputs, targets = to_device(inputs, device), to_device(targets, device)
    return inputs, targets[:, None] if targets.ndim == 1 else targets


def _overrides(callback: Callback, *methods: str) -> bool:
    return any(
        getattr(type(callback), method) is not getattr(Callback, method)
        for method in methods
    )
