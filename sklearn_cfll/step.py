"""One training step: a gradient step on the backbone and a solve of the head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from skorch.utils import TeeGenerator
from torch import Tensor

from sklearn_cfll.batches import Batch
from sklearn_cfll.checks import refuse_axes, refuse_sizes, takes_weights
from sklearn_cfll.loop import TrainingLoop
from sklearn_cfll.losses import objective_of
from sklearn_cfll.network import features_of
from sklearn_cfll.schedules import rate_factor, set_rates
from sklearn_cfll.stepping import clear_gradients


class TrainingStep(TrainingLoop):
    """What a step does, in both orders and under a line search.

    A subclass owns the network, the optimizer and the head's update.
    """

    update_order: Any
    output_weight: Any
    objective: Any
    batch_transform: Any
    last_: Any

    def train_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Take one step of the backbone and of the head."""
        if self.batch_transform is not None:
            batch = self._augmented(batch)
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
            clear_gradients(self.optimizer_)
            with torch.enable_grad():  # some optimizers call it without
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
                self._update_head(batch, self._features_of(batch))
        self.step_ += 1
        return first[0]

    def _augmented(self, batch: Batch) -> Batch:
        """Let the user's transform change the inputs."""
        inputs, targets = batch
        if "X" not in inputs:
            raise ValueError(
                "batch_transform changes the input named X, but the batches hold "
                f"{sorted(inputs)}; name one so, or let the Dataset change its samples."
            )
        # A copy, since it may write in place and the batch may be the user's own rows.
        X = self.batch_transform(inputs["X"].clone())
        if not isinstance(X, Tensor) or len(X) != len(inputs["X"]):
            got = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
            raise ValueError(
                f"batch_transform returned {got} for X of shape "
                f"{tuple(inputs['X'].shape)}; it must return a tensor of as many "
                "samples."
            )
        return {**inputs, "X": X}, targets

    def train_step_single(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss and its gradient in the backbone, at a detached head."""
        inputs, targets = batch
        features = self._features_of(batch)
        if self.update_order == "head_first":
            self._update_head(batch, features)
        # The head is optimal, so that the loss has no gradient through it
        # (the envelope theorem; theorems 1 and 2 of the paper).
        predictions = self.module_.head(features)
        loss = self.get_loss(predictions, targets, X=inputs, training=True)
        step = {"loss": loss.detach(), "y_pred": predictions.detach()}
        if self.searches_:
            weight = self.row_weights(targets, inputs.get("sample_weight"))
            loss = loss + self.head_update_.penalty(
                self.module_.head, features, weight, self.last_[:2]
            )
            step["objective"] = loss.detach()
        if self.objective is not None:
            loss = objective_of(loss, self.objective)
            step["objective"] = loss.detach()
        if loss.requires_grad:
            loss.backward()
            self.has_gradient_ = True
        return step

    def _features_of(self, batch: Batch) -> Tensor:
        """Run the backbone; one with BatchNorm can't take a single row."""
        inputs, targets = batch
        X = inputs.get("X")
        # Networks that write to their input get copies: a full batch is the user's own
        # rows, and a step may take the features of a batch several times. The first
        # batch, a copy for all, tells of most; what writes later is noticed then.
        if isinstance(X, Tensor) and self.writes_ is not False:
            X = X.clone()
        version = _version_of(X)
        try:
            features: Tensor = features_of(self.module_.backbone, X, inputs)
        except ValueError as error:
            if len(targets) > 1:
                raise
            raise ValueError(
                f"the backbone raised ValueError for a batch of one row: {error}; set "
                f"batch_size to 3 or more (now {self.batch_size}), which leaves no "
                "such batch, or take LayerNorm in place of BatchNorm."
            ) from error
        if not self.writes_:
            self.writes_ = _version_of(X) != version
        kept = isinstance(features, Tensor) and features.shape[:-1]
        if kept != targets.shape[:-1]:
            refuse_axes(features, targets)
        return features

    def get_loss(
        self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False
    ) -> Tensor:
        """Compute the criterion, with the batch's weights where it has any."""
        weight = X.get("sample_weight") if isinstance(X, dict) else None
        weight = self.row_weights(y_true, weight)
        if weight is None:
            return self.criterion_(y_pred, y_true)
        try:
            return self.criterion_(y_pred, y_true, weight)
        except TypeError as error:
            if takes_weights(self.criterion_):
                raise
            raise TypeError(
                f"criterion {type(self.criterion_).__name__} takes no weights, but the "
                "rows have some; give it a third argument, sample_weight, or leave the "
                "weights out."
            ) from error

    def row_weights(
        self, targets: Tensor, sample_weight: Tensor | None
    ) -> Tensor | None:
        """Give the weights that loss and solves use.

        Parameters
        ----------
        targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,) or None

        Returns
        -------
        weight : Tensor of shape (n,), or (n, ..., k) by ``output_weight``, or None
        """
        if self.output_weight is None:
            return sample_weight
        weight: Tensor = self.output_weight(targets, sample_weight)
        return weight

    def _update_head(self, batch: Batch, features: Tensor) -> None:
        inputs, targets = batch
        self.head_update_.update_(
            self.module_.head,
            features,
            targets,
            self.row_weights(targets, inputs.get("sample_weight")),
            self.head_progress_,
        )

    def _start_head(self, batch: Batch) -> None:
        """Prepare the head and its update by the first batch."""
        inputs, targets = batch
        with torch.no_grad():
            features = self._features_of(batch)
        refuse_sizes(features, targets, self.module_.head)
        weight = self.row_weights(targets, inputs.get("sample_weight"))
        self.head_update_.start_(self.module_.head, features, targets, weight)

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
        factor = rate_factor(self.lr_schedule_, progress)
        if factor is not None:
            set_rates(self.optimizer_, self.rates_, factor)

    def validation_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Predict a held-out batch."""
        inputs, targets = batch
        with torch.inference_mode():
            X = inputs.get("X")
            X = X.clone() if isinstance(X, Tensor) else X
            predictions = self.module_(**{**inputs, "X": X})
            loss = self.get_loss(predictions, targets, X=inputs)
        return {"loss": loss, "y_pred": predictions}


def _version_of(X: Any) -> int:
    """Count the writes to a tensor."""
    return X._version if isinstance(X, Tensor) and not X.is_inference() else 0
