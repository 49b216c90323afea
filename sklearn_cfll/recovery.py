"""Undoes steps that explode: goes back to a good state and halves the rate."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections import deque
from statistics import median
from typing import Any, NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from sklearn_cfll.callbacks import copied_state
from sklearn_cfll.stepping import take_step

# Steps from one look at the losses to the next; each look is one synchronisation.
CHECK_EVERY = 50

# An epoch of fewer steps needs no look of its own, which would cost a tenth of it.
FEW_STEPS = 10

MOST_RECOVERIES = 5

# Losses that stay this many times above both their running median and the loss of
# predicting nothing are an explosion; it takes the median of the last few, since
# heavy-tailed targets make single batches as bad.
EXPLOSION = 10.0
_FEW = 5
_MEMORY = 200


class Trouble(NamedTuple):
    """Why a step is undone.

    Attributes
    ----------
    reason, cure : str
    """

    reason: str
    cure: str


class State(NamedTuple):
    """All that a step changes."""

    step: int
    module: dict[str, Any]
    slope: Any
    optimizer: Any
    head_update: Any


class Recovery:
    """Watches one training.

    Parameters
    ----------
    net : CFLLNet
        About to train; its first state is kept.

    Attributes
    ----------
    n_recoveries : int
        Times that the training went back.
    rate_factor : float
        Multiplies the rate of every step.
    """

    def __init__(self, net: Any) -> None:
        self.n_recoveries, self.rate_factor = 0, 1.0
        self.energy = 0.0
        self.events: list[str] = []
        self._trouble = Trouble("", "")
        self._losses: list[Tensor] = []  # on the device, not looked at yet
        self._earlier: deque[float] = deque(maxlen=_MEMORY)
        self._failures = int(net.module_.head.n_failures)
        self._states: deque[State] = deque(maxlen=2)
        self._save(net)

    @property
    def n_waiting(self) -> int:
        """Steps that were not looked at yet."""
        return len(self._losses)

    @property
    def has_state(self) -> bool:
        """Whether there is a state to go back to: until the training has ended."""
        return len(self._states) > 0

    def set_energy(
        self, targets: Tensor, weight: Tensor | None = None, least: float = 0.0
    ) -> None:
        """Note the loss of predicting nothing.

        Parameters
        ----------
        targets : Tensor of shape (n, ..., k)
        weight : Tensor of shape (n,) or (n, ..., k), default=None
            As the loss has them.
        least : float, default=0.0
            What it is taken for at least.
        """
        norm = torch.linalg.vector_norm
        if not targets.numel():
            return
        if weight is None:
            energy = norm(targets) ** 2 / targets.numel()
        elif weight.ndim == 1:
            energy = weight @ norm(targets.flatten(1), dim=1).square()
            energy = energy / (weight.sum() * targets[0].numel())
        else:
            energy = norm(weight.sqrt() * targets) ** 2 / weight.sum()
        self.energy = max(float(energy), least)

    def watch(self, loss: Tensor) -> bool:
        """Take a step's loss; tell whether it is time to check.

        Parameters
        ----------
        loss : Tensor of shape ()

        Returns
        -------
        due : bool
        """
        self._losses.append(loss)
        return self.n_waiting >= CHECK_EVERY

    # Checking -------------------------------------------------------------------

    def check(self, net: Any) -> Trouble | None:
        """Look at all steps since the last look.

        Parameters
        ----------
        net : CFLLNet

        Returns
        -------
        trouble : Trouble or None
        """
        losses, failures, finite = self._look(net)
        self._losses.clear()
        step = f"decrease lr (now {net.lr:g}), increase prox, or scale X"
        bad = [loss for loss in losses if not math.isfinite(loss)]
        if failures and not bad:
            noun = "solve was" if failures == 1 else "solves were"
            return Trouble(f"{failures} {noun} not positive definite", _shift(net))
        if bad:
            return Trouble(f"the loss is {bad[0]}", step)
        if not finite:
            return Trouble("the parameters are not finite", step)
        recent = [*self._earlier, *losses][-_FEW:]
        if recent:
            usual = max(self.energy, median(self._earlier) if self._earlier else 0.0)
            loss = median(recent)
            if loss > EXPLOSION * usual > 0:
                return Trouble(f"the loss rose from {usual:.3g} to {loss:.3g}", step)
        self._earlier.extend(losses)
        if net.step_ - self._states[-1].step >= CHECK_EVERY:
            self._save(net)
        return None

    def _look(self, net: Any) -> tuple[list[float], int, bool]:
        """Read losses, failed solves and whether all parameters are finite, at once."""
        head = net.module_.head
        sums = [
            (torch.view_as_real(value) if value.is_complex() else value).sum()
            for value in itertools.chain(net.module_.backbone.parameters(), [head.bias])
            if value.is_floating_point() or value.is_complex()
        ]
        parts = [*self._losses, *sums, head.weight.sum(), head.n_failures]
        with torch.no_grad():
            values = torch.stack([part.detach().float() for part in parts]).tolist()
        n_losses = len(self._losses)
        finite = all(map(math.isfinite, values[n_losses:-1]))
        return values[:n_losses], int(values[-1]) - self._failures, finite

    # Going back -----------------------------------------------------------------

    def undo(self, net: Any, trouble: Trouble) -> None:
        """Restore the last good state and halve the rate.

        Parameters
        ----------
        net : CFLLNet
        trouble : Trouble

        Raises
        ------
        FloatingPointError
            Where that was done ``MOST_RECOVERIES`` times.
        """
        epoch = len(net.history)
        if self.n_recoveries == MOST_RECOVERIES:
            raise FloatingPointError(
                f"training diverged in epoch {epoch}: {trouble.reason}, after "
                f"{MOST_RECOVERIES} returns to an earlier state, each with half the "
                f"rate; {trouble.cure}."
            )
        if self.n_recoveries and not self._saved and len(self._states) > 1:
            self._states.pop()  # it led here twice
        self.restore(net)
        self.n_recoveries += 1
        self.rate_factor /= 2
        self._trouble = trouble
        self.events.append(f"epoch {epoch}: {trouble.reason}")

    def _save(self, net: Any) -> None:
        with torch.no_grad():
            self._states.append(
                State(
                    net.step_,
                    copied_state(net.module_),
                    net.module_.head.slope,
                    copy.deepcopy(net.optimizer_.state_dict()),
                    copy.deepcopy(net.head_update_),
                )
            )
        self._saved = True

    def restore(self, net: Any) -> None:
        """Load the last good state; the rates stay as they are.

        Parameters
        ----------
        net : CFLLNet
        """
        state = self._states[-1]
        net.module_.load_state_dict(state.module)
        net.module_.head.slope = state.slope
        net.head_update_ = copy.deepcopy(state.head_update)
        # A scheduler may have moved them since.
        rates = [group.get("lr") for group in net.optimizer_.param_groups]
        net.optimizer_.load_state_dict(copy.deepcopy(state.optimizer))
        for group, rate in zip(net.optimizer_.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = rate
        self._losses.clear()
        self._saved = False

    def step(self, optimizer: Any, closure: Any) -> None:
        """Let the optimizer step, at its reduced rate.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
        closure : callable
        """
        if self.rate_factor == 1:
            take_step(optimizer, closure)
            return
        # Scaled for this step alone, whoever schedules the rates.
        groups = [group for group in optimizer.param_groups if "lr" in group]
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * self.rate_factor
        try:
            take_step(optimizer, closure)
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def finish(self) -> None:
        """Let go of the states, and warn where the training went back."""
        self._states.clear()
        self._losses.clear()
        if not self.events:
            return
        times = "once" if self.n_recoveries == 1 else f"{self.n_recoveries} times"
        warnings.warn(
            f"training went back to an earlier state {times} and halved its rate each "
            f"time ({'; '.join(self.events)}); {self._trouble.cure}.",
            ConvergenceWarning,
            stacklevel=2,
        )


def unsolved(net: Any) -> Trouble:
    """Say that a factorisation raised.

    Parameters
    ----------
    net : CFLLNet

    Returns
    -------
    trouble : Trouble
    """
    return Trouble("a solve of the head failed", _shift(net))


def _shift(net: Any) -> str:
    alpha = net.alpha.tolist() if isinstance(net.alpha, Tensor) else net.alpha
    return f"increase prox (now {net.prox}) or alpha (now {alpha})"
