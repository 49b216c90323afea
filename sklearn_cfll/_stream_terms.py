"""On which terms a fit or a stream goes on: what may change, and what may not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
from torch import nn

from sklearn_cfll import _defaults as defaults
from sklearn_cfll._problem import batch_size_of
from sklearn_cfll._validation import as_backbone, check_prox

# Parameters that the first rows settle: later ones are read as these were.
_SETTLED = ("sample_norm", "class_weight", "target_scale", "true_class_weight")

# Those of them that a warm start can't change: it goes on from the network and from the
# scaling of y. The head is solved anew by the others.
_OF_NETWORK = ("backbone", "sample_norm")

# Passes over a later chunk of a stream that partial_fit began. The first one is gone
# through as often as fit would: features that one pass has formed are poor, and the
# stream never makes up for it (docs/design/defaults.md).
_LATER_PASSES = 3

# Rows of a later chunk from which on its steps are whole ones. On fewer rows the rate
# is as much lower, and prox as much larger: whole steps on each row that comes would
# unlearn all others (docs/design/defaults.md).
_WHOLE_CHUNK = 100

# Factor of the automatic rate, which no schedule lowers in the end.
_AUTO_RATE = 0.25


def as_streaming(estimator: Any, n_rows: int, first: bool) -> Any:
    """Give a view of the estimator by which a chunk of rows is trained on."""
    prox = defaults.PROX if estimator.prox is None else estimator.prox
    prox = check_prox(prox, estimator.batch_size)
    prox = prox[1] if isinstance(prox, tuple) else prox
    # What few rows say weighs less beside what is learnt.
    share = 1.0 if first else min(1.0, n_rows / _WHOLE_CHUNK)
    if isinstance(prox, str) and share < 1:
        prox = defaults.PROX[1]  # a few rows can't tell which one suits them
    params: dict[str, Any] = {
        # A stream has no end that schedules could go towards.
        "lr_schedule": "constant",
        "_rate_factor": share * (_AUTO_RATE if estimator.lr == "auto" else 1.0),
        "prox": prox if isinstance(prox, str) else prox / share,
        "max_epochs": _epochs_of_stream(estimator, n_rows, first),
    }
    if first:
        view = copy.copy(estimator)
        view.__dict__.update(early_stopping=False, **params)
        return view
    if isinstance(estimator.random_state, Integral):
        entropy = [int(estimator.random_state), estimator._sums.n_calls]
        seed = np.random.SeedSequence(entropy).generate_state(1)[0]
        params["random_state"] = int(seed) % 2**31
    return estimator._as_trained(**params)


def _epochs_of_stream(estimator: Any, n_rows: int, first: bool) -> int:
    if estimator.stream_epochs != "auto":
        return int(estimator.stream_epochs)
    if first and estimator.max_epochs == "auto":
        # Few rows, too, are gone through often: later chunks build on their features.
        size = batch_size_of(estimator.batch_size, n_rows)
        return defaults.max_epochs(math.ceil(n_rows / size))
    if first:
        return int(estimator.max_epochs)
    return _LATER_PASSES if estimator._sums.streamed else 0


# What may not change ----------------------------------------------------------------


def settle_terms(estimator: Any, *kept: str) -> None:
    """Note the parameters by which the first rows are read and the network is built.

    Parameters
    ----------
    estimator : estimator
    *kept : str
        Those that an earlier call has settled for good.
    """
    terms = _terms_of(estimator)
    for name, value in vars(estimator).get("_terms", {}).items():
        if name.split("__")[0] in kept:
            terms[name] = value
    estimator._terms = terms


def refuse_changed_terms(estimator: Any) -> None:
    """Refuse to go on where such a parameter has changed since.

    Raises
    ------
    ValueError
    """
    now, then = _terms_of(estimator), dict(vars(estimator).get("_terms", {}))
    trained = str(estimator._sums.dtype).removeprefix("torch.")
    if estimator.dtype != "auto":  # which takes what there is
        now["dtype"], then["dtype"] = estimator.dtype, trained
    for name, change in _changes(then, now):
        raise ValueError(
            f"{name} has changed since the first rows came, {change}, but the network "
            "and the head go on from what they were; set it back, or call fit, or "
            "partial_fit of a clone, to begin anew."
        )


def refuse_changed_network(estimator: Any) -> None:
    """Refuse a warm start where what it goes on from was made by other parameters.

    Raises
    ------
    ValueError
    """
    then = vars(estimator).get("_terms", {})
    for name, change in _changes(then, _terms_of(estimator)):
        if name.split("__")[0] in _OF_NETWORK:
            raise ValueError(
                f"{name} has changed since the last fit, {change}, but warm_start=True "
                "goes on from its network and its scaling of y; set it back, or set "
                "warm_start=False to begin anew."
            )


def _changes(then: dict[str, str], now: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the names of what has changed, and how."""
    for name, value in then.items():
        if now.get(name) != value:
            yield name, f"from {value} to {now.get(name)}"


def _terms_of(estimator: Any) -> dict[str, str]:
    """Settled parameters by name, in words that outlast a file."""
    given = vars(estimator)
    backbone = estimator.backbone
    if not isinstance(backbone, nn.Module):
        backbone = as_backbone(backbone)
    terms = {"backbone": _described(backbone)}
    if hasattr(backbone, "get_params"):
        for name, value in backbone.get_params().items():
            terms[f"backbone__{name}"] = _described(value)
    terms.update({name: _described(given[name]) for name in _SETTLED if name in given})
    return terms


def _described(value: Any) -> str:
    if isinstance(value, nn.Module):
        return repr(value)
    if hasattr(value, "get_params"):
        return type(value).__name__
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        pairs = (f"{name!r}: {_described(own)}" for name, own in value.items())
        return f"{{{', '.join(sorted(pairs))}}}"
    if value is None or isinstance(value, bool | int | float | str | np.ndarray):
        return repr(value)
    return type(value).__name__
