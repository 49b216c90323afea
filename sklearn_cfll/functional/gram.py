"""Gram matrices, by BLAS's own routine where that is faster."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_cfll.functional.lapack import symmetric_product
from sklearn_cfll.functional.plain import is_plain

# Multiplications from which on half of them are worth a call of their own.
_MANY_PRODUCTS = 2**23


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
