"""Schedules of the rate over a training, by name."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """Fall from one to zero along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Fall from one to zero in a straight line."""
    return 1 - progress


def cooldown(progress: float) -> float:
    """Stay at one for the first half, then fall to zero in a straight line."""
    return min(1.0, 2 * (1 - progress))


SCHEDULES: dict[str, Callable[[float], float] | None] = {
    "cooldown": cooldown,
    "cosine": cosine,
    "linear": linear,
    "constant": None,
}


def rate_factor(
    schedule: str | Callable[[float], float] | None, progress: float
) -> float | None:
    """Give a schedule's factor of the rate at a progress in [0, 1).

    Returns
    -------
    factor : float or None
        None where the rate is left as it is.
    """
    factor_at = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    if factor_at is None:
        return None
    factor = factor_at(progress)
    if not math.isfinite(factor):
        raise ValueError(
            f"lr_schedule gave {factor} at the progress {progress:.3g}; it must "
            "give a finite factor of the rate for each progress in [0, 1)."
        )
    return factor
