"""The temperature by which scores become probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

# Bounds of the logarithm of the temperature.
_LOG_TEMPERATURE = (-5.0, 5.0)


def both_sides(scores: NDArray[Any]) -> NDArray[Any]:
    """Scores of both classes where there is one of the second alone."""
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def fit_temperature(
    scores: NDArray[Any], index: NDArray[np.intp], weight: NDArray[Any]
) -> float:
    """Temperature of least log loss, with one more row that has every label alike.

    The loss is convex in the inverse temperature, whose root is found by its
    derivative. The added row keeps few rows, all of them right, from certainty.
    """
    scores = both_sides(scores)
    truth = scores[np.arange(len(index)), index]
    total = weight.sum()
    wanted = (weight @ truth + weight @ scores.mean(1) / total) / (total + 1)

    def slope(log_temperature: float) -> float:
        expected = (softmax(scores / np.exp(log_temperature), axis=1) * scores).sum(1)
        return float(weight @ expected / total - wanted)

    low, high = _LOG_TEMPERATURE
    if slope(low) <= 0:
        return float(np.exp(low))
    if slope(high) >= 0:
        return float(np.exp(high))
    return float(np.exp(brentq(slope, low, high, xtol=1e-14)))
