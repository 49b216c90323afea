"""Where and how precisely to train, and with which random numbers."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn

from sklearn_cfll.functional.systems import is_autocast

# Process-wide, since torch's generators are: two fits in threads would otherwise
# draw from each other's.
_SEED_LOCK = threading.RLock()

# The limit on LAPACK's threads, where there is one, and an entry for each who wants it.
_LIMIT_LOCK = threading.Lock()
_limits: list[Any] = []


def resolve_device(device: str | torch.device) -> torch.device:
    """Give the device; "auto" is CUDA, then MPS, then the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.backends.mps.is_available()
        return torch.device("mps" if mps else "cpu")
    try:
        resolved = torch.device(device)
        if resolved.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device!r} is not available here ({reason}); "
            "use device='auto' or 'cpu'."
        ) from error
    return resolved


def device_or_cpu(device: str | torch.device) -> torch.device:
    """Give the device, or the CPU for what was trained on a device not here."""
    try:
        return resolve_device(device)
    except ValueError:
        return torch.device("cpu")


def resolve_dtype(
    dtype: str, n_samples: int, device: torch.device, threshold: int
) -> torch.dtype:
    """Give the dtype of the training; "auto" is float64 on small tables."""
    if device.type == "mps":
        if dtype == "float64":
            raise ValueError(
                "dtype='float64' is not available on MPS; use 'auto' or 'float32'."
            )
        return torch.float32
    if dtype == "auto":
        return torch.float64 if n_samples <= threshold else torch.float32
    return torch.float64 if dtype == "float64" else torch.float32


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a module and set its precision; complex tensors stay complex."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, dtype.to_complex())
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return module._apply(moved)


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute as the estimator says, whatever torch's settings are around a call.

    They are autocast, which would also keep the weights as it has cast them once, for
    all of a training, and the default device.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if is_autocast(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def lapack_on_one_thread() -> Iterator[None]:
    """Confine SciPy's LAPACK to one thread.

    A head's factorisation is too small to share, and OpenBLAS's threads would wait
    for the cores that torch's threads hold. Of several fits in threads the first one
    sets the limit, which is the process's, and the last one lifts it.
    """
    with _LIMIT_LOCK:
        if not _limits:
            _limits.append(_openblas().limit(limits=1))
        _limits.append(None)
    try:
        yield
    finally:
        with _LIMIT_LOCK:
            _limits.pop()
            if len(_limits) == 1:
                _limits.pop().restore_original_limits()


@functools.cache
def _openblas() -> Any:
    """Find the libraries once; the search takes milliseconds, as a new head may."""
    return ThreadpoolController().select(internal_api="openblas")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from the seed, and leave its generators be."""
    on_device = device.type != "cpu"
    kind = device.type if on_device else "cuda"
    devices = [device.index or 0] if on_device else []
    with _SEED_LOCK, torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        yield
