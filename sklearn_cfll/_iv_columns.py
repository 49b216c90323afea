"""Which columns are endogenous, and whether the instruments can do their work."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_cfll.functional.projections import controlled, n_directions

# Columns whose correlation is one to rounding are the same, but for shift and scale.
_SAME = 1 - 1e-12


@dataclass(frozen=True)
class Columns:
    """Roles of the columns of X and of the instruments.

    Attributes
    ----------
    endogenous, exogenous : int array
        Of X, in X's order.
    instruments : int array
        Those that aren't exogenous columns of X as well.
    n_instruments : int
        Columns that were given.
    instrument_names : array of str or None
    """

    endogenous: NDArray[np.intp]
    exogenous: NDArray[np.intp]
    instruments: NDArray[np.intp]
    n_instruments: int
    instrument_names: NDArray[Any] | None

    def name_of_instrument(self, index: int) -> str:
        """Name of one of the instruments given."""
        names = self.instrument_names
        return f"z{index}" if names is None else str(names[index])


def find_endogenous(
    endogenous: Any, n_columns: int, names: NDArray[Any] | None
) -> NDArray[np.intp]:
    """Give the indices of the endogenous columns.

    Parameters
    ----------
    endogenous : None, str, int, sequence of str or int, or boolean mask
        None is all columns.
    n_columns : int
        Of X.
    names : array of str or None
        Of X's columns.
    """
    if endogenous is None:
        return np.arange(n_columns)
    wanted = np.atleast_1d(np.asarray(endogenous))
    if wanted.ndim > 1:
        raise ValueError(
            f"endogenous must be names, indices or a mask of one axis, got an array of "
            f"shape {wanted.shape}."
        )
    if wanted.dtype.kind == "b":
        index = _of_mask(wanted, n_columns)
    elif wanted.dtype.kind in "iu":
        index = _of_numbers(wanted, n_columns)
    elif wanted.size == 0:
        index = np.empty(0, dtype=np.intp)
    elif all(isinstance(name, str) for name in wanted.tolist()):
        index = _of_names(wanted.tolist(), names)
    else:
        raise TypeError(
            f"endogenous must be None, names, indices or a boolean mask of X's "
            f"columns, got {endogenous!r}."
        )
    if index.size == 0:
        raise ValueError(
            "endogenous names no column, so that there is nothing to instrument; name "
            "the columns that are correlated with the error, or use CFLLRegressor."
        )
    return np.unique(index)


def _of_mask(mask: NDArray[Any], n_columns: int) -> NDArray[np.intp]:
    if len(mask) != n_columns:
        raise ValueError(
            f"endogenous is a mask of {len(mask)} values but X has {n_columns} "
            "columns; pass one value for each column."
        )
    return np.flatnonzero(mask)


def _of_numbers(index: NDArray[Any], n_columns: int) -> NDArray[np.intp]:
    outside = index[(index >= n_columns) | (index < -n_columns)]
    if outside.size:
        raise ValueError(
            f"endogenous holds the index {outside[0]} but X has {n_columns} columns; "
            f"pass indices from 0 to {n_columns - 1}."
        )
    return (index % n_columns).astype(np.intp)


def _of_names(wanted: list[str], names: NDArray[Any] | None) -> NDArray[np.intp]:
    if names is None:
        raise ValueError(
            f"endogenous names the column {wanted[0]!r} but X has no column names; "
            "pass a data frame, or indices."
        )
    known = list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"endogenous names the column {unknown[0]!r}, which X does not have; its "
            f"columns are {known}."
        )
    return np.array([known.index(name) for name in wanted], dtype=np.intp)


def assign_columns(
    endogenous: NDArray[np.intp],
    X: NDArray[np.float64],
    Z: NDArray[np.float64],
    names: NDArray[Any] | None,
) -> Columns:
    """Give each column its role, and see that the instruments can do their work.

    Parameters
    ----------
    endogenous : int array
    X, Z : array of shape (n, ...)
        The rows that have weight.
    names : array of str or None
        Of the instruments.
    """
    exogenous = np.setdiff1d(np.arange(X.shape[1]), endogenous)
    every = Columns(endogenous, exogenous, np.arange(Z.shape[1]), Z.shape[1], names)
    constant = np.flatnonzero(Z.max(0) == Z.min(0))
    if constant.size:
        name = every.name_of_instrument(constant[0])
        raise ValueError(
            f"column {constant[0]} ({name}) of instruments is constant, so that it "
            "moves nothing; leave it out (a constant is added anyhow)."
        )
    unit_Z, unit_X = _units(Z), _units(X)
    first, second = np.nonzero(np.triu(abs(unit_Z.T @ unit_Z) > _SAME, 1))
    if first.size:
        pair = [every.name_of_instrument(i) for i in (first[0], second[0])]
        raise ValueError(
            f"columns {first[0]} ({pair[0]}) and {second[0]} ({pair[1]}) of "
            "instruments are the same, but for shift and scale; leave one of them out."
        )
    # Exogenous columns are their own instruments already.
    excluded = ~(abs(unit_Z.T @ unit_X[:, exogenous]) > _SAME).any(1)
    n_excluded, n_endogenous = int(excluded.sum()), len(endogenous)
    if n_excluded < n_endogenous:
        also = Z.shape[1] - n_excluded
        aside = (
            f", besides {also} that X's exogenous columns hold, too," if also else ""
        )
        raise ValueError(
            f"instruments has {_counted(n_excluded)}{aside} but X has "
            f"{_counted(n_endogenous)} that endogenous names; pass at least as many "
            "instruments, or name fewer columns in endogenous."
        )
    if len(Z) > Z.shape[1] + len(exogenous) + 1:  # of fewer rows nothing can be told
        parts = unit_Z[:, excluded], unit_X[:, endogenous], unit_X[:, exogenous]
        _refuse_few_directions(*map(torch.from_numpy, parts))
    return Columns(endogenous, exogenous, np.flatnonzero(excluded), Z.shape[1], names)


def _refuse_few_directions(
    instruments: Tensor, endogenous: Tensor, exogenous: Tensor
) -> None:
    """Refuse instruments that are sums of exogenous columns, or of each other.

    Parameters
    ----------
    instruments, endogenous, exogenous : Tensor of shape (n, ...)
        Columns of mean zero and norm one.
    """
    basis, _ = controlled(exogenous, exogenous, None)
    wanted = n_directions(endogenous, basis, endogenous.shape[1])
    found = n_directions(instruments, basis, wanted)
    if found < wanted:
        n_columns = instruments.shape[1]
        verb = "holds" if n_columns == 1 else "hold"
        amount = f"no more than {found}" if found else "nothing"
        raise ValueError(
            f"instruments has {_counted(n_columns)} that {verb} {amount} beside sums "
            "of multiples of each other and of X's exogenous columns, where the "
            f"endogenous columns hold {wanted}; pass instruments that are no such "
            "sums, or name fewer columns in endogenous."
        )


def check_endogenous(
    endogenous: NDArray[np.intp],
    X: NDArray[np.float64],
    names: NDArray[Any] | None,
) -> None:
    """Refuse endogenous columns that are constant, or that other columns of X give.

    Parameters
    ----------
    endogenous : int array
    X : array of shape (n, n_columns)
        The rows that have weight.
    names : array of str or None
        Of X's columns.
    """

    def name_of(index: int) -> str:
        return f"x{index}" if names is None else str(names[index])

    constant = [i for i in endogenous if X[:, i].max() == X[:, i].min()]
    if constant:
        raise ValueError(
            f"column {constant[0]} ({name_of(constant[0])}) of X is endogenous and "
            "constant, so that its effect can't be told; leave it out."
        )
    units = _units(X)
    for i in endogenous:
        same = np.flatnonzero(abs(units[:, i] @ units) > _SAME)
        other = same[same != i]
        if other.size:
            raise ValueError(
                f"columns {i} ({name_of(i)}, endogenous) and {other[0]} "
                f"({name_of(other[0])}) of X are the same, but for shift and scale; "
                "leave one of them out."
            )
    exogenous = np.setdiff1d(np.arange(X.shape[1]), endogenous)
    if len(X) <= len(exogenous) + 2:
        return  # so few rows make any column a sum of others
    columns = torch.from_numpy(units)
    basis, _ = controlled(columns[:, exogenous], columns, None)
    for i in endogenous:
        if not n_directions(columns[:, [i]], basis, 1):
            raise ValueError(
                f"column {i} ({name_of(i)}) of X is endogenous and a sum of multiples "
                "of exogenous ones, so that instruments have nothing to move; leave it "
                "out, or one of those."
            )


def warn_of_copies(
    columns: Columns,
    X: NDArray[np.float64],
    y: NDArray[np.float64],
    Z: NDArray[np.float64],
) -> None:
    """Warn of instruments that are endogenous columns, or y, themselves."""
    unit_Z = _units(Z)
    others = [
        (f"column {i} of X, which is endogenous", X[:, i]) for i in columns.endogenous
    ]
    for what, values in [*others, ("y", y)]:
        same = np.flatnonzero(abs(_units(values[:, None])[:, 0] @ unit_Z) > _SAME)
        if same.size:
            warnings.warn(
                f"column {same[0]} ({columns.name_of_instrument(same[0])}) of "
                f"instruments is {what}, but for shift and scale: it is correlated "
                "with the error, and the fit as confounded as one without "
                "instruments; leave it out.",
                UserWarning,
                stacklevel=2,
            )


def _counted(n_columns: int) -> str:
    return f"{n_columns} column{'' if n_columns == 1 else 's'}"


def _units(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of mean zero and norm one; constant ones are zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(columns).max(0, initial=0.0)
        scaled = columns / np.where(size > 0, size, 1.0)
        centred = scaled - scaled.mean(0)
        norm = np.linalg.norm(centred, axis=0)
        spacing = np.finfo(float).eps * len(columns)
        return np.where(norm > spacing, centred / np.where(norm > 0, norm, 1.0), 0.0)
