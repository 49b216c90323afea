"""The first rows of a stream, by which scales are learnt, and rows that are unlike."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cfll._validation import Rows

# Rows whose mean lies so many standard deviations of the first rows off, or that spread
# so many times as wide, are unlike these.
_FAR = 20.0

# Rows that are looked at at a time, so that a chunk isn't copied.
_BLOCK = 4096

# Fewer rows tell too little of a spread.
_FEWEST_ROWS = 10

_CURE = (
    "scales are learnt from the first rows alone, so that the network learns little of "
    "others; begin the stream with rows that are like all that will come, or scale X "
    "and y beforehand."
)

# Mean and standard deviation of each column.
Spread = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class FirstChunk:
    """Spreads of the columns of the first rows.

    Attributes
    ----------
    n_rows : int
    X : pair of arrays of shape (n_features,), or (1,) for images and the like
    y : pair of arrays of shape (n_outputs,), or None for labels
    told : bool
        Whether a warning was given, of which one is enough for a stream.
    """

    n_rows: int
    X: Spread
    y: Spread | None
    told: bool = False

    @classmethod
    def of(cls, rows: Rows, *, labels: bool) -> FirstChunk:
        """Note the spreads, of y too but for labels; warn where nothing in X varies."""
        X = _spread_of_columns(rows)
        constant = not (X[1] > 0).any()
        if constant:
            warnings.warn(
                f"X is constant in the first {len(rows)} rows of the stream; {_CURE}",
                UserWarning,
                stacklevel=2,
            )
        y = None if labels else _spread(rows.chosen(rows.y))
        return cls(len(rows), X, y, constant)

    def compared(self, rows: Rows, names: NDArray[Any] | None) -> FirstChunk:
        """Warn of rows that are unlike the first ones; note whether that was done.

        Parameters
        ----------
        rows : Rows
        names : array of str or None
            Of X's columns.
        """
        if self.told or min(self.n_rows, len(rows)) < _FEWEST_ROWS:
            return self
        far = _far("X", self.X, _spread_of_columns(rows), names)
        if far is None and self.y is not None:
            far = _far("y", self.y, _spread(rows.chosen(rows.y)), None)
        if far is None:
            return self
        warnings.warn(f"{far} of the stream; {_CURE}", UserWarning, stacklevel=2)
        return replace(self, told=True)


def _spread_of_columns(rows: Rows) -> Spread:
    X = rows.chosen(rows.X)
    return _spread(X if X.ndim == 2 else X.reshape(-1, 1))


def _spread(values: NDArray[Any]) -> Spread:
    """Mean and standard deviation of each column, of the numbers that are there."""
    table = values.reshape(len(values), -1)
    blocks = [table[i : i + _BLOCK] for i in range(0, len(table), _BLOCK)]
    with np.errstate(over="ignore", invalid="ignore"):
        count = sum((~np.isnan(block)).sum(0) for block in blocks).clip(1)
        mean = sum(np.nansum(block, 0, dtype=np.float64) for block in blocks) / count
        square = sum(np.nansum(np.square(block - mean), 0) for block in blocks) / count
    return mean, np.sqrt(square)


def _far(
    what: str, first: Spread, own: Spread, names: NDArray[Any] | None
) -> str | None:
    """Say which column lies farthest off, if one does; constant ones have no scale."""
    (mean_then, spread_then), (mean, spread) = first, own
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.maximum(np.abs(mean - mean_then), spread)
        varies = (spread_then > 0) & np.isfinite(spread_then)
        units = np.where(varies, distance / np.where(varies, spread_then, 1.0), 0.0)
    i = int(units.argmax())
    if not units[i] > _FAR:
        return None
    if len(units) > 1:
        name = "" if names is None else f" ({names[i]})"
        what = f"column {i}{name} of {what}"
    return (
        f"{what} has the mean {mean[i]:.3g} and the standard deviation {spread[i]:.3g} "
        f"in these rows, where it had {mean_then[i]:.3g} and {spread_then[i]:.3g} in "
        "the first ones"
    )
