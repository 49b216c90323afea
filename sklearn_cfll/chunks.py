"""Passes over rows in bounded chunks, and arrays as tensors without a copy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

# Numbers in one chunk of a pass without gradients: 16 MB of features in float32 at
# most. On the CPU 1 MB, which a core's cache holds, or as many rows as keep what each
# chunk costs small.
_CHUNK_NUMBERS = 2**22
_CACHED_NUMBERS = 2**18
_CHUNK_ROWS = 1024
_CHANNELS = 16


def numbers_in(sample_shape: tuple[int, ...]) -> int:
    """Numbers that a network holds for a sample of X, about.

    The layers for an image or a field have channels at each of its points.
    """
    numbers = math.prod(sample_shape)
    return numbers if len(sample_shape) < 2 else _CHANNELS * numbers


def chunk_slices(n_rows: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Cut rows into chunks for passes without gradients.

    Parameters
    ----------
    n_rows : int
    numbers : int
        Numbers that the pass holds for each row.
    device : torch.device

    Yields
    ------
    rows : slice
    """
    size = _CHUNK_NUMBERS // numbers
    if device.type == "cpu":
        size = min(size, max(_CACHED_NUMBERS // numbers, _CHUNK_ROWS))
    size = max(1, size)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def share_memory(array: ArrayLike | Tensor) -> Tensor:
    """Tensor on an array's own memory, read-only and memory-mapped ones too.

    It is data alone: no gradient goes back to where a tensor came from.
    """
    if isinstance(array, Tensor):
        return array.detach()
    array = np.asarray(array)
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        # torch warns that it may write to read-only memory. Nothing here does, and
        # networks, which may, get copies.
        array = np.asarray(_Writeable(array))
    return torch.from_numpy(array)


class _Writeable:
    """The same memory, declared writeable to numpy."""

    def __init__(self, array: NDArray[Any]) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._owner = array
