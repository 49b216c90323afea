"""New targets on a trained backbone, in closed form."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from small_models import classifier, regressor

from sklearn_cfll import MLP, _final
from sklearn_cfll.functional import solve_ridge


@pytest.fixture(scope="module")
def fitted(table):
    settings = {"lr_schedule": "cosine", "prox": (1, 100), "dtype": "float64"}
    # Whether the ridge of some rows is within a decade of all rows', below, depends on
    # the network: the settings are those with which the bound was found.
    backbone = MLP(width=32, gain_rate=0)
    return regressor(backbone, early_stopping=False, **settings).fit(*table)


@pytest.fixture(scope="module")
def new_targets(table):
    X, y = table
    directions = np.random.default_rng(5).normal(size=(4, 12))
    return np.c_[np.tanh(X @ directions), y]


def test_the_targets_of_fit_give_the_head_of_fit(table, fitted):
    X, y = table
    again = fitted.refit_head(X, y)
    assert again.alpha_ == fitted.alpha_
    np.testing.assert_array_equal(again.coef_, fitted.coef_)
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))


def test_each_new_output_is_the_ridge_of_the_features(table, fitted, new_targets):
    X, _ = table
    model = fitted.refit_head(X, new_targets)
    features, targets = torch.tensor(fitted.transform(X)), torch.tensor(new_targets)
    alpha = torch.tensor(model.alpha_)
    assert alpha.shape == (13,)
    weight, bias = solve_ridge(features, targets, alpha)
    np.testing.assert_allclose(model.coef_, weight.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(model.intercept_, bias, rtol=1e-8, atol=1e-8)
    assert model.predict(X).shape == new_targets.shape
    assert model.n_outputs_ == 13


def test_the_original_is_left_as_it_was(table, fitted, new_targets):
    X, _ = table
    before = pickle.dumps(fitted)
    model = fitted.refit_head(X, new_targets)
    assert pickle.dumps(fitted) == before
    with torch.no_grad():
        for parameter in model.backbone_.parameters():
            parameter.zero_()
    assert pickle.dumps(fitted) == before


def test_held_out_rows_choose_the_ridge(table, fresh_rows, fitted):
    X, y = table
    rows = np.random.default_rng(6)
    noise = rows.normal(size=(len(fresh_rows[0]), 1))
    model = fitted.refit_head(X, y[:, None], X_val=fresh_rows[0], y_val=noise)
    assert model.alpha_ >= 1 > fitted.alpha_


def test_weights_equal_repeated_rows(table, fitted, new_targets):
    X, _ = table
    counts = np.arange(len(X)) % 3
    index = np.repeat(np.arange(len(X)), counts)
    weighted = fitted.refit_head(X, new_targets, counts.astype(float))
    repeated = fitted.refit_head(X[index], new_targets[index])
    np.testing.assert_allclose(weighted.alpha_, repeated.alpha_)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-7, atol=1e-8)


def test_some_rows_choose_the_ridge_of_many_outputs(
    table, fitted, new_targets, monkeypatch
):
    X, _ = table
    exact = fitted.refit_head(X, new_targets)
    monkeypatch.setattr(_final, "_MOST_LEFT_OUT", 13 * 90)
    monkeypatch.setattr(_final, "_LEAST_SAMPLE", 90)
    sampled = fitted.refit_head(X, new_targets)
    ratio = np.log10(sampled.alpha_ / exact.alpha_)
    assert np.abs(ratio).max() <= 1.001
    assert sampled.score(X, new_targets) > 0.98 * exact.score(X, new_targets)


def test_new_classes_take_the_place_of_the_old(table):
    X, y = table
    model = classifier().fit(X, y > 0)
    labels = np.digitize(X[:, 0], [-0.5, 0.0, 0.5])
    new = model.refit_head(X, np.array(["w", "x", "y", "z"])[labels])
    assert new.classes_.tolist() == ["w", "x", "y", "z"]
    assert model.classes_.tolist() == [False, True]
    assert new.predict_proba(X).shape == (len(X), 4)
    assert new.score(X, np.array(["w", "x", "y", "z"])[labels]) > 0.7
    assert model.score(X, y > 0) > 0.9


def test_class_weights_are_those_of_the_new_classes(table):
    X, y = table
    model = classifier(class_weight="balanced").fit(X, y > 0)
    few = X[:, 0] > 0.8
    counts = np.bincount(few)
    by_hand = classifier().fit(X, y > 0, np.where(y > 0, *len(y) / 2 / weights_of(y)))
    weight = (len(X) / (2 * counts))[few.astype(int)]
    expected = by_hand.refit_head(X, few, weight)
    actual = model.refit_head(X, few)
    np.testing.assert_allclose(
        actual.predict_proba(X), expected.predict_proba(X), rtol=1e-6, atol=1e-9
    )


def weights_of(y):
    return np.array([[(y > 0).sum()], [(y <= 0).sum()]])


def test_a_new_head_can_be_streamed_and_fitted_again(table, fitted, new_targets):
    X, y = table
    model = fitted.refit_head(X[:100], new_targets[:100])
    whole = copy.deepcopy(model).set_params(alpha=1e-3)
    whole = whole.refit_head(X, new_targets)
    parts = model.set_params(alpha=1e-3).partial_fit(X[100:], new_targets[100:])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-8, atol=1e-8)
    refitted = model.set_params(alpha="auto").fit(X, y)
    np.testing.assert_array_equal(refitted.predict(X), fitted.predict(X))


def test_what_can_not_be_used_is_said(table, fitted):
    X, y = table
    with pytest.raises(NotFittedError):
        regressor().refit_head(X, y)
    with pytest.raises(ValueError, match="X has 3 features"):
        fitted.refit_head(X[:, :3], y)
    model = copy.deepcopy(fitted).set_params(alpha=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"one number for each output \(1 here\)"):
        model.refit_head(X, y)
