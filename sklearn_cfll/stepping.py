"""Letting an optimizer step, with little around it (docs/design/stepping.md)."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.optim import Optimizer

from sklearn_cfll.functional.systems import is_autocast

_ZERO_GRAD = Optimizer.zero_grad
_COMMON: Any = sys.modules[Optimizer.__module__]


def _nothing(optimizer: Any) -> None:
    """Stand in for a step."""


# Torch's wrapper, by its code: others may wrap a step, too, and mean it.
_WRAPPER: Any = (
    Optimizer.profile_hook_step(_nothing).__code__
    if hasattr(Optimizer, "profile_hook_step")
    else object()
)


@contextmanager
def stepping(optimizer: Any) -> Iterator[None]:
    """Put an optimizer that averages the weights in its training mode for a while.

    Such a one (of the schedule-free kind) takes steps in its ``train`` mode, and in
    its ``eval`` mode the parameters are the average, which is the one to predict with.
    """
    set_mode(optimizer, "train")
    try:
        yield
    finally:
        set_mode(optimizer, "eval")


def set_mode(optimizer: Any, mode: str) -> None:
    """Call an optimizer's ``train`` or ``eval``, where it has both."""
    if all(callable(getattr(optimizer, name, None)) for name in ("train", "eval")):
        getattr(optimizer, mode)()


def refuse_inference_mode() -> None:
    """Refuse to train where torch keeps no gradients, and can't be told to."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "training needs gradients, which torch.inference_mode keeps none of; call "
            "fit outside of it (predict computes without gradients by itself)."
        )


def refuse_autocast(module: nn.Module) -> None:
    """Refuse to train where torch goes on with the weights of the first step.

    Parameters
    ----------
    module : torch.nn.Module
        What is to be trained.
    """
    tensors = itertools.chain(module.parameters(), module.buffers())
    if any(is_autocast(kind) for kind in {tensor.device.type for tensor in tensors}):
        raise ValueError(
            "training can't be inside of torch.autocast, which keeps the weights that "
            "it has cast until its end, so that no step would show; call fit outside "
            "of it, and use autocast in the backbone's forward."
        )


def tell_no_gradient(whose: str) -> None:
    """Warn that no step had a gradient, and say what to do."""
    warnings.warn(
        f"no step had a gradient in the parameters of {whose}, which stay as they "
        "were, so that the head alone was trained: its forward detaches them, or "
        "computes without gradients; let gradients through, or freeze the parameters "
        "by requires_grad_(False).",
        ConvergenceWarning,
        stacklevel=2,
    )


def clear_gradients(optimizer: Any) -> None:
    """Let go of all gradients.

    Torch's own method does that and looks up much besides, which a small step notices.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    """
    own = getattr(optimizer.zero_grad, "__func__", None)
    if own is not _ZERO_GRAD or _is_profiled():
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def take_step(optimizer: Any, closure: Callable[[], Any]) -> None:
    """Let an optimizer step, past torch's wrapper around it where nobody listens.

    Torch wraps each optimizer's step to record it for the profiler and to call hooks,
    which a small step notices, too.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    closure : callable

    Raises
    ------
    TypeError
        Where the optimizer doesn't call the closure.
    """
    called = False

    def computing() -> Any:
        nonlocal called
        called = True
        return closure()

    step: Any = getattr(type(optimizer), "step", None)
    if getattr(step, "__code__", None) is not _WRAPPER or _is_heard(optimizer):
        optimizer.step(computing)
    else:
        step.__wrapped__(optimizer, computing)
    if not called:
        raise TypeError(
            f"optimizer {type(optimizer).__name__} did not call the closure that its "
            "step was given, so that it had no gradient; begin step(closure) by "
            "calling closure() under torch.enable_grad(), as torch's optimizers do."
        )


def _is_heard(optimizer: Any) -> bool:
    """Whether a hook, a scheduler or the profiler wants to know of the steps.

    A torch that keeps them elsewhere is taken to listen.
    """
    return bool(
        "step" in vars(optimizer)  # a scheduler counts them by one of its own
        or getattr(optimizer, "_optimizer_step_pre_hooks", True)
        or getattr(optimizer, "_optimizer_step_post_hooks", True)
        or getattr(_COMMON, "_global_optimizer_pre_hooks", True)
        or getattr(_COMMON, "_global_optimizer_post_hooks", True)
        or _is_profiled()
    )


def _is_profiled() -> bool:
    """Whether a profiler is at work, in this thread or another."""
    here = getattr(torch.autograd, "_profiler_enabled", None)
    anywhere = getattr(torch.autograd.profiler, "_is_profiler_enabled", True)
    return anywhere or here is None or here()
