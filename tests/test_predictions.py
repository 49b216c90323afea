"""Predictions: the quick way of a plain array is the long way of all others."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.utils.validation import validate_data
from small_models import classifier, regressor
from torch import nn

from sklearn_cfll import MLP, _validation
from sklearn_cfll import chunks as chunks_module
from sklearn_cfll.chunks import chunk_slices

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fitted(table):
    return regressor(max_epochs=3).fit(*table)


@pytest.fixture
def checked(monkeypatch):
    """Arrays that went through scikit-learn's checks."""
    seen = []

    def watching(estimator, X, *args, **kwargs):
        seen.append(X)
        return validate_data(estimator, X, *args, **kwargs)

    monkeypatch.setattr(_validation, "validate_data", watching)
    return seen


PLAIN = {
    "float64": lambda X: X,
    "float32": lambda X: X.astype(np.float32),
    "one row": lambda X: X[:1],
    "columns together": np.asfortranarray,
    "rows backwards": lambda X: X[::-1],
    "read-only": lambda X: np.broadcast_to(X[0], X.shape),
}


@pytest.mark.parametrize("form", PLAIN.values(), ids=PLAIN)
def test_a_plain_array_predicts_as_the_checked_one(fitted, fresh_rows, checked, form):
    X = form(fresh_rows[0])
    plain = fitted.predict(X)
    assert not checked
    assert_allclose(plain, fitted.predict(X.tolist()), rtol=1e-12)
    assert len(checked) == 1


OTHERS = {
    "list": lambda X: X.tolist(),
    "frame": pd.DataFrame,
    "integers": lambda X: X.astype(int),
    "float16": lambda X: X.astype(np.float16),
    "other byte order": lambda X: X.astype(">f8"),
    "subclass": lambda X: X.view(np.memmap),
    "sum that overflows": lambda X: np.sign(X) * 0 + np.finfo(float).max,
}


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_what_is_not_plain_is_checked(fitted, fresh_rows, checked, form):
    fitted.transform(form(fresh_rows[0]))
    assert len(checked) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_bad_number_is_refused(fitted, fresh_rows, value, dtype):
    X = fresh_rows[0].astype(dtype)
    X[-1, -1] = value
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        fitted.predict(X)


def test_infinities_that_cancel_are_refused(fitted, fresh_rows):
    X = fresh_rows[0].copy()
    X[0, 0], X[1, 0] = np.inf, -np.inf
    # The sum by which scikit-learn looks for them warns.
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(ValueError, match="Input X contains infinity"),
    ):
        fitted.predict(X)


def test_an_array_where_names_were_fitted_warns(table, fresh_rows):
    X, y = table
    model = regressor(max_epochs=1).fit(pd.DataFrame(X, columns=list("abcd")), y)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(fresh_rows[0])


@pytest.mark.parametrize("part", [None, nn.Dropout], ids=["whole", "one layer"])
def test_a_backbone_in_train_mode_predicts_without_dropout(table, fresh_rows, part):
    model = regressor(MLP(32, dropout=0.5), max_epochs=2).fit(*table)
    expected = model.predict(fresh_rows[0])
    module = model.backbone_
    if part is not None:
        module = next(layer for layer in module if isinstance(layer, part))
    module.train()
    assert_array_equal(model.predict(fresh_rows[0]), expected)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_are_those_of_the_logits(fresh_rows, n_classes):
    X, y = fresh_rows
    model = classifier(max_epochs=2).fit(X, np.digitize(y, range(n_classes - 1)))
    logits = model.decision_function(X)
    if n_classes == 2:
        logits = np.stack([0 * logits, logits], 1)
    odds = np.exp(logits)
    expected = odds / odds.sum(1, keepdims=True)
    assert_allclose(model.predict_proba(X), expected, rtol=1e-12)
    assert_allclose(model.predict_log_proba(X), np.log(expected), rtol=1e-10)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logarithms_of_probabilities_that_round_to_zero_are_finite(
    fresh_rows, n_classes
):
    X, y = fresh_rows
    model = classifier(max_epochs=2).fit(X, np.digitize(y, range(n_classes - 1)))
    model.coef_, model.intercept_ = 1e4 * model.coef_, 1e4 * model.intercept_
    logits = model.decision_function(X).reshape(len(X), -1)
    if n_classes == 2:
        logits = np.hstack([0 * logits, logits])
    assert model.predict_proba(X).min() == 0
    expected = logits - logits.max(1, keepdims=True)
    assert_allclose(model.predict_log_proba(X), expected, atol=1)


def test_chunks_do_not_change_predictions(fitted, fresh_rows, monkeypatch):
    whole = fitted.predict(fresh_rows[0])
    monkeypatch.setattr(chunks_module, "_CHUNK_NUMBERS", 33 * 7)
    assert_allclose(fitted.predict(fresh_rows[0]), whole, rtol=1e-10)


@pytest.mark.parametrize(
    ("numbers", "longest"),
    [(1, 2**18), (2**10, 1024), (2**12, 1024), (2**14, 256), (2**23, 1)],
    ids=["few", "in the cache", "enough rows", "bounded", "a row at least"],
)
def test_a_chunk_suits_the_cache_but_is_not_of_few_rows(numbers, longest):
    chunks = list(chunk_slices(3 * 2**18 + 1, numbers, CPU))[:3]
    assert [chunk.stop - chunk.start for chunk in chunks] == [longest] * 3
