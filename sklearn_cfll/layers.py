"""Layers that backbones are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.ridge import wide_dtype


class Standardize(nn.Module):
    """Subtract the columns' means and divide by their standard deviations.

    This is done in float64 where the device has it, since a column may lie far from
    zero (a time stamp, say); the result is cast to the network's dtype.

    Parameters
    ----------
    mean, scale : Tensor of shape (n_columns,)
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.dtype = mean.dtype

    @classmethod
    def fitted(cls, batches: TensorBatches) -> Standardize:
        """Fit on the rows given, in float64.

        Parameters
        ----------
        batches : TensorBatches
            The training rows.

        Returns
        -------
        module : Standardize
        """
        mean, deviation = batches.column_moments()
        # A constant column deviates by rounding alone.
        spacing = torch.finfo(mean.dtype).eps * batches.n_samples
        scale = torch.where(deviation > spacing * mean.abs(), deviation, 1.0)
        return cls(mean, scale).to(batches.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Standardize:
        mean, scale = self.mean, self.scale
        self.dtype = fn(torch.zeros((), dtype=self.dtype, device=mean.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.mean.device
        self.mean = mean.to(device, wide_dtype(device))
        self.scale = scale.to(device, wide_dtype(device))
        return self

    def forward(self, X: Tensor) -> Tensor:
        """Standardise columns.

        Parameters
        ----------
        X : Tensor of shape (n, n_columns)

        Returns
        -------
        X : Tensor of shape (n, n_columns)
        """
        return ((X.to(self.mean) - self.mean) / self.scale).to(self.dtype)
