"""What the exact head keeps of the rows that it was solved on: sums over them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sklearn_cfll._problem import Problem
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional.paths import AnyMoments, AnyPath


@dataclass(frozen=True)
class HeadSums:
    """Moments of all rows in the head, for updates; no row is kept.

    Attributes
    ----------
    moments : Moments or MomentsByOutput
        In the units of the user's weights, on the CPU.
    dtype : torch.dtype
        Of the training, which goes on in it.
    n_rows : float
        Rows in them; those that have lost weight count as their share of it.
    weight : float
        The sum of the rows' weights, whichever outputs they have targets for.
    n_calls : int
        Calls of ``partial_fit``.
    streamed : bool
        Whether the first rows came by ``partial_fit``.
    stepped : bool
        Whether the backbone has been trained on a stream.
    stale : bool
        Whether it has moved since rows went in.
    aged : bool
        Whether rows have lost weight since they went in.
    moved : bool
        Whether the head is another than the one that fit solved.
    curvature : float
        Of a classifier: that of the rows' log loss in the logarithm of the factor that
        makes logits of scores; zero where that is of fit.
    """

    moments: AnyMoments
    dtype: torch.dtype
    n_rows: float
    weight: float
    n_calls: int = 0
    streamed: bool = False
    stepped: bool = False
    stale: bool = False
    aged: bool = False
    moved: bool = False
    curvature: float = 0.0

    @classmethod
    def of(cls, moments: AnyMoments, problem: Problem) -> HeadSums:
        """Give the sums of the rows of a fit."""
        n_rows, weight = size_of(problem)
        own = in_user_units(moments, problem)
        return cls(own, problem.batches.dtype, n_rows, weight)

    def path_per_row(self, path: AnyPath) -> AnyPath:
        """Give the path of the moments where the rows weigh one in the mean."""
        if self.weight in (0, self.n_rows):
            return path
        return path.scaled(self.n_rows / self.weight)


def size_of(
    problem: Problem, share: NDArray[np.float64] | None = None
) -> tuple[float, float]:
    """Give the number of the rows and the sum of their weights.

    Where the rows have a share of their weight left, both count that alone.
    """
    own = problem.train.chosen(problem.train.weight)
    if share is None:
        n_rows = float(problem.batches.n_samples)
        return n_rows, n_rows / problem.unit
    return float(share.sum()), float((share if own is None else share * own).sum())


def in_user_units(moments: AnyMoments, problem: Problem) -> AnyMoments:
    """Moments with the weights that the user gave, on the CPU."""
    wide = torch.float64
    return moments.to(torch.device("cpu"), wide).scaled(1 / problem.unit)


def faded(
    batches: TensorBatches, forgetting: float
) -> tuple[TensorBatches, NDArray[np.float64] | None]:
    """Lower the rows' weights by their age, and give the shares that are left.

    The last row keeps its weight; None where all do.
    """
    if forgetting == 1:
        return batches, None
    batches = copy.copy(batches)
    share = forgetting ** np.arange(batches.n_samples - 1.0, -1, -1)
    weight = torch.as_tensor(share, device=batches.device)
    if batches.sample_weight is not None:
        own = batches.sample_weight.to(weight)
        weight = own * weight.reshape(-1, *[1] * (own.ndim - 1))
    batches.sample_weight = weight
    return batches, share
