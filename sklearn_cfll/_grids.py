"""Grids: how the axes of X, of the features and of y belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_array


def misfit(
    features: tuple[int, ...], n_samples: int, targets: tuple[int, ...]
) -> str | None:
    """Say what is wrong with the shape of features; None where it fits the targets'.

    Parameters
    ----------
    features : tuple
        Shape of the features of some samples: (n_samples, d) or (n_samples, *grid, d).
    n_samples : int
        The number of these samples.
    targets : tuple
        Shape of y: (n,), (n, k), (n, *grid) or (n, *grid, k).
    """
    whole = len(features) > 1 and features[0] == n_samples and features[-1] > 0
    grid, rest = features[1:-1], targets[1:]
    if whole and _on_grid(grid, rest):
        return None
    if whole and len(targets) > 1 and (grid or len(targets) > 2):
        points = "".join(f"{size}, " for size in grid)
        own = f"(n_samples, {points}n_outputs)"
        one = f"(n_samples, {points[:-2]})" if grid else "(n_samples,)"
        cure = "for others return (n_samples, *grid, n_features) with y's grid"
        if grid and _on_grid(features[2:], rest):
            cure = "pass TorchBackbone(..., feature_axis=1) if the features stand there"
        return (
            f"with these, y must be {one} or {own}, but it has shape "
            f"{described(rest)}; {cure}."
        )
    wanted = f"({n_samples}, n_features)"
    return f"it must return {wanted} with n_features of at least 1."


def _on_grid(grid: tuple[int, ...], targets: tuple[int, ...]) -> bool:
    """Whether the targets of a sample are one or several for each point of a grid."""
    return targets[: len(grid)] == grid and len(targets) <= len(grid) + 1


def read_other_resolution(estimator: Any, X: Any) -> NDArray[Any]:
    """Check X that need not have the shape which the training's samples had.

    Convolutions and Fourier neural operators take other resolutions. Whether this one
    does, the backbone itself will say.
    """
    X = check_array(
        X,
        dtype=[np.float64, np.float32],
        allow_nd=True,
        input_name="X",
        estimator=estimator,
    )
    shape = estimator._sample_shape
    if X.ndim != 1 + len(shape):
        raise ValueError(
            f"X has shape {X.shape} but the X of the training had shape "
            f"{described(shape)}; pass the same axes."
        )
    return X


def takes_other_resolutions(estimator: Any) -> bool:
    """Whether predictions may be asked for on samples of another shape."""
    fitted = vars(estimator)
    if "_sample_shape" not in fitted or "feature_names_in_" in fitted:
        return False
    targets = fitted.get("_targets")
    on_grid = targets is not None and targets.n_grid_axes > 0
    return on_grid or len(fitted["_sample_shape"]) > 1


def described(sample_shape: tuple[int, ...]) -> str:
    """Shape of samples, their number left open."""
    return f"(n_samples, {', '.join(map(str, sample_shape))})"


def refuse_other_shape(estimator: Any, X: NDArray[Any], error: Exception) -> None:
    """Name the shapes, where a backbone failed on an X of another one."""
    shape = vars(estimator).get("_sample_shape")
    if shape is not None and X.shape[1:] != shape:
        raise ValueError(
            f"X has shape {X.shape} but the X of the training had shape "
            f"{described(shape)}, and the backbone raised {type(error).__name__}: "
            f"{error}"
        ) from error


def relative_weights(
    y: NDArray[Any], weight: NDArray[np.float64] | None, unit: float | None
) -> tuple[NDArray[np.float64], float]:
    """Weigh each sample by the inverse mean square of its targets, too.

    Parameters
    ----------
    y : array of shape (n, ...)
        Missing targets don't count.
    weight : array of shape (n,) or None
    unit : float or None
        Root mean square of targets that get the weight one; None takes the least.

    Returns
    -------
    weight : array of shape (n,)
    unit : float
    """
    rows = np.abs(y).reshape(len(y), -1)
    known = (~np.isnan(rows)).sum(1).clip(1)
    rows = np.nan_to_num(rows, copy=False, nan=0.0)
    largest = rows.max(1)
    used = np.ones(len(y), dtype=bool) if weight is None else weight > 0
    zero = np.flatnonzero(used & (largest == 0))
    if len(zero):
        raise ValueError(
            f"y is zero for all of sample {zero[0]}, so that an error relative to it "
            "has no sense; leave the sample out, or set sample_norm=None."
        )
    largest = np.where(largest > 0, largest, 1.0)
    rows /= largest[:, None]  # whose square might overflow
    root = largest * np.sqrt(np.square(rows, out=rows).sum(1) / known)
    unit = float(root[used].min()) if unit is None else unit
    relative = np.square(unit / np.where(root > 0, root, np.inf))
    return relative if weight is None else weight * relative, unit


def refuse_on_grid(estimator: Any, method: str) -> None:
    """Say that a method doesn't go with targets on a grid."""
    if estimator._targets.n_grid_axes:
        raise ValueError(
            f"{method} is not available for targets on a grid; call fit with all "
            "samples, with warm_start=True to go on from the network as it is."
        )
