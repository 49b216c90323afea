"""The steps of the instrumental variable regressor's fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import nn

from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._device import resolve_device, resolve_dtype
from sklearn_cfll._iv_build import build_ensemble
from sklearn_cfll._iv_columns import (
    assign_columns,
    check_endogenous,
    find_endogenous,
    warn_of_copies,
)
from sklearn_cfll._iv_instruments import read_instruments, warn_of_other_rows
from sklearn_cfll._iv_losses import Penalties, Trainee
from sklearn_cfll._iv_network import IVEnsemble
from sklearn_cfll._iv_problem import IVProblem, mean_one
from sklearn_cfll._iv_rows import MemberRows
from sklearn_cfll._iv_steps import FullBatchSteps, MinibatchSteps, Steps
from sklearn_cfll._iv_training import IVTraining
from sklearn_cfll._numbers import IN_X, numbers_wanted
from sklearn_cfll._targets import StandardisedTargets
from sklearn_cfll._validation import (
    read_column,
    read_weights,
    weighed_rows,
)
from sklearn_cfll.optimizers import check_batch_size, optimizer_factory
from sklearn_cfll.prox import AnnealedProx, Prox

# Optimizers whose step on a number depends on that number's gradients alone, so that
# members that are trained as one are as if trained apart.
TREATS_NUMBERS_ALONE = ("adamw", "adam", "nadam", "radam", "rmsprop", "adagrad", "sgd")

# Of fewer rows any two columns are the same, but for shift and scale.
_FEWEST_ROWS = 3


def read_problem(
    estimator: Any, X: Any, y: Any, instruments: Any, sample_weight: Any
) -> IVProblem:
    """Check the data, learn how to encode y, and resolve what is "auto"."""
    given = X
    y = None if y is None else read_column(y)
    with numbers_wanted("X", X, IN_X):
        X, y = validate_data(
            estimator,
            X,
            y,
            dtype=np.float64,
            y_numeric=True,
            ensure_min_samples=_FEWEST_ROWS,
        )
    names = vars(estimator).get("feature_names_in_")
    endogenous = find_endogenous(estimator.endogenous, X.shape[1], names)
    Z, instrument_names = read_instruments(estimator, instruments, len(X))
    warn_of_other_rows(given, instruments)
    weight = _usable_weights(sample_weight, X)
    X, y, Z, weight = weighed_rows(X, y, Z, weight)
    check_endogenous(endogenous, X, names)
    columns = assign_columns(endogenous, X, Z, instrument_names)
    warn_of_copies(columns, X, y, Z)
    estimator._columns = columns
    estimator._targets = StandardisedTargets.fitted(y, weight)
    weight, unit = (None, 1.0) if weight is None else mean_one(weight)
    device = resolve_device(estimator.device)
    everything = np.arange(len(X))[None]
    return IVProblem(
        columns,
        X,
        Z,
        estimator._targets.encode(y),
        weight,
        unit,
        everything,
        everything[:, :0],
        int(check_random_state(estimator.random_state).randint(2**31 - 1)),
        device,
        resolve_dtype(estimator.dtype, len(X), device, defaults.FLOAT64_ROWS),
    )


def _usable_weights(sample_weight: Any, X: NDArray[Any]) -> NDArray[Any] | None:
    """Check weights, and that enough of them are above zero."""
    weight = read_weights(sample_weight, X)
    if weight is None:
        return None
    if not weight.any():
        raise ValueError("sample_weight is zero for every row; give some a weight.")
    n_used = np.count_nonzero(weight)
    if n_used < _FEWEST_ROWS:
        raise ValueError(
            f"X has {n_used} rows with a sample_weight above zero, where "
            f"{_FEWEST_ROWS} are needed at least; give more rows a weight."
        )
    return weight


def start(estimator: Any, problem: IVProblem) -> IVEnsemble:
    """Build the networks; where there is nothing to train, one of them is enough."""
    n_members, fraction = estimator.n_estimators, estimator.validation_fraction
    if n_members == "auto":
        n_members = defaults.n_estimators(len(problem.X))
    ensemble = build_ensemble(estimator, problem, int(n_members))
    if ensemble.learns:
        if fraction == "auto":
            fraction = defaults.validation_fraction(len(problem.X), int(n_members))
        problem.hold_out(int(n_members), fraction)
        return ensemble
    if estimator.dtype == "auto" and problem.device.type != "mps":
        problem.dtype = torch.float64
    return build_ensemble(estimator, problem, 1)


def train(estimator: Any, ensemble: IVEnsemble, problem: IVProblem) -> IVTraining:
    """Train the networks."""
    generator = problem.generator()
    rows = MemberRows(
        problem.rows(ensemble.scales), torch.as_tensor(problem.train, dtype=torch.int64)
    )
    pair = rows.halves(generator) if estimator.sample_splitting else (rows, rows)
    trainee = Trainee(ensemble, together=estimator.optimizer in TREATS_NUMBERS_ALONE)
    penalties = _penalties(estimator)
    n_epochs = estimator.max_epochs
    steps: Steps
    if estimator.batch_size == "full":
        steps = FullBatchSteps(trainee, pair, penalties)
        n_epochs = defaults.FULL_BATCH_ROUNDS if n_epochs == "auto" else n_epochs
    else:
        size = estimator.batch_size
        size = defaults.batch_size(len(problem.X)) if size == "auto" else size
        steps = MinibatchSteps(
            trainee, pair, penalties, batch_size=int(size), generator=generator
        )
        if n_epochs == "auto":
            n_epochs = defaults.max_epochs(len(problem.X), steps.n_steps())
    training = IVTraining(
        steps,
        _optimizer_maker(estimator),
        schedule=estimator.lr_schedule,
        n_epochs=int(n_epochs),
        verbose=int(estimator.verbose),
    )
    training.run()
    return training


def _penalties(estimator: Any) -> Penalties:
    alpha, instrument_alpha = estimator.alpha, estimator.instrument_alpha
    if isinstance(alpha, str):
        alpha = defaults.ALPHA_IN_TRAINING
    if isinstance(instrument_alpha, str):
        instrument_alpha = defaults.INSTRUMENT_ALPHA_IN_TRAINING
    return Penalties(
        float(instrument_alpha),
        float(alpha),
        read_prox("instrument_prox", estimator.instrument_prox),
        read_prox("prox", estimator.prox),
    )


def read_prox(name: str, value: Any) -> Prox:
    """Check a pull: a positive number, or a pair of them."""
    try:
        pair = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        pair = np.full(3, np.nan)
    if pair.shape not in ((), (2,)) or not (
        np.isfinite(pair).all() and (pair > 0).all()
    ):
        raise ValueError(
            f"{name} must be a positive number or a pair (start, end) of them, got "
            f"{value!r}."
        )
    if pair.ndim == 0:
        return Prox(float(pair))
    return AnnealedProx(float(pair[0]), float(pair[1]))


def _optimizer_maker(estimator: Any) -> Any:
    """Make what makes the optimizer of a module."""
    decay = estimator.weight_decay
    if decay == "auto":
        decay = defaults.WEIGHT_DECAY if estimator.optimizer == "adamw" else None

    def make(module: nn.Module) -> torch.optim.Optimizer:
        factory, lr, params = optimizer_factory(
            estimator.optimizer,
            estimator.lr,
            decay,
            estimator.optimizer_params,
            module,
        )
        check_batch_size(factory, estimator.optimizer, estimator.batch_size)
        learnable = [p for p in module.parameters() if p.requires_grad]
        return factory(learnable, lr=lr, **params)

    return make
