"""How strongly each minibatch's head is pulled to the last one, over the training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_cfll.functional.systems import LEAST_LEARNT_PROX


class Prox:
    """A constant pull.

    Parameters
    ----------
    value : float
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def at(self, progress: float) -> float | PrequentialProx:
        """Give what the head's update takes at a progress from zero to one."""
        return self.value


class AnnealedProx(Prox):
    """A pull that moves geometrically from a start to an end.

    Parameters
    ----------
    start, end : float
    """

    def __init__(self, start: float, end: float) -> None:
        super().__init__(start)
        self.start, self.end = start, end

    def at(self, progress: float) -> float:
        """Give the weighted geometric mean of both ends."""
        self.value = float(self.start ** (1 - progress) * self.end**progress)
        return self.value


class PrequentialProx:
    """A pull that follows how well each head predicts the batch after it.

    The loss of the last head on a new batch, before that batch is used, is an honest
    out-of-sample loss. Its derivative by the logarithm of the prox that made the head
    says which way to go; the logarithm takes Adam's normalised steps. All of it stays
    on the device.

    Parameters
    ----------
    start : float, default=1.0
    rate : float, default=0.1
        Most that the logarithm moves in a step, about.
    """

    _MEMORY = (0.9, 0.99)
    _MOST = 1e4

    def __init__(self, start: float = 1.0, rate: float = 0.1) -> None:
        self.value: float | Tensor = start
        self.rate = rate
        self.n_learnt = 0
        self._logarithm: Tensor | float = math.log(start)
        self._mean: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def at(self, progress: float) -> PrequentialProx:
        """Give itself: the head's update lets it learn."""
        return self

    @torch.no_grad()
    def learn(
        self,
        residual: Tensor,
        slope: Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Take a step on the logarithm.

        Parameters
        ----------
        residual : Tensor of shape (n, ..., k)
            Targets of a new batch, less the last head's predictions.
        slope : Tensor of shape (n, ..., k)
            Derivative of those predictions by the logarithm of prox.
        sample_weight : Tensor of shape (n,) or (n, ..., k), default=None
        """
        gain = -residual * slope
        if sample_weight is not None:
            if sample_weight.ndim == 1:
                gain = gain.flatten(1).mean(1)
            gain = sample_weight * gain / sample_weight.mean()
        gradient = gain.mean()
        self.n_learnt += 1
        first, second = self._MEMORY
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient.square()
        mean = self._mean / (1 - first**self.n_learnt)
        root = torch.sqrt(self._square / (1 - second**self.n_learnt))
        tiny = torch.finfo(root.dtype).tiny
        logarithm = self._logarithm - self.rate * mean / root.clamp_min(tiny)
        self._logarithm = logarithm.clamp(
            math.log(LEAST_LEARNT_PROX), math.log(self._MOST)
        )
        self.value = self._logarithm.exp()


def as_prox(prox: Any) -> Prox | PrequentialProx:
    """Give the rule for what a user passes as ``prox``.

    Raises
    ------
    ValueError
        Where it is none.
    """
    if isinstance(prox, Tensor) and prox.ndim == 0:
        return Prox(prox)  # type: ignore[arg-type]  # its value is not looked at
    if isinstance(prox, str) and prox == "auto":
        return PrequentialProx()
    try:
        values = np.asarray(prox, dtype=float)
    except (TypeError, ValueError):
        values = np.full(3, np.nan)
    if values.shape not in ((), (2,)):
        raise ValueError(
            f"prox must be 'auto', a number or a pair (start, end), got {prox!r}."
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"prox must be finite and not negative, got {prox!r}.")
    if values.ndim == 0:
        return Prox(float(values))
    if not values.all():
        raise ValueError(
            f"a pair of prox must be positive at both ends, between which it moves "
            f"geometrically; got {prox!r}."
        )
    return AnnealedProx(*values.tolist())
