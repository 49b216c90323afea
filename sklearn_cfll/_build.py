"""Builds the network for the rows at hand and says what is wrong with a backbone."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, LRScheduler
from skorch.helper import predefined_split
from torch import Tensor

from sklearn_cfll import _defaults as defaults
from sklearn_cfll._device import place
from sklearn_cfll._grids import misfit
from sklearn_cfll._numbers import tell_coarse_columns
from sklearn_cfll._problem import Problem, usual_epochs
from sklearn_cfll._scoring import valid_score
from sklearn_cfll._validation import as_backbone, check_alpha, check_prox
from sklearn_cfll.backbones import describe
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.callbacks import BestState, Patience, Progress
from sklearn_cfll.functional.ridge import wide_dtype
from sklearn_cfll.head import ClosedFormHead
from sklearn_cfll.net import CFLLNet
from sklearn_cfll.network import Network
from sklearn_cfll.optimizers import check_batch_size, optimizer_factory

# Parameters of estimators by those of the net, where the names differ.
_OWN_NAMES = {
    "module": "backbone",
    "optimizer__": "optimizer_params",
    "output_weight": "true_class_weight",
    "train_split": "early_stopping and validation_fraction, or X_val,",
    "valid_score": "scoring",
}

# What torch says of two precisions that meet.
_PRECISION = re.compile("dtype|scalar type|double", re.IGNORECASE)


def build_net(estimator: Any, problem: Problem, trained: Network | None) -> CFLLNet:
    """Make the skorch net, with a new network or a copy of a trained one."""
    batches, held_out = problem.batches, problem.held_out_batches
    network = _network(estimator, problem, trained)
    problem.encode_held_out(estimator)
    factory, lr, params = _optimizer(estimator, network)
    callbacks = _callbacks(estimator, held_out is not None)
    schedule = estimator.lr_schedule
    if any(issubclass(_kind(callback), LRScheduler) for callback in callbacks):
        schedule = "constant"  # the user's scheduler rules alone
    settings: dict[str, Any] = {
        "n_features": network.head.weight.shape[0],
        "n_outputs": network.head.weight.shape[1],
        "alpha": _alpha_in_training(estimator.alpha, network.head),
        "prox": _prox(estimator, problem),
        "output_weight": estimator._output_weight,
        "update_order": estimator.update_order,
        "lr_schedule": schedule,
        "train_score": estimator._train_score,
        "valid_score": None if held_out is None else valid_score(estimator, problem),
        "decode": estimator._targets.decode,
        "optimizer": factory,
        "lr": lr * estimator._rate_factor,
        "max_epochs": problem.max_epochs,
        "batch_size": batches.batch_size,
        "train_split": None if held_out is None else predefined_split(held_out),
        "callbacks": callbacks,
        "use_caching": False,  # predictions are cached encoded, and labels are not
        "device": str(batches.device),
        **{f"optimizer__{name}": value for name, value in params.items()},
    }
    return CFLLNet(network, **{**settings, **_further(estimator, settings)})


def _further(estimator: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Give ``net_params``, which may not hold what the estimator sets itself."""
    further, parameters = dict(estimator.net_params or {}), vars(estimator)
    for name in further:
        kind = "optimizer__" if name.startswith("optimizer__") else name
        kind = "batch_size" if name == "iterator_train__batch_size" else kind
        if kind == "output_weight" and settings[kind] is None:
            continue
        if kind not in settings and kind not in ("module", "optimizer__"):
            continue
        cure = "leave it out."
        own = _OWN_NAMES.get(kind, kind if kind in parameters else None)
        if own is not None:
            cure = f"use the estimator's own {own} instead."
        raise ValueError(
            f"net_params holds {name!r}, which {type(estimator).__name__} sets itself; "
            f"{cure}"
        )
    return further


def _network(estimator: Any, problem: Problem, trained: Network | None) -> Network:
    batches = problem.batches
    if trained is None:
        return build_network(estimator, problem)
    network = copy.deepcopy(trained)
    place(network.backbone, batches.device, batches.dtype)
    network.head.to(batches.device)
    return network


def _optimizer(
    estimator: Any, network: Network
) -> tuple[Callable[..., Any], float, dict[str, Any]]:
    """Resolve the optimizer, which may want all rows at each step."""
    factory, lr, params = optimizer_factory(
        estimator.optimizer,
        estimator.lr,
        estimator.weight_decay,
        estimator.optimizer_params,
        network.backbone,
    )
    check_batch_size(factory, estimator.optimizer, estimator.batch_size)
    return factory, lr, params


