"""Layers that backbones are made of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.ridge import wide_dtype

# Under which torch's modules keep their hooks; a user's own names may end alike.
HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


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


class FeaturesLast(nn.Module):
    """Move the axis of a module's features to the end, as a view of the same memory.

    Parameters
    ----------
    module : torch.nn.Module
    axis : int
        Of the features, in what the module returns.
    """

    def __init__(self, module: nn.Module, axis: int) -> None:
        super().__init__()
        self.module = module
        self.axis = axis

    def forward(self, X: Tensor) -> Tensor:
        """Compute features.

        Parameters
        ----------
        X : Tensor of shape (n, ...)

        Returns
        -------
        features : Tensor of shape (n, ..., d)
        """
        features: Tensor = self.module(X)
        return features.movedim(self.axis, -1)


class PeriodicEmbedding(nn.Module):
    """Append learnt periodic functions of numeric columns to the columns.

    A column ``x`` gives ``cos(f x + p)`` for some frequencies and phases, and of these
    a few linear combinations; all of them are trained.

    Parameters
    ----------
    columns : Tensor of shape (n_numeric,)
        Indices of the columns to embed; they should be standardised.
    n_columns : int
        Columns in all; those that aren't embedded are kept as they are.
    n_frequencies : int
        Cosines of each column.
    frequency_scale : float
        Standard deviation of the first frequencies, in periods to a unit of the column.
    size : int
        Combinations of each column's cosines.

    References
    ----------
    Holzmüller, Grinsztajn, Steinwart, "Better by Default: Strong Pre-Tuned MLPs and
    Boosted Trees on Tabular Data", NeurIPS 2024, arXiv 2407.04491.
    """

    columns: Tensor

    def __init__(
        self,
        columns: Tensor,
        n_columns: int,
        *,
        n_frequencies: int,
        frequency_scale: float,
        size: int,
    ) -> None:
        super().__init__()
        self.register_buffer("columns", columns)
        n_numeric = len(columns)
        self.n_outputs = n_columns + n_numeric * size
        scale = 2 * math.pi * frequency_scale
        bound = n_frequencies**-0.5
        self.frequency = nn.Parameter(scale * torch.randn(n_numeric, 1, n_frequencies))
        self.phase = nn.Parameter(
            torch.empty(n_numeric, 1, n_frequencies).uniform_(-math.pi, math.pi)
        )
        self.weight = nn.Parameter(
            torch.empty(n_numeric, n_frequencies, size).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(
            torch.empty(n_numeric, 1, size).uniform_(-bound, bound)
        )

    def forward(self, X: Tensor) -> Tensor:
        """Embed columns.

        Parameters
        ----------
        X : Tensor of shape (n, n_columns)

        Returns
        -------
        X : Tensor of shape (n, n_columns + n_numeric * size)
            The columns, and each numeric one's functions.
        """
        # With the rows last all the way, which is also how they leave, as a view: so
        # each product is of long rows, and a linear layer takes it as it takes others.
        numeric = X.mT.index_select(0, self.columns)[:, None]
        waves = torch.cos(torch.baddbmm(self.phase.mT, self.frequency.mT, numeric))
        functions = torch.baddbmm(self.bias.mT, self.weight.mT, waves)
        return torch.cat([X.mT, functions.flatten(0, 1)]).mT


class ScaledLinear(nn.Linear):
    """Linear layer with a learnt factor for each of its inputs, one at first.

    Parameters
    ----------
    in_features, out_features : int
    rate : float
        How many times faster than other parameters the factors are learnt, by an
        optimizer whose steps don't depend on the gradients' size, as Adam's.

    References
    ----------
    Holzmüller, Grinsztajn, Steinwart, "Better by Default: Strong Pre-Tuned MLPs and
    Boosted Trees on Tabular Data", NeurIPS 2024, arXiv 2407.04491.
    """

    def __init__(self, in_features: int, out_features: int, *, rate: float) -> None:
        super().__init__(in_features, out_features)
        self.rate = rate
        self.excess = nn.Parameter(torch.zeros(in_features))

    def forward(self, X: Tensor) -> Tensor:
        """Compute the layer's outputs.

        Parameters
        ----------
        X : Tensor of shape (n, in_features)

        Returns
        -------
        X : Tensor of shape (n, out_features)
        """
        # The factors, 1 + rate * excess, are applied to the weights, whatever n is.
        weight = torch.addcmul(self.weight, self.weight, self.excess, value=self.rate)
        return nn.functional.linear(X, weight, self.bias)

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"{super().extra_repr()}, rate={self.rate:g}"
