"""The factor that makes logits of scores, as further rows move it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from sklearn_cfll._logits import both_sides


def moved_factor(
    factor: float,
    curvature: float,
    scores: NDArray[Any],
    index: NDArray[Any],
    weight: NDArray[Any],
    *,
    bounds: tuple[float, float],
) -> float:
    """Factor of scores by further rows, given what earlier ones said of it.

    Parameters
    ----------
    factor, curvature : float
        The best one for the earlier rows, and the second derivative of their log loss
        by its logarithm.
    scores, index, weight : arrays of shape (n, k), (n,) and (n,)
        Of the further rows, as :func:`fit_blend` has them.
    bounds : (float, float)

    Returns
    -------
    factor : float
    """
    both, rows = both_sides(scores), np.arange(len(scores))

    def loss(step: float) -> float:
        losses = -log_softmax(factor * np.exp(step) * both, axis=1)[rows, index]
        return float(weight @ losses + curvature * step**2 / 2)

    least, most = np.log(np.divide(bounds, factor))
    found = minimize_scalar(loss, bounds=(least, most), method="bounded")
    return float(factor * np.exp(found.x))


def curvature_of(factor: float, scores: NDArray[Any], weight: NDArray[Any]) -> float:
    """Second derivative of rows' log loss by the logarithm of their scores' factor.

    It is the expected one: the variance of each row's logits over the classes.

    Parameters
    ----------
    factor : float
    scores, weight : arrays of shape (n, k) and (n,)

    Returns
    -------
    curvature : float
    """
    logits = factor * both_sides(scores)
    return float(weight @ _variances(logits, softmax(logits, axis=1)))


def typical_curvature(
    factor: float, scores: NDArray[Any], weight: NDArray[Any]
) -> float:
    """Curvature of one row like these, which is taken for too large where they are few.

    The mean over the rows and one more, to which all classes are alike.
    """
    logits = factor * both_sides(scores)
    even = weight @ _variances(logits, np.full_like(logits, 1 / logits.shape[1]))
    own = curvature_of(factor, scores, weight)
    return float((own + even / weight.sum()) / (weight.sum() + 1))


def _variances(logits: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    """Variance (n,) of logits over the classes, which have shares."""
    mean = (share * logits).sum(1, keepdims=True)
    variances: NDArray[Any] = (share * (logits - mean) ** 2).sum(1)
    return variances
