"""What tensors are: of shapes that fit, and such as BLAS and LAPACK may take."""

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


def check_rows(features: Tensor, targets: Tensor) -> None:
    """Refuse targets that have not a row for each row of the features.

    They would broadcast to something else.

    Parameters
    ----------
    features : Tensor of shape (..., n, d)
    targets : Tensor of shape (..., n, k)

    Raises
    ------
    ValueError
        Where they don't fit; a single output is to be a column.
    """
    rows = features.shape[:-1]
    if targets.ndim == features.ndim and targets.shape[:-1] == rows:
        return
    cure = "pass a row of targets for each row of features"
    if targets.shape == rows:
        cure = "pass a single output as a column, targets[..., None]"
    raise ValueError(
        f"targets of shape {tuple(targets.shape)} don't fit features of shape "
        f"{tuple(features.shape)}; {cure}."
    )
