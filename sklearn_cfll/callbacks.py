"""What every fit listens with: the best state, patience, a progress bar."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn


class StopTraining(KeyboardInterrupt):
    """Ends training early; skorch takes it as the end of the fit."""


class BestState(Callback):
    """Keep the network of the best epoch and give it back at the end.

    Parameters
    ----------
    monitor : str, default="valid_loss"
        What the history records of each epoch.
    lower_is_better : bool, default=True
    """

    def __init__(
        self, monitor: str = "valid_loss", lower_is_better: bool = True
    ) -> None:
        self.monitor = monitor
        self.lower_is_better = lower_is_better

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the last training."""
        self.best_ = math.inf
        self.state_: dict[str, Any] | None = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Copy the state where the epoch is the best so far."""
        value = net.history[-1, self.monitor]
        value = value if self.lower_is_better else -value
        if value < self.best_:
            self.best_ = value
            self.state_ = copied_state(net.module_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Load the best state."""
        if self.state_ is not None:
            net.module_.load_state_dict(self.state_)
        self.state_ = None


class Patience(Callback):
    """Stop where the monitored value stays without improvement.

    Parameters
    ----------
    monitor : str
    lower_is_better : bool
    n_iter_no_change : int
        Epochs without improvement after which training ends.
    tol : float
        Least change that counts as an improvement.
    """

    def __init__(
        self, monitor: str, lower_is_better: bool, n_iter_no_change: int, tol: float
    ) -> None:
        self.monitor = monitor
        self.lower_is_better = lower_is_better
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the last training."""
        self.best_, self.waited_ = math.inf, 0

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Count the epochs without improvement."""
        value = net.history[-1, self.monitor]
        value = value if self.lower_is_better else -value
        if value < self.best_ - self.tol:
            self.best_, self.waited_ = value, 0
            return
        self.waited_ += 1
        if self.waited_ >= self.n_iter_no_change:
            raise StopTraining


class Progress(Callback):
    """One bar over all steps, with the training loss, the score and the time left.

    The score is that of held-out rows where there are any.

    It stands on standard error, in a notebook as a widget.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Forget the last training; the bar opens with the first epoch."""
        self.bar_: Any = None

    def on_epoch_begin(self, net: Any, dataset_train: Any, **kwargs: Any) -> None:
        """Open the bar."""
        if self.bar_ is None:
            from tqdm.auto import tqdm

            self.bar_ = tqdm(
                total=net.max_epochs * dataset_train.n_batches,
                desc="epoch 1",
                unit="step",
                file=sys.stderr,
                bar_format="{desc} |{bar:10}| {percentage:3.0f}% "
                "[{elapsed} < {remaining}{postfix}]",
            )
        epoch = len(net.history)
        self.bar_.set_description_str(f"epoch {epoch}/{net.max_epochs}", refresh=False)

    def on_step(self) -> None:
        """Move on by a step; tqdm draws a few times a second at most."""
        self.bar_.update()

    def on_undo(self, n_steps: int) -> None:
        """Go back by the steps of a pass that is run again."""
        self.bar_.update(-n_steps)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Show the epoch's loss and score."""
        row = net.history[-1]
        score = row["valid_score" if "valid_score" in row else "train_score"]
        shown = {"loss": f"{row['train_loss']:.4f}", "score": f"{score:.4f}"}
        self.bar_.set_postfix(shown, refresh=False)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar_ is not None:
            self.bar_.close()
        self.bar_ = None


def copied_state(module: nn.Module) -> dict[str, Any]:
    """Copy a module's state, as ``load_state_dict`` takes it.

    Some modules add notes of their own, which only they themselves could load.
    """
    with torch.no_grad():
        return {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in module.state_dict().items()
            if isinstance(value, Tensor) or name.endswith("_extra_state")
        }
