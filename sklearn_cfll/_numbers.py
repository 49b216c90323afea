"""What is no number for a network: text, dates, and what float32 doesn't hold."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT32 = np.finfo(np.float32)

# Steps of float32 from a column's least number to its largest, at least.
_LEAST_STEPS = 100

# Numbers that are copied at a time, of rows that are not all in use.
_COPIED = 2**20

# What to do about text.
IN_X = "encode text, by OneHotEncoder in a pipeline for example"
IN_Y = "take CFLLClassifier for labels"

# Parts of what NumPy and pandas say of text.
_TEXT = ("could not convert string", "Cannot cast str")

# What to do about dates and other objects, by what Python and NumPy say of them.
_DAYS = ": for dates take days since one of them, or their month and weekday"
_OBJECTS = {
    "could not be promoted": _DAYS,
    r"not '(datetime\.\w+|Timestamp|Timedelta|Period|NaTType)'": _DAYS,
    "not 'NAType'": ": of a column with pd.NA take astype('Float64')",
    "must be a string or a real number": "",
}


def check_range(
    X: NDArray[Any], index: NDArray[np.intp] | None, *, training: bool
) -> None:
    """Refuse numbers that float32 doesn't hold; in training, columns it makes zero."""
    if X.dtype == np.float32:
        return
    axis = 0 if X.ndim == 2 else None  # of a grid, a point may well be empty
    low, high = _ends(X, index, axis)
    sizes = np.atleast_1d(np.maximum(high, -low))
    cure = "scale X or set dtype='float64'."
    if sizes.max() > float(_FLOAT32.max):
        raise ValueError(f"X holds {sizes.max():.3g}, beyond float32's range; {cure}")
    if not training:
        return
    vanishing = np.flatnonzero((sizes > 0) & (sizes < float(_FLOAT32.tiny)))
    if len(vanishing):
        where = f"column {vanishing[0]} of X" if X.ndim == 2 else "X"
        raise ValueError(
            f"{where} holds nothing above {sizes[vanishing[0]]:.3g}, which float32 "
            f"takes for zero; {cure}"
        )


def tell_coarse_columns(X: NDArray[Any], index: NDArray[np.intp] | None) -> None:
    """Warn of columns whose values float32 makes hardly different from each other."""
    if X.dtype == np.float32 or X.ndim != 2:
        return
    low, high = (ends.astype(np.float64) for ends in _ends(X, index, 0))
    spans, sizes = high - low, np.maximum(high, -low)
    steps = sizes * float(_FLOAT32.eps)
    # Where float64 itself has hardly a difference it is one of rounding.
    varying = spans > sizes * _LEAST_STEPS * float(np.finfo(np.float64).eps)
    coarse = np.flatnonzero(varying & (steps * _LEAST_STEPS > spans))
    if len(coarse):
        first = coarse[0]
        warnings.warn(
            f"column {first} of X has a range of {spans[first]:.3g} near "
            f"{sizes[first]:.3g}, where float32 has steps of {steps[first]:.2g}, so "
            "that the backbone sees hardly a difference; centre the column "
            "(StandardScaler), or set dtype='float64'.",
            UserWarning,
            stacklevel=2,
        )


def _ends(
    X: NDArray[Any], index: NDArray[np.intp] | None, axis: int | None
) -> tuple[Any, Any]:
    """Give the least and the largest numbers of the rows in use."""
    if index is None:
        return X.min(axis), X.max(axis)
    n_rows = max(1, _COPIED // X[0].size)
    parts = (X[index[i : i + n_rows]] for i in range(0, len(index), n_rows))
    low, high = zip(*((part.min(axis), part.max(axis)) for part in parts), strict=True)
    return np.min(low, 0), np.max(high, 0)


@contextmanager
def numbers_wanted(name: str, values: Any, cure: str) -> Iterator[None]:
    """Refuse dates, and say what to do about what NumPy can't convert."""
    wanted = f"{name} must hold numbers"
    where = _find_dates(values)
    if where is not None:
        # NumPy would take them for nanoseconds, and a missing one for -9.2e18.
        raise TypeError(f"{name} holds dates{where}; {wanted}{_DAYS}.")
    try:
        yield
    except (TypeError, ValueError) as error:
        said = str(error)
        if "must hold numbers" in said:  # of another argument
            raise
        if any(part in said for part in _TEXT):
            raise ValueError(f"{said}; {wanted}: {cure}.") from error
        for part, advice in _OBJECTS.items():
            if re.search(part, said):
                said = said.split(". ")[0]
                raise TypeError(f"{said}; {wanted}{advice}.") from error
        raise


def refuse_not_finite(
    outputs: NDArray[Any],
    what: str = "predictions",
    X_name: str = "X",
    index: NDArray[np.intp] | None = None,
    training: bool = False,
) -> None:
    """Name the first row whose outputs are not finite, where there is one.

    Parameters
    ----------
    outputs : array of shape (n, ...)
    what, X_name : str
        Names of the outputs and of what they are computed from.
    index : int array of shape (n,) or None
        Rows that the outputs belong to, where these are not all.
    training : bool, default=False
        Whether the network is still in training.
    """
    finite = np.isfinite(outputs)
    if finite.all():
        return
    row = int(finite.reshape(len(finite), -1).all(1).argmin())
    row = row if index is None else int(index[row])
    cause, cure = "either", "mend the row or the backbone."
    if training:
        cause = "either the training diverged,"
        cure = "decrease lr, or mend the row or the backbone."
    raise ValueError(
        f"{what} are not finite, first for row {row} of {X_name}: {cause} the row lies "
        "far outside of the training rows, or the backbone returns features that are "
        f"not finite for it (by a logarithm of zero, say); {cure}"
    )


def _find_dates(values: Any) -> str | None:
    """Say which column holds dates or spans of time, and of what kind; None if none."""
    while isinstance(values, list | tuple) and len(values):
        values = values[0]
    dtypes = getattr(values, "dtypes", None)
    columns = getattr(values, "columns", None)
    if dtypes is not None and columns is not None:
        for column, dtype in zip(columns, dtypes, strict=True):
            if _is_date(dtype):
                return f" in column {column!r} ({dtype})"
        return None
    dtype = getattr(values, "dtype", None)
    return f" ({dtype})" if _is_date(dtype) else None


def _is_date(dtype: Any) -> bool:
    """Whether a dtype of NumPy, pandas or polars is one of dates or spans of time."""
    temporal = getattr(dtype, "is_temporal", None)  # polars
    if callable(temporal):
        return bool(temporal())
    return getattr(dtype, "kind", None) in ("M", "m")
