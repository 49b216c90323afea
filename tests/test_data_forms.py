"""Copies of the estimators, and the forms that their data come in."""

from __future__ import annotations

import copy
import pickle
import re

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import _get_feature_names
from small_models import classifier, regressor

from sklearn_cfll import MLP

NAMES = ["a", "b", "c", "noise"]


@pytest.fixture(scope="module")
def fitted(table):
    return regressor().fit(*table)


# Copies -------------------------------------------------------------------------


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


COPIES = {
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "joblib": through_joblib,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "clone": lambda model, folder: clone(model),
}


@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy"])
def test_a_copy_predicts_alike_and_shares_no_memory(fitted, table, tmp_path, way):
    X, _ = table
    expected = fitted.predict(X)
    copied = COPIES[way](fitted, tmp_path)
    np.testing.assert_array_equal(copied.predict(X), expected)
    np.testing.assert_array_equal(copied.transform(X), fitted.transform(X))
    assert copied.history_ == fitted.history_
    for parameter in copied.backbone_.parameters():
        parameter.data.zero_()
    np.testing.assert_array_equal(fitted.predict(X), expected)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_fitted_again_predicts_alike(fitted, table, tmp_path, way):
    X, y = table
    again = COPIES[way](fitted, tmp_path).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))


def test_a_pickled_classifier_gives_the_same_probabilities():
    X, y = load_wine(return_X_y=True)
    labels = np.array(["red", "white", "rose"])[y]
    model = classifier().fit(X, labels)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert set(loaded.predict(X)) == {"red", "white", "rose"}


@pytest.mark.parametrize("held_out", [False, True])
def test_a_pickled_model_holds_no_rows_but_quantiles_of_held_out_errors(held_out):
    X = np.random.default_rng(0).normal(size=(4000, 20))
    model = regressor(
        MLP(width=8), max_epochs=1, early_stopping=held_out, dtype="float32"
    )
    sizes = []
    for n_rows in (400, 4000):
        model.fit(X[:n_rows], X[:n_rows, 0])
        size = len(pickle.dumps(model))
        if held_out:
            (quantiles,) = model._conformal.scores[0]
            assert quantiles.n_rows == n_rows / 10
            size -= quantiles.values.nbytes
        sizes.append(size)
    assert abs(sizes[1] - sizes[0]) < 2000


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu:7"])
def test_a_model_is_loaded_where_its_device_is_missing(table, device):
    X, y = table
    model = regressor(dtype="float32", max_epochs=2, device="cpu").fit(X, y)
    stored = pickle.dumps(model.set_params(device=device))
    loaded = pickle.loads(stored)
    np.testing.assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-4)
    assert loaded.device == device


# Forms of the data --------------------------------------------------------------


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_frames_are_read_as_arrays_are(table, fitted, library):
    X, y = table
    frame = library.DataFrame(dict(zip(NAMES, X.T, strict=True)))
    model = regressor().fit(frame, y)
    np.testing.assert_allclose(model.predict(frame), fitted.predict(X), rtol=1e-8)
    # scikit-learn 1.6 reads no names from the newest polars.
    if _get_feature_names(frame) is not None:
        assert model.feature_names_in_.tolist() == NAMES


@pytest.mark.parametrize("series", [pd.Series, pl.Series, list])
def test_targets_may_be_a_series_or_a_list(table, fitted, series):
    X, y = table
    model = regressor().fit(X, series(y.tolist()))
    np.testing.assert_array_equal(model.predict(X), fitted.predict(X))


@pytest.mark.parametrize("series", [pd.Series, pl.Series, list, np.array])
def test_labels_come_back_as_they_were_given(series):
    X, y = load_wine(return_X_y=True)
    labels = np.array(["red", "white", "rose"])[y]
    model = classifier().fit(X, series(labels.tolist()))
    assert model.classes_.tolist() == ["red", "rose", "white"]
    assert accuracy_score(labels, model.predict(X)) > 0.98


