"""The training of both stages: passes, rates, a history, and going back."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._iv_steps import Compute, Steps
from sklearn_cfll.optimizers import has_learnable_parameters
from sklearn_cfll.recovery import CHECK_EVERY, EXPLOSION, MOST_RECOVERIES
from sklearn_cfll.schedules import rate_factor
from sklearn_cfll.stepping import (
    clear_gradients,
    refuse_inference_mode,
    stepping,
    take_step,
    tell_no_gradient,
)

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class IVTraining:
    """One training of the networks.

    Parameters
    ----------
    steps : Steps
    make_optimizer : callable
        Makes the optimizer of a module.
    schedule : str or callable
        Factor of the rate at a progress from zero to one.
    n_epochs : int
    verbose : int

    Attributes
    ----------
    history : list of dict
        A row for each pass.
    n_recoveries : int
        Times that the training went back to an earlier state.
    """

    def __init__(
        self,
        steps: Steps,
        make_optimizer: MakeOptimizer,
        *,
        schedule: Any,
        n_epochs: int,
        verbose: int,
    ) -> None:
        self.steps, self.trainee, self.verbose = steps, steps.trainee, verbose
        self.schedule = schedule
        self.n_epochs, self.n_steps = n_epochs, n_epochs * steps.n_steps()
        self.optimizers = {
            kind: make_optimizer(module)
            for kind, module in steps.modules.items()
            if has_learnable_parameters(module)
        }
        self.rates = {
            kind: [group["lr"] for group in optimizer.param_groups]
            for kind, optimizer in self.optimizers.items()
        }
        self.history: list[dict[str, Any]] = []
        self.step, self.n_recoveries, self.rate_factor = 0, 0, 1.0
        self.has_gradient = False

    def run(self) -> None:
        """Train; an interruption keeps the state so far, if it is finite."""
        refuse_inference_mode()
        self._keep()
        try:
            while len(self.history) < self.n_epochs:
                start = time.perf_counter()
                losses = self._pass()
                trouble = self._trouble(losses)
                if trouble is not None:
                    self._go_back(trouble)
                    continue
                self._note(losses, time.perf_counter() - start)
                if self.step - self.kept[0] >= CHECK_EVERY:
                    self._keep()
        except KeyboardInterrupt:
            epoch = len(self.history) + 1
            if not all(bool(p.isfinite().all()) for p in self.trainee.parameters()):
                self._restore()
            warnings.warn(
                f"training was interrupted in epoch {epoch} of {self.n_epochs}; the "
                "state so far is kept.",
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.step and self.optimizers and not self.has_gradient:
            tell_no_gradient("the backbones")
        self.trainee.eval()
        self.trainee.write_back()

    def _pass(self) -> Tensor:
        """Take all steps of a pass; give the mean losses (2,) of the stages."""
        self.trainee.train()
        found = []
        with contextlib.ExitStack() as modes:
            for optimizer in self.optimizers.values():
                modes.enter_context(stepping(optimizer))
            for kind, compute in self.steps.of_pass():
                if kind in self.optimizers:
                    found.append(self._take(kind, compute))
                elif kind == self.steps.complete:
                    with torch.no_grad():
                        found.append(compute(self.step / self.n_steps)[1])
                self.step += 1
        # Steps on the instruments alone know no loss of stage 2; the last one does.
        losses = torch.stack(found)
        losses[:-1] = torch.where(losses[:-1].isnan(), losses[-1], losses[:-1])
        return losses.mean(0)

    def _take(self, kind: str, compute: Compute) -> Tensor:
        optimizer = self.optimizers[kind]
        progress = self.step / self.n_steps
        factor = self.rate_factor * self._rate_at(progress)
        for group, rate in zip(optimizer.param_groups, self.rates[kind], strict=True):
            group["lr"] = factor * rate
        noted: list[Tensor] = []

        def closure() -> Tensor:
            clear_gradients(optimizer)
            with torch.enable_grad():
                loss, losses = compute(progress)
                if loss.requires_grad:
                    loss.backward()
                    self.has_gradient = True
            noted.append(losses)
            return loss

        take_step(optimizer, closure)
        return noted[0]

    def _rate_at(self, progress: float) -> float:
        warm = min(defaults.WARM_UP_STEPS, self.n_steps // 4)
        rise = min(1.0, (self.step + 1) / warm) if warm else 1.0
        factor = rate_factor(self.schedule, progress)
        return rise if factor is None else rise * float(factor)

    # History --------------------------------------------------------------------

    def _note(self, losses: Tensor, seconds: float) -> None:
        first, second = losses.tolist()
        progress = min(1.0, self.step / self.n_steps)
        row = {
            "epoch": len(self.history) + 1,
            "stage1_loss": first,
            "stage2_loss": second,
            "lr": next(iter(self.optimizers.values())).param_groups[0]["lr"],
            "instrument_prox": float(self.steps.penalties.instrument_prox.at(progress)),  # type: ignore[arg-type]
            "prox": float(self.steps.penalties.prox.at(progress)),  # type: ignore[arg-type]
            "dur": seconds,
        }
        self.history.append(row)
        if self.verbose:
            shown = [f"{name} {value:.4g}" for name, value in row.items()]
            print(", ".join(shown))

    # Going back -----------------------------------------------------------------

    def _trouble(self, losses: Tensor) -> str | None:
        if not bool(losses.isfinite().all()):
            return "a loss that is not finite"
        if int(self.trainee.n_failures):
            return "a head whose system was not positive definite"
        # Predicting nothing has the loss one.
        if float(losses[1]) > EXPLOSION:
            return f"a loss of {float(losses[1]):.3g} times the variance of y"
        return None

    def _keep(self) -> None:
        optimizers = {k: o.state_dict() for k, o in self.optimizers.items()}
        state = self.trainee.state_dict(), optimizers
        self.kept = self.step, len(self.history), copy.deepcopy(state)

    def _restore(self) -> None:
        self.step, n_epochs, kept = self.kept
        state, optimizers = copy.deepcopy(kept)
        del self.history[n_epochs:]
        self.trainee.load_state_dict(state)
        for kind, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizers[kind])

    def _go_back(self, trouble: str) -> None:
        epoch = len(self.history) + 1
        if self.n_recoveries == MOST_RECOVERIES:
            rate = next(iter(self.rates.values()))[0]
            raise FloatingPointError(
                f"training diverged in epoch {epoch}: {trouble}, after going back "
                f"{MOST_RECOVERIES} times to half the rate; decrease lr (now "
                f"{rate:g}), or increase alpha, instrument_alpha and the proxes."
            )
        self._restore()
        self.n_recoveries += 1
        self.rate_factor /= 2
        warnings.warn(
            f"training diverged in epoch {epoch} ({trouble}); it went back to an "
            f"earlier state, at {self.rate_factor:g} times the rate.",
            ConvergenceWarning,
            stacklevel=3,
        )
