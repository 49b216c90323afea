"""What the exact head keeps of the rows that it was solved on: sums over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sklearn_cfll._problem import Problem
from sklearn_cfll.functional.paths import AnyMoments


@dataclass(frozen=True)
class HeadSums:
    """Moments of all rows in the head, for updates; no row is kept.

    Attributes
    ----------
    moments : Moments or MomentsByOutput
        In the units of the user's weights, on the CPU.
    dtype : torch.dtype
        Of the training, which goes on in it.
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
    """

    moments: AnyMoments
    dtype: torch.dtype
    n_calls: int = 0
    streamed: bool = False
    stepped: bool = False
    stale: bool = False
    aged: bool = False

    @classmethod
    def of(cls, moments: AnyMoments, problem: Problem) -> HeadSums:
        """Give the sums of the rows of a fit."""
        return cls(in_user_units(moments, problem), problem.batches.dtype)


def in_user_units(moments: AnyMoments, problem: Problem) -> AnyMoments:
    """Moments with the weights that the user gave, on the CPU."""
    wide = torch.float64
    return moments.to(torch.device("cpu"), wide).scaled(1 / problem.unit)
