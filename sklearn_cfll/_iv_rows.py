"""Rows of both stages on the device, cut into batches."""

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
    treatment : Tensor of shape (n, p)
        The endogenous columns.
    inputs : Tensor of shape (n, r + q)
        Stage 1's: the exogenous columns, then the instruments.
    exogenous : Tensor of shape (n, r)
    targets : Tensor of shape (n, 1)
        Encoded.
    weight : Tensor of shape (n,) or None
    """

    treatment: Tensor
    inputs: Tensor
    exogenous: Tensor
    targets: Tensor
    weight: Tensor | None

    def __len__(self) -> int:
        return len(self.treatment)

    def take(self, rows: Tensor | slice) -> StageRows:
        """Give some of the rows."""
        return StageRows(
            self.treatment[rows],
            self.inputs[rows],
            self.exogenous[rows],
            self.targets[rows],
            None if self.weight is None else self.weight[rows],
        )

    def n_batches(self, size: int) -> int:
        """Batches of a size at most in one pass."""
        return -(-len(self) // size)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[StageRows]:
        """Shuffle the rows and cut them into even batches of a size at most."""
        n_batches = self.n_batches(size)
        if n_batches == 1:
            yield self
            return
        order = torch.randperm(len(self), generator=generator)
        order = order.to(self.treatment.device)
        for part in order.tensor_split(n_batches):
            yield self.take(part)

    def chunks(self, numbers: int) -> Iterator[StageRows]:
        """Cut the rows, in order, into chunks for passes that hold so many numbers."""
        for rows in chunk_slices(len(self), max(1, numbers), self.treatment.device):
            yield self.take(rows)

    def evenly(self, most: int) -> StageRows:
        """So many rows at most, evenly spaced."""
        if len(self) <= most:
            return self
        spaced = torch.linspace(0, len(self) - 1, most, dtype=torch.float64)
        return self.take(spaced.long().to(self.treatment.device))

    def halves(self, generator: torch.Generator) -> tuple[StageRows, StageRows]:
        """Split the rows at random into two halves, the first one the larger."""
        order = torch.randperm(len(self), generator=generator)
        order = order.to(self.treatment.device)
        middle = (len(self) + 1) // 2
        return self.take(order[:middle]), self.take(order[middle:])

    def folds(self, n_folds: int, generator: torch.Generator) -> list[Tensor]:
        """Cut the row numbers at random into folds."""
        order = torch.randperm(len(self), generator=generator)
        order = order.to(self.treatment.device)
        return list(order.tensor_split(min(n_folds, len(self))))


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean () over rows (n,) or (n, k), the sum over outputs."""
    values = values.reshape(len(values), -1).sum(1)
    if weight is None:
        return values.mean()
    return weight.to(values) @ values / weight.to(values).sum()
