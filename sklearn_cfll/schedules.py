"""Schedules of the rate over a training, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


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
    factor_at = SCHEDULES.get(schedule, 0) if isinstance(schedule, str) else schedule
    if factor_at is None:
        return None
    if not callable(factor_at):
        names = ", ".join(map(repr, SCHEDULES))
        raise ValueError(
            f"lr_schedule must be {names}, None or a function of the progress, got "
            f"{schedule!r}; pass one of these."
        )
    factor = factor_at(progress)
    if not math.isfinite(factor):
        raise ValueError(
            f"lr_schedule gave {factor} at the progress {progress:.3g}; it must "
            "give a finite factor of the rate for each progress in [0, 1)."
        )
    return factor


# Under which a group of an optimizer has its rate without the schedule, and with it, so
# that a state that is saved in the midst of a training tells both.
_KEPT = "scheduled"


def base_rates(optimizer: Any) -> list[Any]:
    """Give the rate of each group as it is without a schedule.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    rates : list of float or None
        None where a group has no rate.
    """
    rates = []
    for group in optimizer.param_groups:
        base, scheduled = group.get(_KEPT, (None, None))
        rate = group.get("lr")
        # Where the user has set another since, that one counts.
        rates.append(rate if rate is None or rate != scheduled else base)
    return rates


def set_rates(optimizer: Any, rates: list[Any], factor: float) -> None:
    """Multiply the groups' rates by a schedule's factor.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    rates : list of float or None
        As :func:`base_rates` gave them.
    factor : float
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:
            group["lr"] = rate * factor
            group[_KEPT] = rate, group["lr"]


def reset_rates(optimizer: Any) -> None:
    """Give the groups the rates that they had before a schedule set them.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    """
    rates = base_rates(optimizer)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if group.pop(_KEPT, None) is not None:
            group["lr"] = rate
