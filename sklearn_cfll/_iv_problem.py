"""One call of fit with instruments: its rows, and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_cfll._iv_columns import Columns
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll._problem import are_counts
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.layers import Standardize

Tables = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]

# Of the endogenous columns, the exogenous ones, and the instruments.
Scales = tuple[Standardize, Standardize, Standardize]


@dataclass
class IVProblem:
    """Rows as the user gave them, encoded targets, and how to compute.

    Attributes
    ----------
    columns : Columns
    X, Z : float64 array of shape (n, ...)
    targets : array of shape (n, 1)
        Encoded.
    weight : array of shape (n,) or None
        Their mean is one.
    unit : float
        Rows that a weight of one counts for.
    train, held_out : int array of shape (n_members, ...)
        Rows that each member's networks are trained on, and rows kept from them.
    seed : int
    device : torch.device
    dtype : torch.dtype
    """

    columns: Columns
    X: NDArray[np.float64]
    Z: NDArray[np.float64]
    targets: NDArray[np.float64]
    weight: NDArray[np.float64] | None
    unit: float
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    seed: int
    device: torch.device
    dtype: torch.dtype

    @property
    def tables(self) -> Tables:
        """Endogenous columns, exogenous ones and instruments."""
        return split_tables(self.columns, self.X, self.Z)

    def rows(self, scales: Scales) -> StageRows:
        """Put the rows on the device, their columns standardised."""
        return stage_rows(scales, self.tables, self.dtype, self.targets, self.weight)

    def generator(self) -> torch.Generator:
        """Fresh generator that the seed determines."""
        return torch.Generator().manual_seed(self.seed)

    def hold_out(self, n_members: int, fraction: float) -> None:
        """Keep a share of the rows from each member, from each its own.

        Parameters
        ----------
        n_members : int
        fraction : float
        """
        n_rows = len(self.X)
        n_held_out = int(fraction * n_rows + 1e-9)
        if fraction > 0 and (n_held_out < 1 or n_rows - n_held_out < 2):
            raise ValueError(
                f"validation_fraction={fraction} of {n_rows} rows leaves none to hold "
                "out or fewer than 2 to train on; set validation_fraction=0."
            )
        starts = np.arange(n_members) * n_rows // n_members
        places = (starts[:, None] + np.arange(n_rows)) % n_rows
        order = np.arange(n_rows)
        if n_held_out:
            order = np.random.RandomState(self.seed).permutation(n_rows)
        rows = order[places]
        self.held_out = np.sort(rows[:, :n_held_out], axis=1)
        self.train = np.sort(rows[:, n_held_out:], axis=1)


def split_tables(columns: Columns, X: NDArray[Any], Z: NDArray[Any] | None) -> Tables:
    """Endogenous columns, exogenous ones, and the instruments besides them."""
    instruments = X[:, :0] if Z is None else Z[:, columns.instruments]
    return X[:, columns.endogenous], X[:, columns.exogenous], instruments


def stage_rows(
    scales: Scales,
    tables: Tables,
    dtype: torch.dtype,
    targets: NDArray[np.float64] | None = None,
    weight: NDArray[np.float64] | None = None,
) -> StageRows:
    """Standardise the columns, on the device of their scales.

    Parameters
    ----------
    scales : tuple of three Standardize
    tables : tuple of three arrays
    dtype : torch.dtype
        Of the networks.
    targets : array of shape (n, 1), default=None
    weight : array of shape (n,), default=None
    """
    device = scales[0].mean.device
    wide = wide_dtype(device)

    def placed(values: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(device, wide)

    with torch.no_grad():
        treatment, exogenous, instruments = (
            scale(placed(table)) if table.shape[1] else placed(table).to(dtype)
            for scale, table in zip(scales, tables, strict=True)
        )
    if targets is None:
        targets = np.zeros((len(treatment), 1))
    return StageRows(
        treatment,
        torch.cat([exogenous, instruments], 1),
        exogenous,
        placed(targets),
        None if weight is None else placed(weight),
    )


def mean_one(weight: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Give weights a mean of one; and the rows that such a weight counts for."""
    scaled = weight / weight.max()  # whose sum doesn't overflow
    scaled = scaled / scaled.mean()
    return scaled, float(weight.mean()) if are_counts(weight) else 1.0