def build_network(estimator: Any, problem: Problem) -> Network:
    """Make the user's backbone, on the device, with a head of zeros.

    Where it gives features on a grid, the targets are encoded as those of its points.

    Raises
    ------
    ValueError, TypeError
        Where it can't be built, raises, or gives other than rows of finite features.
    """
    batches = problem.batches
    backbone = as_backbone(estimator.backbone)
    name = f"backbone {describe(backbone)}"
    try:
        module = backbone.build(batches)
    except (RuntimeError, MemoryError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} could not be built: {reason}") from error
    module = place(module, batches.device, batches.dtype)
    if batches.input_dtype == torch.float32:
        tell_coarse_columns(problem.train.X, problem.train.index)
    widened = estimator.dtype == "auto" and batches.dtype == torch.float64
    most = defaults.FLOAT64_ROWS if widened else None
    *grid, n_features = _probe(module, name, batches, most)
    if grid:
        problem.put_on_grid(estimator, len(grid))
    n_outputs = batches.encoded.shape[-1]
    head = ClosedFormHead(n_features, n_outputs, dtype=wide_dtype(batches.device))
    return Network(module, head.to(batches.device))


def _probe(
    module: torch.nn.Module, name: str, batches: TensorBatches, float64_rows: int | None
) -> tuple[int, ...]:
    """Run the backbone on a few rows; give the shape of one's features."""
    index = torch.arange(min(2, batches.n_samples))
    X = batches[index][0]["X"]
    given = f"X of shape {tuple(X.shape)}"
    module.eval()
    features = run_backbone(module, X, name, given, float64_rows)
    if features.is_complex():
        raise TypeError(
            f"{name} returned complex features; it must return real ones, "
            "for example by torch.view_as_real."
        )
    shape_fault = misfit(tuple(features.shape), len(X), np.shape(batches.y))
    if shape_fault:
        raise ValueError(
            f"{name} returned features of shape {tuple(features.shape)} for "
            f"{given}; {shape_fault}"
        )
    if not features.isfinite().all():
        raise ValueError(
            f"{name} returned features that are not finite for {given}; "
            "scale X or check the backbone's initial weights."
        )
    module.train()
    return tuple(features.shape[1:])


@torch.no_grad()
def run_backbone(
    module: torch.nn.Module, X: Tensor, name: str, given: str, float64_rows: int | None
) -> Tensor:
    """Give the features of a few rows, or say what is wrong instead.

    Parameters
    ----------
    module : torch.nn.Module
    X : Tensor
    name, given : str
        What the module and X are called.
    float64_rows : int or None
        Up to how many rows a table is in float64, where X is in it for being small.

    Returns
    -------
    features : Tensor
    """
    try:
        features = module(X)
    except Exception as error:
        cure = ""
        if float64_rows is not None and _PRECISION.search(str(error)):
            cure = (
                f"; tables of up to {float64_rows} rows are trained in float64: set "
                "dtype='float32', or let the backbone take the dtype of X."
            )
        raise ValueError(
            f"{name} raised {type(error).__name__} for {given}: {error}{cure}"
        ) from error
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{name} returned a {type(features).__name__} for {given}; it must return "
            "one tensor of features, (n_samples, n_features)."
        )
    return features


def _prox(estimator: Any, problem: Problem) -> str | float | tuple[float, float]:
    if estimator.prox is None:
        batches = problem.batches
        usual = usual_epochs(batches)
        return defaults.prox(problem.max_epochs, usual, batches.n_batches)
    return check_prox(estimator.prox, estimator.batch_size)


def _alpha_in_training(alpha: Any, head: ClosedFormHead) -> float | Tensor:
    alpha = check_alpha(alpha, head.weight.shape[1])
    if isinstance(alpha, str):
        return defaults.ALPHA_IN_TRAINING
    return alpha if isinstance(alpha, float) else torch.as_tensor(alpha).to(head.weight)


def _callbacks(estimator: Any, has_held_out: bool) -> list[Any]:
    """Copy the user's callbacks, and set them between the estimator's own."""
    callbacks: list[Any] = [copy.deepcopy(c) for c in estimator.callbacks or []]
    for callback in callbacks:
        if not issubclass(_kind(callback), Callback):
            raise TypeError(f"callbacks must hold skorch callbacks, got {callback!r}.")
    if has_held_out and estimator.early_stopping is not False:
        lower = estimator.scoring is None
        monitor = "valid_loss" if lower else "valid_score"
        tol = estimator.tol * (estimator._loss_unit if lower else 1.0)
        patience = Patience(monitor, lower, estimator.n_iter_no_change, tol)
        callbacks.insert(0, ("best_state", BestState(monitor, lower)))
        callbacks.append(("patience", patience))
    if estimator.verbose:
        callbacks.insert(0, ("progress", Progress()))
    return callbacks


def _kind(callback: Any) -> type:
    """Class of a callback that may be an instance, a class, or named."""
    callback = callback[1] if isinstance(callback, tuple) else callback
    return callback if isinstance(callback, type) else type(callback)
