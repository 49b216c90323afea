"""One call of fit with instruments: its rows, and where they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from sklearn_cfll._iv_columns import Columns
from sklearn_cfll._iv_rows import StageRows
from sklearn_cfll.functional.ridge import wide_dtype

Tables = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


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
    train, held_out : int array
        Rows that the networks are trained on, and rows kept from them.
    seed : int
    device : torch.device
    dtype : torch.dtype
    """

    columns: Columns
    X: NDArray[np.float64]
    Z: NDArray[np.float64]
    targets: NDArray[np.float64]
    weight: NDArray[np.float64] | None
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    seed: int
    device: torch.device
    dtype: torch.dtype

    def tables(self, index: NDArray[np.intp]) -> Tables:
        """Endogenous columns, exogenous ones and instruments of some rows."""
        return split_tables(self.columns, self.X[index], self.Z[index])

    def weights_of(self, index: NDArray[np.intp]) -> NDArray[np.float64] | None:
        """Weights of some rows, their mean one."""
        if self.weight is None:
            return None
        weight = self.weight[index] / self.weight.max()
        return weight / weight.mean()

    def rows(self, scales: Any, index: NDArray[np.intp]) -> StageRows:
        """Put some rows on the device, their columns standardised."""
        return stage_rows(
            scales,
            self.tables(index),
            self.dtype,
            self.targets[index],
            self.weights_of(index),
        )

    def generator(self) -> torch.Generator:
        """Fresh generator that the seed determines."""
        return torch.Generator().manual_seed(self.seed)


def hold_out(
    n_rows: int, fraction: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split row numbers into those to train on and those to hold out."""
    index = np.arange(n_rows)
    n_held_out = int(np.ceil(fraction * n_rows))
    if n_held_out == 0:
        return index, index[:0]
    if n_rows - n_held_out < 2:
        raise ValueError(
            f"validation_fraction={fraction} of {n_rows} rows leaves fewer than 2 rows "
            "to train on; pass more rows, or set validation_fraction=0."
        )
    train, held_out = train_test_split(index, test_size=n_held_out, random_state=seed)
    return np.sort(train), np.sort(held_out)


def split_tables(columns: Columns, X: NDArray[Any], Z: NDArray[Any] | None) -> Tables:
    """Endogenous columns, exogenous ones, and the instruments besides them."""
    instruments = X[:, :0] if Z is None else Z[:, columns.instruments]
    return X[:, columns.endogenous], X[:, columns.exogenous], instruments


def stage_rows(
    scales: Any,
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
