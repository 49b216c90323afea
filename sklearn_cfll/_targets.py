"""Targets as the head sees them, and predictions as the user does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from sklearn.utils.class_weight import compute_class_weight

from sklearn_cfll.one_hot import OneHot

# Squares of smaller numbers are zero in float64, or have lost digits.
_SMALL = 1e-100


@dataclass(frozen=True)
class StandardisedTargets:
    """Numbers, centred and scaled per output.

    Attributes
    ----------
    mean, scale : array of shape (n_outputs,)
    shape : tuple
        Shape of the targets of one sample, or of one point of its grid, as given: ()
        or (n_outputs,).
    n_grid_axes : int
        Axes of the grid between the samples and the outputs.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    shape: tuple[int, ...]
    n_grid_axes: int = 0

    @classmethod
    def fitted(
        cls,
        y: NDArray[Any],
        weight: NDArray[Any] | None,
        *,
        n_grid_axes: int = 0,
        shared_scale: bool = False,
    ) -> StandardisedTargets:
        """Learn the outputs' weighted means and standard deviations.

        With ``shared_scale`` all outputs have one scale, so that errors add up as they
        do in the units of y.
        """
        shape = y.shape[1 + n_grid_axes :]
        table = y.reshape(-1, math.prod(shape))
        if weight is not None:
            weight = np.repeat(weight / weight.max(), len(table) // len(y))
        if np.isnan(table.sum()):
            table, weight = _known(table, weight)
        table, unit = _enlarged(table, shared=shared_scale)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = np.average(table, axis=0, weights=weight)
            square = table - mean
            np.square(square, out=square)
            variance = np.average(square, axis=0, weights=weight)
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise ValueError(
                f"y holds values up to {np.abs(table).max():.3g}, whose variance "
                "overflows float64; scale y."
            )
        deviation = np.sqrt(variance)
        spacing = np.finfo(float).eps * len(y) * np.abs(mean)
        if shared_scale:
            deviation = np.full_like(deviation, np.sqrt(variance.mean()))
        scale = np.where(deviation > spacing, deviation * unit, 1.0)
        return cls(mean * unit, scale, shape, n_grid_axes)

    @property
    def n_outputs(self) -> int:
        """Columns of y."""
        return len(self.mean)

    def encode(self, y: NDArray[Any], name: str = "y") -> NDArray[np.float64]:
        """Give (n_samples, *grid, n_outputs) of mean zero and variance one."""
        first = 1 + self.n_grid_axes
        if y.ndim != first + len(self.shape) or y.shape[first:] != self.shape:
            grid = [f"grid_{i}" for i in range(1, first)]
            raise ValueError(
                f"{name} has shape {y.shape} but the y of the training has shape "
                f"{('n_samples', *grid, *self.shape)}; pass the same outputs.".replace(
                    "'", ""
                )
            )
        encoded = y.reshape(*y.shape[:first], self.n_outputs) - self.mean
        encoded /= self.scale
        return encoded

    def decode(self, predictions: NDArray[Any]) -> NDArray[np.float64]:
        """Give predictions in the units and the shape of y."""
        decoded = predictions * self.scale + self.mean
        return decoded.reshape(*predictions.shape[:-1], *self.shape)

    def score(self, predictions: Any, y: Any, weight: Any) -> float:
        """R2 of decoded predictions; not-a-number on one row, where it has no sense.

        With missing targets the mean of the outputs', each on the rows that have it.
        The points of a grid are rows with their sample's weight.
        """
        if len(y) < 2:
            return float("nan")
        if self.n_grid_axes:
            y, predictions = (v.reshape(-1, self.n_outputs) for v in (y, predictions))
            if weight is not None:
                weight = np.repeat(weight, len(y) // len(weight))
        if np.isnan(y).any():
            return _score_of_known(predictions, y, weight)
        return r2(y, predictions, weight)


def r2(y: NDArray[Any], predictions: NDArray[Any], weight: Any) -> float:
    """R2, the mean over outputs; of targets too small to be squared, too.

    Beside them errors may be too large to be squared, which makes it minus infinity.
    """
    table, unit = _enlarged(y.reshape(len(y), -1), shared=False)
    if (unit != 1).any() and y.size == predictions.size:
        y, predictions = table, predictions.reshape(table.shape) / unit
    with np.errstate(over="ignore"):
        return float(r2_score(y, predictions, sample_weight=weight))


def _enlarged(
    table: NDArray[Any], *, shared: bool
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Divide columns too small to be squared by a power of two, which is exact.

    Also gives the divisors (n_outputs,).
    """
    size = np.maximum(table.max(0), -table.min(0))
    if shared:
        size = np.full_like(size, size.max())
    small = (size > 0) & (size < _SMALL)
    unit = np.ldexp(1.0, np.where(small, np.frexp(size)[1], 0))
    return (table / unit if small.any() else table), unit


def _known(
    table: NDArray[Any], weight: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give zeros without weight for missing targets; each output needs a known one."""
    known = ~np.isnan(table)
    weight = known if weight is None else known * weight[:, None]
    empty = np.flatnonzero(weight.sum(0) == 0)
    if len(empty):
        raise ValueError(
            f"output {empty[0]} of y is missing in every row that has weight; leave it "
            "out, or pass rows that have it."
        )
    return np.where(known, table, 0.0), weight.astype(np.float64)


def _score_of_known(predictions: Any, y: Any, weight: Any) -> float:
    scores = []
    for truth, prediction in zip(
        y.reshape(len(y), -1).T, predictions.reshape(len(y), -1).T, strict=True
    ):
        known = ~np.isnan(truth)
        if weight is not None:
            known &= weight > 0
        own = None if weight is None else weight[known]
        if known.sum() > 1:
            scores.append(r2(truth[known], prediction[known], own))
    return float(np.mean(scores)) if scores else float("nan")


@dataclass(frozen=True)
class ClassTargets:
    """Classes as minus one and one: an output each, and a single one for two.

    Attributes
    ----------
    classes : array of shape (n_classes,)
    """

    classes: NDArray[Any]
    n_outputs = 1
    n_grid_axes = 0

    @classmethod
    def fitted(cls, y: NDArray[Any], weight: NDArray[Any] | None) -> ClassTargets:
        """Learn the classes."""
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"y holds one class, {classes.tolist()[0]!r}, where its rows have "
                "weight; CFLLClassifier needs two classes or more."
            )
        return cls(classes)

    def encode(
        self, y: NDArray[Any], name: str = "y", scale: float = 1.0
    ) -> NDArray[np.float64] | OneHot:
        """Give minus and plus the scale: (n_samples, 1) or (n_samples, n_classes)."""
        index = self.refuse_unknown(y, name, "of the training")
        if len(self.classes) == 2:
            return np.where(index == 1, scale, -scale)[:, None]
        return OneHot(torch.from_numpy(index), len(self.classes), scale)

    def refuse_unknown(
        self, y: NDArray[Any], name: str, whose: str, cure: str = ""
    ) -> NDArray[np.intp]:
        """Give the number of each label; refuse those that are no class.

        Parameters
        ----------
        y : array of shape (n_samples,)
        name : str
            What y is called.
        whose : str
            Where the classes come from.
        cure : str, default=""
            What to do besides leaving rows out.
        """
        index = np.searchsorted(self.classes, y).clip(max=len(self.classes) - 1)
        unknown = self.classes[index] != y
        if not unknown.any():
            return index
        labels = np.unique(y[unknown]).tolist()
        one = len(labels) == 1
        which = f"the label {labels[0]!r}" if one else f"the labels {labels}"
        raise ValueError(
            f"{name} holds {which}, none of the classes {self.classes.tolist()} "
            f"{whose}; {cure}leave {'its' if one else 'their'} rows out."
        )

    @staticmethod
    def index(scores: NDArray[Any]) -> NDArray[np.intp]:
        """Give the number of the class of the largest score."""
        if scores.shape[1] == 1:
            return (scores[:, 0] > 0).astype(np.intp)
        return scores.argmax(1)

    def decode(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """Give labels."""
        return self.classes[self.index(predictions)]

    def score(self, predictions: Any, y: Any, weight: Any) -> float:
        """Accuracy of decoded predictions.

        Of labels that have been checked, without the time that scikit-learn's takes to.
        """
        return float(np.average(predictions == y, weights=weight))


def weights_of_classes(
    given: Any, y: NDArray[Any], weight: NDArray[Any] | None
) -> dict[Any, float]:
    """Weights of the classes, by label.

    Parameters
    ----------
    given : dict or "balanced"
        What was passed as ``class_weight``.
    y : array of shape (n_samples,)
        Labels of the rows, or of a dict's classes all there may be.
    weight : array of shape (n_samples,) or None
        Of the rows; "balanced" goes by those that have some.
    """
    classes = np.unique(y)
    if isinstance(given, str):
        if weight is not None:
            y, weight = y[weight > 0], weight[weight > 0] / weight.max()
        classes, index = np.unique(y, return_inverse=True)
        # Written out: scikit-learn below 1.9 leaves the rows' weights out.
        sums = np.bincount(index, weight)
        values = sums.sum() / (len(classes) * sums)
    else:
        values = compute_class_weight(given, classes=classes, y=y)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(
            f"class_weight must be finite and not negative, got {values} for the "
            f"classes {classes.tolist()}."
        )
    return dict(zip(classes.tolist(), values, strict=True))
