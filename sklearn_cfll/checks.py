"""What is said of a net whose parameters or sizes don't fit."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any, NoReturn

import numpy as np
from torch import Tensor, nn

from sklearn_cfll.head import ClosedFormHead

_ORDERS = ("head_first", "backbone_first")


def check_parameters(net: Any) -> None:
    """Check the parameters of a net that neither torch nor skorch checks.

    Parameters
    ----------
    net : CFLLNet

    Raises
    ------
    ValueError
        Where one can't be used.
    """
    if net.update_order not in _ORDERS:
        raise ValueError(
            f"update_order must be {_ORDERS[0]!r} or {_ORDERS[1]!r}, got "
            f"{net.update_order!r}."
        )
    size = net.batch_size
    if not isinstance(size, Integral) or (size < 1 and size != -1):
        raise ValueError(
            f"batch_size must be a positive integer, or -1 for all rows, got {size!r}."
        )
    alpha = net.alpha
    shape = alpha.shape if isinstance(alpha, Tensor) else np.shape(alpha)
    if shape not in ((), (1,), (net.n_outputs,)):
        raise ValueError(
            f"alpha has shape {tuple(shape)}; pass a number, or one for each output "
            f"(n_outputs={net.n_outputs})."
        )


def count_batches(iterator: Any) -> int:
    """Count the batches of a pass, by which schedules know how far they are.

    Parameters
    ----------
    iterator : iterable

    Returns
    -------
    n_batches : int
    """
    try:
        n_batches = len(iterator)
    except TypeError as error:
        raise TypeError(
            f"a pass over the training batches has no length ({error}), by which the "
            "schedules of lr and prox know how far they are; give its Dataset one."
        ) from error
    if n_batches == 0:
        raise ValueError(
            "a pass over the training rows has no batch; pass more rows, or leave out "
            "drop_last."
        )
    return n_batches


def takes_weights(criterion: nn.Module) -> bool:
    """Whether a loss may be called with predictions, targets and weights.

    Parameters
    ----------
    criterion : torch.nn.Module

    Returns
    -------
    taken : bool
    """
    try:
        inspect.signature(criterion.forward).bind(None, None, None)
    except TypeError:
        return False
    return True


def refuse_axes(features: Any, targets: Tensor) -> NoReturn:
    """Say that a backbone's features don't have the axes of their targets.

    Parameters
    ----------
    features : object
        What the backbone returned.
    targets : Tensor of shape (n, ..., k)
    """
    if not isinstance(features, Tensor):
        raise TypeError(
            f"the backbone returned a {type(features).__name__}; it must return one "
            "tensor of features, (n_samples, n_features)."
        )
    raise ValueError(
        f"the backbone returned features of shape {tuple(features.shape)} for targets "
        f"of shape {tuple(targets.shape)}; it must keep all axes but the last."
    )


def refuse_sizes(features: Tensor, targets: Tensor, head: ClosedFormHead) -> None:
    """Say so, where the head's sizes are not those of features and targets.

    Parameters
    ----------
    features : Tensor of shape (n, ..., d)
    targets : Tensor of shape (n, ..., k)
    head : ClosedFormHead
    """
    sizes = features.shape[-1], targets.shape[-1]
    if sizes != tuple(head.weight.shape):
        n_features, n_outputs = head.weight.shape
        raise ValueError(
            f"the backbone gives {sizes[0]} features, and targets are {sizes[1]} to a "
            f"row, but the head was made for n_features={n_features} and n_outputs="
            f"{n_outputs}; set these to the sizes of the data."
        )
