"""The weighted squared loss and the scores that are tallied beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Increasing functions of the loss, along whose gradient the backbone may step.
OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "root": torch.sqrt,
    "log": torch.log,
}

# Values that a tally holds one by one.
_MOST_NOTED = 64


class SquaredLoss(nn.Module):
    """Weighted mean over samples, grid points and outputs of the squared error."""

    def forward(
        self, predictions: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        predictions, targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,) or (n, ..., k), default=None
            One for each sample, or one for each of the errors.

        Returns
        -------
        loss : Tensor of shape ()
        """
        if predictions.shape != targets.shape:
            raise ValueError(
                f"predictions have shape {tuple(predictions.shape)} but targets have "
                f"shape {tuple(targets.shape)}; the features must have the targets' "
                f"axes, but for the last."
            )
        if sample_weight is None:
            return nn.functional.mse_loss(predictions, targets)
        errors = (predictions - targets).square()
        if sample_weight.ndim == 1:
            errors = errors.flatten(1).mean(1)
        return (sample_weight * errors).sum() / sample_weight.sum()


def objective_of(loss: Tensor, objective: str | Callable[[Tensor], Tensor]) -> Tensor:
    """Give an increasing function of a batch's loss.

    It has the minimisers of the loss, and its gradient has the same direction. A loss
    of zero, where the root and the logarithm have no gradient, gives a zero gradient.

    Parameters
    ----------
    loss : Tensor of shape ()
    objective : {"root", "log"} or callable

    Returns
    -------
    value : Tensor of shape ()
    """
    function = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    if not callable(function):
        raise ValueError(
            f"objective must be None, 'root', 'log' or a function of the loss, got "
            f"{objective!r}; pass one of these."
        )
    value = _value_of(function, loss.clamp_min(torch.finfo(loss.dtype).tiny))
    if not isinstance(value, Tensor) or value.shape != loss.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"objective returned {got} for a loss of shape (); it must return a tensor "
            "of that shape, as torch.sqrt does."
        )
    if loss.requires_grad and not value.requires_grad:
        raise ValueError(
            "objective returned a tensor without a gradient, by which nothing would be "
            "learnt; compute it from the loss by torch's functions, without detach()."
        )
    # On a GPU the look would wait for it in each step; there it ends as a divergence.
    if loss.device.type == "cpu" and value.isnan() and not loss.isnan():
        raise ValueError(
            f"objective returned {value.item()} for a loss of {loss.item():.4g}; it "
            "must give a number for any loss above zero, a larger one for a larger "
            "loss, as torch.sqrt does."
        )
    return value


def _value_of(function: Callable[[Tensor], Tensor], loss: Tensor) -> Tensor:
    """Call the user's function; say whose error it is, where it raises."""
    try:
        return function(loss)
    except Exception as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"objective raised {type(error).__name__} for a loss of {loss.item():.4g}: "
            f"{reason}; it must take a tensor of shape () and give one, computed by "
            "torch's functions, such as torch.log, and not by numpy's or math's."
        ) from error


class TrueClassWeight:
    """Weigh the output of the true class, whose target is positive, by a factor.

    Parameters
    ----------
    factor : float
        Relative to the weight of the other outputs.

    References
    ----------
    Hui and Belkin, "Evaluation of Neural Architectures Trained with Square Loss vs
    Cross-Entropy in Classification Tasks", arXiv 2006.07322, 2020.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Give a weight for each sample and output.

        Parameters
        ----------
        targets : Tensor of shape (n, ..., k)
        sample_weight : Tensor of shape (n,), default=None

        Returns
        -------
        weight : Tensor of shape (n, ..., k)
        """
        weight = torch.ones_like(targets).masked_fill_(targets > 0, self.factor)
        if sample_weight is None:
            return weight
        return weight * sample_weight.reshape(-1, *[1] * (targets.ndim - 1))


class Tally:
    """Weighted mean of a per-batch value, which stays on the device until it is read.

    Values are noted and added up some at a time, since each operation on one would cost
    as much as one on a small batch, and small tensors that live among large ones keep
    the memory between them from being used again.
    """

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.weight: Tensor | float = 0.0
        self._noted: list[tuple[Tensor, Tensor | float]] = []

    def add(self, value: Tensor, weight: Tensor | float) -> None:
        """Note a batch's mean with its weight."""
        self._noted.append((value, weight))
        if len(self._noted) >= _MOST_NOTED:
            self._add_up()

    def mean(self) -> float:
        """Read the mean; the one synchronisation of a pass."""
        if self._noted:
            self._add_up()
        return float(self.total / self.weight)

    def _add_up(self) -> None:
        values = torch.stack([value for value, _ in self._noted])
        noted = [weight for _, weight in self._noted]
        if any(isinstance(weight, Tensor) for weight in noted):
            weights = torch.stack([torch.as_tensor(w).to(values) for w in noted])
        else:  # numbers go to the device all at once
            weights = values.new_tensor(noted)
        self.total = self.total + values @ weights
        self.weight = self.weight + weights.sum()
        self._noted.clear()


def r2_from_loss(
    predictions: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> Tensor | None:
    """Nothing to tally: R2 follows from the loss of standardised targets."""
    return None


def accuracy(
    predictions: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> Tensor:
    """Weighted share of the rows whose largest score is the true class's."""
    if predictions.shape[-1] == 1:
        hits = ((predictions > 0) == (targets > 0))[..., 0]
    else:
        hits = predictions.argmax(-1) == targets.argmax(-1)
    hits = hits.to(predictions.dtype)
    if sample_weight is None:
        return hits.mean()
    return (sample_weight * hits).sum() / sample_weight.sum()
