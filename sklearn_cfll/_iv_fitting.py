"""The steps of the instrumental variable regressor's fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import nn

from sklearn_cfll import _defaults as shared
from sklearn_cfll import _iv_defaults as defaults
from sklearn_cfll._device import resolve_device, resolve_dtype
from sklearn_cfll._iv_columns import assign_columns, find_endogenous, read_instruments
from sklearn_cfll._iv_network import IVNetwork, build_network
from sklearn_cfll._iv_problem import IVProblem, hold_out
from sklearn_cfll._iv_steps import FullBatchSteps, MinibatchSteps, Penalties, Steps
from sklearn_cfll._iv_training import IVTraining
from sklearn_cfll._targets import StandardisedTargets
from sklearn_cfll._validation import numbers_wanted, read_weights
from sklearn_cfll.optimizers import optimizer_factory, searches_along_lines
from sklearn_cfll.prox import AnnealedProx, Prox


def read_problem(
    estimator: Any, X: Any, y: Any, instruments: Any, sample_weight: Any
) -> IVProblem:
    """Check the data, learn how to encode y, and resolve what is "auto"."""
    with numbers_wanted("X", "encode text, by OneHotEncoder in a pipeline for example"):
        X, y = validate_data(
            estimator,
            X,
            y,
            dtype=np.float64,
            y_numeric=True,
            ensure_min_samples=2,
        )
    y = y.astype(np.float64)
    names = vars(estimator).get("feature_names_in_")
    endogenous = find_endogenous(estimator.endogenous, X.shape[1], names)
    Z, instrument_names = read_instruments(estimator, instruments, len(X))
    weight = read_weights(sample_weight, X)
    if weight is not None:
        if not weight.any():
            raise ValueError("sample_weight is zero for every row; give some a weight.")
        used = weight > 0
        X, y, Z, weight = X[used], y[used], Z[used], weight[used]
    columns = assign_columns(endogenous, X, Z, instrument_names)
    estimator._columns = columns
    estimator._targets = StandardisedTargets.fitted(y, weight)
    seed = int(check_random_state(estimator.random_state).randint(2**31 - 1))
    device = resolve_device(estimator.device)
    everything = np.arange(len(X))
    return IVProblem(
        columns,
        X,
        Z,
        estimator._targets.encode(y),
        weight,
        everything,
        everything[:0],
        seed,
        device,
        resolve_dtype(estimator.dtype, len(X), device, shared.FLOAT64_ROWS),
    )


def count_of_a_weight(weight: NDArray[np.float64] | None) -> float:
    """Rows that a weight of one, of weights whose mean is one, counts for.

    Whole numbers are counts of equal rows; others only say which rows matter more.
    """
    if weight is None or not (weight == np.round(weight)).all():
        return 1.0
    return float(weight.mean())


def start(estimator: Any, problem: IVProblem) -> IVNetwork:
    """Build the networks; where there is nothing to train, no row is held out."""
    hold_rows_out(estimator, problem)
    network = build_network(estimator, problem)
    if network.learns:
        return network
    problem.train, problem.held_out = np.arange(len(problem.X)), problem.train[:0]
    if estimator.dtype == "auto" and problem.device.type != "mps":
        problem.dtype = torch.float64
    return build_network(estimator, problem)


def hold_rows_out(estimator: Any, problem: IVProblem) -> None:
    """Keep some rows from the networks, where they are to be trained."""
    fraction = estimator.validation_fraction
    if fraction == "auto":
        fraction = defaults.validation_fraction(len(problem.X))
    split = hold_out(len(problem.X), fraction, problem.seed)
    problem.train, problem.held_out = split


def train(estimator: Any, network: IVNetwork, problem: IVProblem) -> IVTraining:
    """Train the networks."""
    rows = problem.rows(network.scales, problem.train)
    held_out = None
    if len(problem.held_out):
        held_out = problem.rows(network.scales, problem.held_out)
    generator = problem.generator()
    pair = (rows, rows)
    if estimator.sample_splitting:
        pair = rows.halves(generator)
    penalties = _penalties(estimator)
    steps: Steps
    if estimator.batch_size == "full":
        steps = FullBatchSteps(network, pair, penalties)
    else:
        size = estimator.batch_size
        if size == "auto":
            size = defaults.batch_size(len(pair[1]))
        steps = MinibatchSteps(
            network, pair, penalties, batch_size=int(size), generator=generator
        )
    n_epochs = estimator.max_epochs
    if n_epochs == "auto" and estimator.batch_size == "full":
        n_epochs = defaults.FULL_BATCH_ROUNDS
    elif n_epochs == "auto":
        n_epochs = defaults.max_epochs(len(rows), steps.n_steps())
    training = IVTraining(
        steps,
        _optimizer_maker(estimator),
        schedule=estimator.lr_schedule,
        n_epochs=int(n_epochs),
        held_out=held_out,
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

    def make(module: nn.Module) -> torch.optim.Optimizer:
        factory, lr, params = optimizer_factory(
            estimator.optimizer,
            estimator.lr,
            estimator.weight_decay,
            estimator.optimizer_params,
            module,
        )
        if searches_along_lines(factory) and estimator.batch_size != "full":
            raise ValueError(
                f"optimizer {estimator.optimizer!r} needs batch_size='full', got "
                f"batch_size={estimator.batch_size!r}: it compares losses along a "
                "line, which are of all rows or of little use."
            )
        if estimator.lr == "auto":
            lr *= defaults.RATE_FACTOR
        learnable = [p for p in module.parameters() if p.requires_grad]
        return factory(learnable, lr=lr, **params)

    return make
