"""Where BLAS and LAPACK themselves may take the place of torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sklearn_cfll.functional.lapack import symmetric_product

# What NumPy has, too.
_REAL = (torch.float32, torch.float64)

# Multiplications from which on half of them are worth a call of their own.
_MANY_PRODUCTS = 2**23


def is_plain(tensor: Tensor) -> bool:
    """Whether NumPy may take a tensor's memory.

    It is on the CPU, and no derivative, of either mode, and no map of ``torch.func``
    follows what is done with it.

    Parameters
    ----------
    tensor : Tensor

    Returns
    -------
    plain : bool
    """
    if not tensor.is_cpu or tensor.requires_grad or tensor.dtype not in _REAL:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # a stand-in within a transform, which has no memory
        return False
    dual = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return dual.tangent is None


def gram_of(features: Tensor) -> Tensor:
    """Product of features (n, d), transposed, with themselves.

    MKL takes all operations of a general product, BLAS's own routine half of them;
    where torch has several threads, or there is little to do, the general one is as
    fast.

    Parameters
    ----------
    features : Tensor of shape (n, d)

    Returns
    -------
    gram : Tensor of shape (d, d)
    """
    n_rows, n_features = features.shape
    many = n_rows >= n_features and n_rows * n_features**2 >= _MANY_PRODUCTS
    if many and torch.get_num_threads() == 1 and is_plain(features):
        return torch.from_numpy(symmetric_product(features.numpy()))
    return features.mT @ features
