"""Reads the instruments that the user passes beside X."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _get_feature_names, check_array

from sklearn_cfll._iv_columns import Columns
from sklearn_cfll._numbers import numbers_wanted


def read_instruments(
    estimator: Any, instruments: Any, n_rows: int
) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
    """Check the instruments: numbers, one row a sample; give their names, too."""
    if instruments is None:
        raise ValueError(
            "instruments is missing: pass instruments=Z, an array or a frame of one "
            "row a sample, whose columns move the endogenous columns of X and have no "
            "other effect on y. In a pipeline or a search enable metadata routing, and "
            "call set_fit_request(instruments=True), in a search "
            "set_score_request(instruments=True), too."
        )
    names = _get_feature_names(instruments)
    if names is None and isinstance(getattr(instruments, "name", None), str):
        names = np.array([instruments.name], dtype=object)
    cure = "encode text, by OneHotEncoder for example"
    with numbers_wanted("instruments", instruments, cure):
        Z = check_array(
            instruments,
            dtype=np.float64,
            ensure_2d=False,
            allow_nd=True,
            ensure_min_samples=0,
            input_name="instruments",
            estimator=estimator,
        )
    Z = Z[:, None] if Z.ndim == 1 else Z
    if Z.ndim != 2:
        raise ValueError(
            f"instruments has shape {Z.shape}; pass (n_samples, n_instruments)."
        )
    if len(Z) != n_rows:
        raise ValueError(
            f"instruments has {len(Z)} rows but X has {n_rows}; pass one row of "
            "instruments for each sample."
        )
    return Z, names


def read_instruments_again(
    estimator: Any, columns: Columns, instruments: Any, n_rows: int
) -> NDArray[np.float64]:
    """Check instruments of further rows, which must be those of fit."""
    Z, names = read_instruments(estimator, instruments, n_rows)
    if Z.shape[1] != columns.n_instruments:
        raise ValueError(
            f"instruments has {Z.shape[1]} columns but fit had "
            f"{columns.n_instruments}; pass the same ones."
        )
    known = columns.instrument_names
    if names is not None and known is not None and list(names) != list(known):
        raise ValueError(
            f"instruments has the columns {list(names)} but fit had {list(known)}; "
            "pass the same ones in the same order."
        )
    return Z


def warn_of_other_rows(X: Any, instruments: Any) -> None:
    """Warn where the rows of two frames or series have other labels, or in other order.

    Parameters
    ----------
    X, instruments : array-like
        As the user gave them.
    """
    if not all(hasattr(given, "iloc") for given in (X, instruments)):
        return
    if not X.index.equals(instruments.index):
        warnings.warn(
            "the index of instruments is not that of X; rows are matched by their "
            "position, whatever their labels. Where the labels say which rows belong "
            "together, pass instruments.loc[X.index]; where the order is right, "
            "instruments.to_numpy().",
            UserWarning,
            stacklevel=2,
        )
