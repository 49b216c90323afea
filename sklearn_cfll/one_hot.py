"""Targets of classes, which take memory for the rows in use alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OneHot:
    """Targets of minus and plus a scale, made when rows of them are asked for.

    Parameters
    ----------
    index : Tensor of shape (n,)
        The number of each row's class.
    n_classes : int
    scale : float, default=1.0
        The true class has this, the others minus this.
    dtype : torch.dtype, default=torch.float64

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll.one_hot import OneHot
    >>> OneHot(torch.tensor([2, 0, 1]), 3)[:2].tolist()
    [[-1.0, -1.0, 1.0], [1.0, -1.0, -1.0]]
    """

    def __init__(
        self,
        index: Tensor,
        n_classes: int,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.index, self.n_classes = index, n_classes
        self.scale, self.dtype = scale, dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and classes."""
        return len(self.index), self.n_classes

    def to(self, device: torch.device, dtype: torch.dtype) -> OneHot:
        """Give the same targets on a device, in another precision.

        Parameters
        ----------
        device : torch.device
        dtype : torch.dtype

        Returns
        -------
        targets : OneHot
        """
        return OneHot(self.index.to(device), self.n_classes, self.scale, dtype)

    def take(self, rows: Any) -> OneHot:
        """Give the targets of some rows, still unmade.

        Parameters
        ----------
        rows : slice or array or Tensor of int

        Returns
        -------
        targets : OneHot
        """
        return OneHot(self.index[rows], self.n_classes, self.scale, self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        index = self.index[rows][..., None]
        targets = torch.full(
            (*index.shape[:-1], self.n_classes),
            -self.scale,
            dtype=self.dtype,
            device=index.device,
        )
        return targets.scatter_(-1, index, self.scale)
