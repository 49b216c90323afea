"""Reads what the user passes to fit: rows, weights, held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    column_or_1d,
    validate_data,
)
from torch import nn

from sklearn_cfll._grids import read_other_resolution, takes_other_resolutions
from sklearn_cfll._numbers import IN_X, IN_Y, numbers_wanted
from sklearn_cfll.backbones import Backbone, ModuleBackbone, name_of
from sklearn_cfll.mlp import MLP

# Weights whose ratios are larger leave whole batches next to no weight.
_WIDE = 1e12


@dataclass
class Rows:
    """Rows as the user gave them, and which of them to use.

    Attributes
    ----------
    X : array of shape (n, ...)
    y : array of shape (n, ...)
        Checked, not encoded.
    weight : array of shape (n,) or None
    index : int array or None
        The rows in use; None means all.
    """

    X: NDArray[Any]
    y: NDArray[Any]
    weight: NDArray[np.float64] | None = None
    index: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.X) if self.index is None else len(self.index)

    def chosen(self, values: NDArray[Any] | None) -> Any:
        """Give the values, of y or of the weights, of the rows in use."""
        if values is None or self.index is None:
            return values
        return values[self.index]


def read_X(estimator: Any, X: Any, *, reset: bool, least: int = 1) -> NDArray[Any]:  # noqa: N802
    """Check X as scikit-learn does; n-D arrays pass, for backbones that take them."""
    if not reset and _is_plain(X, estimator):
        return X
    with numbers_wanted("X", X, IN_X):
        if not reset and takes_other_resolutions(estimator):
            return read_other_resolution(estimator, X)
        return validate_data(
            estimator,
            X,
            reset=reset,
            dtype=[np.float64, np.float32],
            allow_nd=True,
            ensure_min_samples=least,
        )


def _is_plain(X: Any, estimator: Any) -> bool:
    """Whether X is an array that scikit-learn's checks would give back as it is.

    They take longer than the prediction of one row. What isn't plain goes through
    them, and they say what is wrong.
    """
    if type(X) is not np.ndarray or "feature_names_in_" in vars(estimator):
        return False
    if X.dtype not in (np.float32, np.float64) or X.ndim < 2 or len(X) == 0:
        return False
    if X.shape[1] != estimator.n_features_in_ or X.ndim - 1 != len(
        estimator._sample_shape
    ):
        return False
    with np.errstate(all="ignore"):
        return bool(np.isfinite(X.sum()))


def read_rows(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    reset: bool,
    new_targets: bool | None = None,
) -> Rows:
    """Check X, y and the weights.

    Rows of weight zero are as if they weren't there, and weights that are all one as
    none, which is faster.
    """
    if y is None:
        validate_data(estimator, X, y, reset=reset)  # raises, saying that y is needed
    X = read_X(estimator, X, reset=reset, least=2 if reset else 1)
    if reset:
        estimator._sample_shape = X.shape[1:]
    y = estimator._read_targets(y)
    check_consistent_length(X, y)
    if sample_weight is not None and not np.asarray(sample_weight).any():
        raise ValueError("sample_weight is zero for every row; give some a weight.")
    new_targets = reset if new_targets is None else new_targets
    weight = estimator._read_weights(sample_weight, X, y, reset=new_targets)
    if weight is None or (weight == 1).all():
        return Rows(X, y)
    positive = weight > 0
    if not positive.any():
        raise ValueError(
            "sample_weight times class_weight is zero for every row; give some one."
        )
    return Rows(X, y, weight, None if positive.all() else np.flatnonzero(positive))


def read_column(y: Any) -> NDArray[np.float64]:
    """Check that y holds numbers in a column."""
    with numbers_wanted("y", y, IN_Y):
        y = column_or_1d(y, dtype=np.float64, warn=True)
    return np.asarray(y)


def read_weights(sample_weight: Any, X: NDArray[Any]) -> NDArray[np.float64] | None:
    """Check weights: finite, not negative, one a row."""
    if sample_weight is None:
        return None
    cure = "pass one for each row, or None"
    with numbers_wanted("sample_weight", sample_weight, cure):
        weight = _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
    return np.asarray(weight, dtype=np.float64)


def weighed_rows(*parts: Any) -> list[Any]:
    """Give the rows whose weight, the last part, is above zero."""
    weight = parts[-1]
    if weight is None or weight.all():
        return list(parts)
    used = np.flatnonzero(weight)
    return [None if part is None else _safe_indexing(part, used) for part in parts]


@contextmanager
def naming_weights(sample_weight: Any) -> Iterator[None]:
    """Say so, where a training diverges on weights of a range that leaves few rows."""
    try:
        yield
    except FloatingPointError as error:
        weight = np.asarray(1.0 if sample_weight is None else sample_weight, float)
        weight = weight[weight > 0]
        if weight.max() / _WIDE <= weight.min():
            raise
        relative = weight / weight.max()
        n_effective = relative.sum() ** 2 / np.square(relative).sum()  # Kish 1965
        raise FloatingPointError(
            f"sample_weight ranges from {weight.min():.3g} to {weight.max():.3g}, so "
            f"that {len(weight)} rows count for {n_effective:.3g}; narrow its range, "
            f"by numpy.clip for example. On these rows {error}"
        ) from error


def split_rows(
    rows: Rows, fraction: float, seed: int, *, stratify: bool
) -> tuple[Rows, Rows]:
    """Hold some of the rows out; no copy of X."""
    index = np.arange(len(rows.X)) if rows.index is None else rows.index
    classes = rows.y[index] if stratify else None
    n_held_out = int(np.ceil(fraction * len(index)))
    if len(index) - n_held_out < 2:
        raise ValueError(
            f"validation_fraction={fraction} of {len(index)} rows leaves fewer than 2 "
            "rows to train on; pass more rows or set early_stopping=False."
        )
    if classes is not None:
        counts = np.unique(classes, return_counts=True)[1]
        if counts.min() < 2 or n_held_out < len(counts):
            classes = None  # too few to have each class on both sides
    train, held_out = train_test_split(
        index, test_size=n_held_out, random_state=seed, stratify=classes
    )
    return (
        Rows(rows.X, rows.y, rows.weight, np.sort(train)),
        Rows(rows.X, rows.y, rows.weight, np.sort(held_out)),
    )


def _as_floats(value: Any, name: str, wanted: str) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {wanted}, got {value!r}.") from None


def check_prox(prox: Any, batch_size: int | str) -> str | float | tuple[float, float]:
    """Give prox as "auto", a float or a pair of floats, all positive.

    A single zero passes where each batch is all rows.
    """
    if isinstance(prox, str) and prox == "auto":
        return prox
    wanted = "None, 'auto', a number or a pair (start, end)"
    pair = _as_floats(prox, "prox", wanted)
    if pair.shape not in ((), (2,)):
        raise ValueError(f"prox must be {wanted}, got {prox!r}.")
    if pair.ndim == 0 and pair == 0:
        if batch_size == "full":
            return 0.0
        raise ValueError(
            f"prox=0 needs batch_size='full', got batch_size={batch_size!r}: without a "
            "pull each head would fit its minibatch alone."
        )
    if not np.isfinite(pair).all() or (pair <= 0).any():
        raise ValueError(
            f"prox must be positive and finite, at its start and its end; got {prox!r}."
        )
    return float(pair) if pair.ndim == 0 else (float(pair[0]), float(pair[1]))


def check_alpha(alpha: Any, n_outputs: int) -> str | float | NDArray[np.float64]:
    """Give alpha as "auto", a float or one float an output, none negative."""
    if isinstance(alpha, str):
        return alpha
    wanted = f"a number, 'auto' or one number for each output ({n_outputs} here)"
    values = _as_floats(alpha, "alpha", wanted)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n_outputs):
        raise ValueError(f"alpha must be {wanted}, got {alpha!r}.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"alpha must be finite and not negative, got {alpha!r}.")
    return float(values) if values.ndim == 0 else values


def as_backbone(backbone: Any, parameter: str = "backbone") -> Backbone:
    """Turn what a user passes as ``backbone`` into a parameter object."""
    if backbone is None:
        return MLP()
    if isinstance(backbone, nn.Module):
        return ModuleBackbone(backbone)
    if isinstance(backbone, type) or not hasattr(backbone, "build"):
        cure = "pass one of these."
        if isinstance(backbone, type) and issubclass(backbone, Backbone):
            cure = f"pass an instance, {backbone.__name__}(...)."
        elif callable(backbone):
            cure = f"wrap a class or a function as TorchBackbone({name_of(backbone)})."
        raise TypeError(
            f"{parameter} must be None, a torch.nn.Module instance, MLP(...) or "
            f"TorchBackbone(...), got {backbone!r}; {cure}"
        )
    return backbone