def test_columns_of_a_frame_may_differ_in_dtype(table):
    X, y = table
    frame = pd.DataFrame(X, columns=NAMES)
    frame["a"] = (frame["a"] * 10).round().astype("Int64")
    frame["b"] = frame["b"].astype("float32")
    frame["c"] = frame["c"] > 0
    model = regressor(max_epochs=2).fit(frame, y)
    plain = frame.astype("float64").to_numpy()
    expected = regressor(max_epochs=2).fit(plain, y).predict(plain)
    np.testing.assert_array_equal(model.predict(frame), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda frame: frame.rename(columns={"a": "z"}),
            "The feature names should match those that were passed during fit.\n"
            "Feature names unseen at fit time:\n- z\n"
            "Feature names seen at fit time, yet now missing:\n- a\n",
        ),
        (
            lambda frame: frame[NAMES[::-1]],
            "The feature names should match those that were passed during fit.\n"
            "Feature names must be in the same order as they were in fit.\n",
        ),
    ],
    ids=["renamed", "reordered"],
)
@pytest.mark.parametrize(
    ("use", "prefix"),
    [
        (lambda model, X, y, other: model.predict(other), ""),
        (lambda model, X, y, other: model.transform(other), ""),
        (
            lambda model, X, y, other: model.fit(X, y, X_val=other, y_val=y),
            "held-out rows (X_val, y_val): ",
        ),
    ],
    ids=["predict", "transform", "held-out rows"],
)
def test_other_feature_names_are_an_error(table, wrong, message, use, prefix):
    X, y = table
    frame = pd.DataFrame(X, columns=NAMES)
    model = regressor(max_epochs=1).fit(frame, y)
    with pytest.raises(ValueError, match=f"^{re.escape(prefix + message)}$"):
        use(model, frame, y, wrong(frame))


def test_missing_feature_names_are_a_warning(table):
    X, y = table
    model = regressor(max_epochs=1).fit(pd.DataFrame(X, columns=NAMES), y)
    message = "X does not have valid feature names, but CFLLRegressor was fitted with"
    with pytest.warns(UserWarning, match=message):
        model.predict(X)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 2)], ids=str)
def test_predictions_have_the_shape_and_units_of_the_targets(table, shape):
    X, y = table
    columns = np.c_[y, 1000 - 500 * y] if shape == (-1, 2) else y
    targets = columns.reshape(shape)
    model = regressor().fit(X, targets)
    predictions = model.predict(X)
    assert predictions.shape == targets.shape
    assert r2_score(targets, predictions, multioutput="raw_values").min() > 0.98
    by_hand = model.transform(X) @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(predictions, by_hand, rtol=1e-9, atol=1e-9)
    assert np.shape(model.intercept_) == targets.shape[1:]
    assert model.coef_.shape == (*targets.shape[1:], 32)


def test_one_column_of_targets_is_fitted_as_a_vector_is(table, fitted):
    X, y = table
    model = regressor().fit(X, y[:, None])
    np.testing.assert_array_equal(model.predict(X)[:, 0], fitted.predict(X))
    np.testing.assert_array_equal(model.coef_[0], fitted.coef_)


def memory_mapped(array, folder):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def read_only(array, folder):
    array = array.copy()
    array.setflags(write=False)
    return array


ARRAYS = {
    "read-only": read_only,
    "memory-mapped": memory_mapped,
    "column-major": lambda array, folder: np.asfortranarray(array),
    "reversed": lambda array, folder: array[::-1].copy()[::-1],
    "strided": lambda array, folder: np.repeat(array, 2, axis=0)[::2],
    "other byte order": lambda array, folder: array.astype(">f8"),
}


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_in_any_memory_are_read_alike(table, tmp_path, form):
    X, y = (ARRAYS[form](array, tmp_path) for array in table)
    plain_weight = np.linspace(1, 2, len(y))
    weight = ARRAYS[form](plain_weight, tmp_path)
    model = regressor().fit(X, y, weight, X_val=X, y_val=y)
    expected = regressor().fit(*table, plain_weight, X_val=table[0], y_val=table[1])
    np.testing.assert_allclose(model.predict(X), expected.predict(table[0]), rtol=1e-8)
    np.testing.assert_array_equal(X, table[0])
    np.testing.assert_array_equal(y, table[1])


def test_float32_rows_give_float32_features_and_float64_predictions(table, fitted):
    X, _ = table
    narrow = X.astype(np.float32)
    assert fitted.transform(narrow).dtype == np.float32
    assert fitted.predict(narrow).dtype == np.float64
    np.testing.assert_allclose(fitted.predict(narrow), fitted.predict(X), atol=1e-5)
