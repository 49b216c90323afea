"""Fits that must be refused, and the check that they take nothing away."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor

_random = np.random.default_rng(0)
N_ROWS = 60
X = _random.normal(size=(N_ROWS, 4))
Y = X[:, 0] + 0.1 * _random.normal(size=N_ROWS)
LABELS = np.where(Y > 0, "yes", "no")
ONES = np.ones(N_ROWS)

# scikit-learn has a check of its own from some version on.
NO_WEIGHT = (
    r"(Sample weights must contain at least one non-zero number\."
    r"|sample_weight is zero for every row; give some a weight\.)"
)

MISSING = (
    r"Input y contains NaN\. Leave its rows out, or fit with "
    r"missing_targets='ignore', by which each output learns from the rows that have "
    r"it\."
)


def not_finite(what, row, name="X"):
    """Give the pattern of what is said of a row without finite predictions."""
    training = "held-out" in what
    diverged = " the training diverged," if training else ""
    return (
        rf"{what} are not finite, first for row {row} of {name}: either{diverged} the "
        r"row lies far outside of the training rows, or the backbone returns features "
        r"that are not finite for it \(by a logarithm of zero, say\); "
        rf"{'decrease lr, or ' if training else ''}mend the row or the backbone\."
    )


def features_not_finite(n, n_rows, first):
    """Give the pattern of what is said of training rows without finite features."""
    return (
        rf"the backbone returned features that are not finite for {n} of {n_rows} "
        rf"training rows, first for row {first} of X; mend the rows, or the backbone "
        r"\(which may take a logarithm of zero, say\)\."
    )


def regressor(**params):
    settings = {"backbone": MLP(width=8), "max_epochs": 2, "random_state": 0}
    return CFLLRegressor(**{**settings, **params})


def classifier(**params):
    settings = {"backbone": MLP(width=8), "max_epochs": 2, "random_state": 0}
    return CFLLClassifier(**{**settings, **params})


def target(model):
    return LABELS if isinstance(model, CFLLClassifier) else Y


def with_value(array, value):
    """Put a value somewhere in the middle of a copy."""
    array = np.array(array, dtype=float)
    array.flat[array.size // 2] = value
    return array


def case(name, error, message, /, *, make=regressor, params=None, **fit_arguments):
    """State a refusal: the error, its message as a pattern, and what leads to it."""
    return pytest.param(make, params or {}, fit_arguments, error, message, id=name)


def assert_refused(make, params, fit_arguments, error, message):
    """Fit a good model, then badly; and badly from the start."""
    pattern = re.compile(rf"\A{message}\Z", re.DOTALL)
    model = make()
    model.fit(X, target(model))
    predictions, learnt = model.predict(X), learnt_by(model)
    kept = {
        name: copy.deepcopy(value)
        for name, value in learnt.items()
        if isinstance(value, np.ndarray | float | int | list)
    }
    fresh = make(**params)
    for each in [model.set_params(**params), fresh]:
        arguments = {"X": X, "y": target(model), **fit_arguments}
        with pytest.raises(error) as caught:
            each.fit(**arguments)
        assert pattern.match(str(caught.value)), str(caught.value)
    assert learnt_by(fresh) == {}

    now = learnt_by(model)
    assert now.keys() == learnt.keys()
    assert all(now[name] is learnt[name] for name in learnt)
    for name, value in kept.items():
        np.testing.assert_equal(now[name], value)
    np.testing.assert_array_equal(model.predict(X), predictions)


def learnt_by(model):
    """Give all attributes that aren't parameters."""
    parameters = model.get_params(deep=False)
    return {name: v for name, v in vars(model).items() if name not in parameters}
