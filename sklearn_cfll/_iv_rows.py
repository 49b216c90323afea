"""Rows of both stages on the device, and batches of them for several members."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_cfll.chunks import chunk_slices


@dataclass(frozen=True)
class StageRows:
    """Rows, their columns standardised, as the networks take them.

    Attributes
    ----------
    treatment : Tensor of shape (..., n, p)
        The endogenous columns.
    inputs : Tensor of shape (..., n, r + q)
        Stage 1's: the exogenous columns, then the instruments.
    exogenous : Tensor of shape (..., n, r)
    targets : Tensor of shape (..., n, 1)
        Encoded.
    weight : Tensor of shape (..., n) or None
    """

    treatment: Tensor
    inputs: Tensor
    exogenous: Tensor
    targets: Tensor
    weight: Tensor | None

    def __len__(self) -> int:
        return self.treatment.shape[-2]

    @property
    def n_columns(self) -> int:
        """Endogenous and exogenous columns and instruments."""
        return self.treatment.shape[-1] + self.inputs.shape[-1]

    @property
    def instruments(self) -> Tensor:
        """The instruments alone."""
        return self.inputs[..., self.exogenous.shape[-1] :]

    def take(self, rows: Tensor | slice) -> StageRows:
        """Give some of the rows; of row numbers (k, m) a set for each of k members."""
        return StageRows(
            self.treatment[rows],
            self.inputs[rows],
            self.exogenous[rows],
            self.targets[rows],
            None if self.weight is None else self.weight[rows],
        )

    def to(self, device: str) -> StageRows:
        """Give the same on a device."""
        return StageRows(
            self.treatment.to(device),
            self.inputs.to(device),
            self.exogenous.to(device),
            self.targets.to(device),
            None if self.weight is None else self.weight.to(device),
        )

    def chunks(self, numbers: int) -> Iterator[StageRows]:
        """Cut the rows, in order, into chunks for passes that hold so many numbers."""
        for rows in chunk_slices(len(self), max(1, numbers), self.treatment.device):
            yield self.take(rows)

    def evenly(self, most: int) -> StageRows:
        """Give so many rows at most, evenly spaced."""
        if len(self) <= most:
            return self
        spaced = torch.linspace(0, len(self) - 1, most, dtype=torch.float64)
        return self.take(spaced.long().to(self.treatment.device))


class MemberRows:
    """Rows that each of several members trains on, in batches of equal size.

    Parameters
    ----------
    rows : StageRows
    index : Tensor of shape (n_members, n)
        Each member's rows.
    """

    def __init__(self, rows: StageRows, index: Tensor) -> None:
        self.rows, self.index = rows, index.to(rows.treatment.device)

    def __len__(self) -> int:
        return self.index.shape[1]

    def n_batches(self, size: int) -> int:
        """Count the batches of a size at most in one pass."""
        return -(-len(self) // size)

    def whole(self) -> StageRows:
        """Give all rows of each member."""
        return self.rows.take(self.index)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[StageRows]:
        """Shuffle each member's rows and cut them into even batches."""
        n_batches = self.n_batches(size)
        if n_batches == 1:
            yield self.whole()
            return
        for part in self._shuffled(generator).tensor_split(n_batches, dim=1):
            yield self.rows.take(part)

    def halves(self, generator: torch.Generator) -> tuple[MemberRows, MemberRows]:
        """Split each member's rows at random into two halves, the first the larger."""
        index = self._shuffled(generator)
        middle = (len(self) + 1) // 2
        return (
            MemberRows(self.rows, index[:, :middle]),
            MemberRows(self.rows, index[:, middle:]),
        )

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        """Put each member's row numbers in an order of its own."""
        order = torch.rand(self.index.shape, generator=generator).argsort(1)
        return self.index.gather(1, order.to(self.index.device))


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean (..., k) over rows (..., n, k)."""
    if weight is None:
        return values.mean(-2)
    weight = weight.to(values)[..., None]
    return (weight * values).sum(-2) / weight.sum(-2)
