"""Where BLAS and LAPACK themselves may take the place of torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What NumPy has, too.
_REAL = (torch.float32, torch.float64)


def is_plain(tensor: Tensor) -> bool:
    """Whether NumPy may take a tensor's memory.

    It is on the CPU, and nothing follows what is done with it.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    plain : bool
    """
    return tensor.is_cpu and tensor.dtype in _REAL and not is_followed(tensor)


def is_followed(tensor: Tensor) -> bool:
    """Whether a derivative, of either mode, or a map of ``torch.func`` is at work.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    followed : bool
    """
    if tensor.requires_grad or is_stand_in(tensor):
        return True
    dual = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


def is_stand_in(tensor: Tensor) -> bool:
    """Whether a map or a derivative of ``torch.func`` has put a tensor in a place.

    It has no memory then, and can't be added in place to a tensor that has some.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    stands_in : bool
    """
    try:
        tensor.data_ptr()
    except RuntimeError:
        return True
    return False
