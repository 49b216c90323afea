"""One call of fit, stated: its rows, encoded and held out, and what "auto" means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils import check_random_state

from sklearn_cfll import _defaults as defaults
from sklearn_cfll._device import resolve_device, resolve_dtype
from sklearn_cfll._numbers import check_range
from sklearn_cfll._validation import Rows, as_backbone, split_rows
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyMoments
from sklearn_cfll.functional.ridge import wide_dtype

_HELD_OUT_BATCH = 2048


@dataclass
class Problem:
    """What a fit works on.

    Attributes
    ----------
    train, held_out : Rows
        Rows as the user gave them; ``held_out`` may be None.
    batches, held_out_batches : TensorBatches
        The same rows, encoded, on the device.
    seed : int
    max_epochs : int
    unit : float
        One unit of the user's weights in terms of the batches' weights.
    row : float
        What a row weighs in the batches: a unit where weights are counts of equal rows,
        and one where they only say which rows matter more.
    removed : float
        Weight that leave-one-out takes from a row at most: a unit where weights are
        counts, and all of it where they aren't.
    fold_moments : list or None
        Moments of the folds of samples on a grid, once a trained network has made
        them: one pass for all that is found by leaving samples out.
    """

    train: Rows
    held_out: Rows | None
    batches: TensorBatches
    held_out_batches: TensorBatches | None
    seed: int
    max_epochs: int
    unit: float
    row: float
    removed: float
    fold_moments: list[AnyMoments] | None = None

    @property
    def held_out_row(self) -> float:
        """What a held-out row weighs in its batches."""
        rows = self.held_out
        return 1.0 if rows is None else row_weight(rows.chosen(rows.weight))

    def put_on_grid(self, estimator: Any, n_grid_axes: int) -> None:
        """Encode the targets anew, as those of the points of a grid."""
        y, weight = (
            self.train.chosen(part) for part in (self.train.y, self.train.weight)
        )
        estimator._learn_grid(y, weight, n_grid_axes)
        self.batches.set_targets(*_encoded(self.train, estimator._encode))
        held_out = self.held_out_batches
        if held_out is not None:
            held_out.batch_size = min(held_out.batch_size, self.batches.batch_size)

    def encode_held_out(self, estimator: Any) -> None:
        """Encode the held-out targets, once it is known whether they are on a grid."""
        if self.held_out is not None and self.held_out_batches is not None:
            encoded, weight = _encoded(
                self.held_out, lambda y: estimator._encode(y, "y_val")
            )
            self.held_out_batches.set_targets(encoded, weight)


def state_problem(estimator: Any, train: Rows, held_out: Rows | None) -> Problem:
    """Hold rows out, encode the targets, and resolve what is "auto"."""
    seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
    place = _Place.of(estimator, train)
    if held_out is None and _holds_out(estimator, len(train)):
        train, held_out = split_rows(
            train,
            estimator.validation_fraction,
            seed,
            stratify=is_classifier(estimator),
        )
    batches = place.batches(
        train,
        estimator._encode,
        batch_size=batch_size_of(estimator.batch_size, len(train)),
        generator=torch.Generator().manual_seed(seed),
    )
    held_out_batches = None
    if held_out is not None:
        held_out_batches = place.batches(
            held_out,
            None,  # later, by encode_held_out
            # Of images and fields no more than the training holds at once.
            batch_size=_HELD_OUT_BATCH if train.X.ndim == 2 else batches.batch_size,
        )
    weight = train.chosen(train.weight)
    row = row_weight(weight)
    counted = are_counts(weight) and not estimator._weights_are_relative
    epochs = estimator.max_epochs
    return Problem(
        train,
        held_out,
        batches,
        held_out_batches,
        seed,
        usual_epochs(batches) if epochs == "auto" else int(epochs),
        _unit(weight),
        row,
        row if counted else np.inf,
    )


def usual_epochs(batches: TensorBatches) -> int:
    """Tell what "auto" means for the number of epochs."""
    rows_of_table = len(batches.sample_shape) == 1
    if rows_of_table and batches.n_samples <= defaults.FULL_BATCH_ROWS:
        return defaults.FULL_BATCH_EPOCHS
    return defaults.max_epochs(batches.n_batches)


@dataclass(frozen=True)
class _Place:
    """Where the rows are computed with, and how precisely."""

    device: torch.device
    dtype: torch.dtype
    input_dtype: torch.dtype

    @classmethod
    def of(cls, estimator: Any, rows: Rows) -> _Place:
        device = resolve_device(estimator.device)
        most = defaults.FLOAT64_ROWS if rows.X.ndim == 2 else 0
        dtype = resolve_dtype(estimator.dtype, len(rows), device, most)
        wide = as_backbone(estimator.backbone).takes_float64
        return cls(device, dtype, wide_dtype(device) if wide else dtype)

    def batches(
        self, rows: Rows, encode: Any, *, batch_size: int, generator: Any = None
    ) -> TensorBatches:
        encoded, weight = (None, None) if encode is None else _encoded(rows, encode)
        if self.input_dtype == torch.float32:
            check_range(rows.X, rows.index, training=generator is not None)
        return TensorBatches(
            rows.X,
            encoded,
            weight,
            rows=rows.index,
            labels=rows.chosen(rows.y),
            batch_size=batch_size,
            generator=generator,
            dtype=self.dtype,
            input_dtype=self.input_dtype,
            device=self.device,
        )


def _encoded(rows: Rows, encode: Any) -> tuple[Any, Any]:
    """Targets as the head sees them, and weights of mean one."""
    encoded, weight = encode(rows.chosen(rows.y)), _scaled(rows.chosen(rows.weight))
    if missing_targets(encoded):
        return _without_missing(encoded, weight)
    return encoded, weight


def missing_targets(y: Any) -> bool:
    """Whether any target is missing."""
    if not isinstance(y, np.ndarray) or y.dtype.kind != "f":
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        quick = np.isnan(y.sum())  # a third of the time, and no memory
    return bool(quick and np.isnan(y).any())


def _without_missing(encoded: Any, weight: Any) -> tuple[Any, Any]:
    """Give zeros for missing targets, and a weight for each row and output."""
    known = ~np.isnan(encoded)
    own = known.astype(float) if weight is None else known * weight[:, None]
    return np.where(known, encoded, 0.0), own


def _scaled(weight: Any) -> Any:
    """Give the weights a mean of one, without overflow on the way."""
    if weight is None:
        return None
    weight = weight / weight.max()
    return weight / weight.mean()


def are_counts(weight: Any) -> bool:
    """Whether weights count equal rows: whole numbers do, others are relative."""
    return weight is None or bool((weight == np.round(weight)).all())


def row_weight(weight: Any) -> float:
    """Give what a row weighs once the mean of the weights is one."""
    return _unit(weight) if are_counts(weight) else 1.0


def _unit(weight: Any) -> float:
    """Give what one unit of the weights becomes when their mean does one."""
    if weight is None:
        return 1.0
    with np.errstate(over="ignore"):  # an infinite unit is more than any row has
        return float(1 / weight.max() / (weight / weight.max()).mean())


def _holds_out(estimator: Any, n_samples: int) -> bool:
    if estimator.early_stopping == "auto":
        return n_samples >= defaults.HELD_OUT_ROWS
    return bool(estimator.early_stopping)


def batch_size_of(batch_size: int | str, n_samples: int) -> int:
    if batch_size == "full":
        return n_samples
    if batch_size == "auto":
        return defaults.batch_size(n_samples)
    return min(int(batch_size), n_samples)
