"""Whatever the rows and settings: a documented error, or sensible predictions."""

from __future__ import annotations

import warnings

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor

REFUSALS = (ValueError, TypeError, FloatingPointError)

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def tables(draw):
    """Rows X of any finite numbers to 1e6, and the number of rows."""
    n = draw(st.integers(2, 40))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    if dtype is np.int64:
        numbers = st.integers(-1000, 1000)
    else:
        numbers = st.floats(-1e6, 1e6, width=np.dtype(dtype).itemsize * 8)
    X = draw(
        arrays(dtype, (n, draw(st.integers(1, 5))), elements=numbers, fill=numbers)
    )
    layout = draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray]))
    return layout(X)


def weights(n):
    numbers = st.floats(0, 100).filter(lambda w: w == 0 or w > 1e-6)
    return st.none() | arrays(np.float64, n, elements=numbers)


parameters = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from(["auto", 0.0, 1e-12, 0.01, 10.0]),
        "prox": st.sampled_from([None, (1.0, 100.0), "auto", 1e-6, 1.0, (100.0, 0.1)]),
        "update_order": st.sampled_from(["head_first", "backbone_first"]),
        "optimizer": st.sampled_from(["adamw", "sgd", "rmsprop", "lbfgs"]),
        "lr": st.sampled_from(["auto", 1e-4, 1.0, 1e3]),
        "batch_size": st.sampled_from(["auto", "full", 1, 3, 16]),
        "max_epochs": st.integers(1, 3),
        "early_stopping": st.sampled_from([False, True, "auto"]),
        "dtype": st.sampled_from(["auto", "float32", "float64"]),
        "backbone": st.sampled_from(
            [
                MLP(width=8),
                MLP(width=4, activation="relu", normalize=False),
                MLP(width=8, dropout=0.5),
            ]
        ),
    }
)


def fitted(make, params, X, y, sample_weight):
    """Fit, or give None where it is refused as documented."""
    model = make(random_state=0, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        try:
            return model.fit(X, y, sample_weight)
        except REFUSALS as error:
            message = str(error)
    assert message.endswith(".")  # a sentence of our own
    assert not hasattr(model, "net_")
    return None


@quick
@given(st.data(), tables(), parameters)
def test_a_regression_is_refused_or_makes_sense(data, X, params):
    n = len(X)
    shape = data.draw(st.sampled_from([(n,), (n, 1), (n, 3)]))
    y = data.draw(arrays(np.float64, shape, elements=st.floats(-1e9, 1e9)))
    sample_weight = data.draw(weights(n))
    model = fitted(CFLLRegressor, params, X, y, sample_weight)
    if model is None:
        return
    predictions = model.predict(X)
    assert predictions.shape == y.shape
    assert np.isfinite(predictions).all()
    assert_allclose(
        predictions,
        model.transform(X).astype(float) @ model.coef_.T + model.intercept_,
        rtol=0,
        atol=1e-3 * (np.abs(y).max() + np.abs(model.coef_).max()),
    )
    if model.early_stopping is not True:  # then some rows were not learnt from
        share = np.ones(n) if sample_weight is None else sample_weight
        share = share / share.sum()
        spread = share @ np.square(y - share @ y).reshape(n, -1)
        error = share @ np.square(predictions - y).reshape(n, -1)
        # To float32's rounding of what is standardised.
        rounding = np.square(1e-5 * np.abs(y).max())
        assert error.sum() <= 1.01 * spread.sum() + rounding


@quick
@given(st.data(), tables(), parameters)
def test_a_classification_is_refused_or_makes_sense(data, X, params):
    n = len(X)
    labels = st.integers(0, data.draw(st.integers(1, 6)))
    y = data.draw(arrays(np.int64, n, elements=labels, fill=st.nothing()))
    y[:2] = 0, 1
    sample_weight = data.draw(weights(n))
    model = fitted(CFLLClassifier, params, X, y, sample_weight)
    if model is None:
        return
    probabilities = model.predict_proba(X)
    used = np.ones(n, bool) if sample_weight is None else sample_weight > 0
    assert_array_equal(model.classes_, np.unique(y[used]))
    assert probabilities.shape == (n, len(model.classes_))
    assert_allclose(probabilities.sum(1), 1)
    assert (probabilities >= 0).all()
    assert_array_equal(model.predict(X), model.classes_[probabilities.argmax(1)])


@quick
@given(tables(), st.integers(1, 3), st.sampled_from(["head_first", "backbone_first"]))
def test_integer_weights_are_repeated_rows(X, seed, update_order):
    random = np.random.default_rng(seed)
    y, counts = random.normal(size=len(X)), random.integers(0, 3, size=len(X))
    assume(2 <= counts.sum() <= 64)  # above that the batches differ
    assume((counts > 0).sum() >= 2)
    params = {"backbone": MLP(width=8), "max_epochs": 3, "dtype": "float64"}
    params |= {"alpha": 0.1, "update_order": update_order, "lr": 1e-3}
    params |= {"batch_size": "full", "early_stopping": False}
    weighted = fitted(CFLLRegressor, params, X, y, counts)
    repeated = fitted(
        CFLLRegressor, params, np.repeat(X, counts, 0), np.repeat(y, counts), None
    )
    assert_allclose(weighted.predict(X), repeated.predict(X), rtol=0, atol=1e-5)
