"""Held-out rows: which they are, what is watched on them, and when training ends."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import make_scorer, mean_squared_error
from small_models import classifier, regressor, watched
from torch import nn

from sklearn_cfll import CFLLRegressor


def held_out_by(model, X, y):
    """Count the rows that a fit holds out."""
    held_out = watched(model, X, y)[1].held_out
    return 0 if held_out is None else len(held_out)


# Which rows ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("early_stopping", "n_samples", "held_out"),
    [(True, 50, 5), (False, 500, 0), ("auto", 199, 0), ("auto", 200, 20)],
)
def test_early_stopping_holds_rows_out(early_stopping, n_samples, held_out):
    X = np.random.default_rng(0).normal(size=(n_samples, 3))
    model = regressor(early_stopping=early_stopping, max_epochs=1)
    assert held_out_by(model, X, X[:, 0]) == held_out
    assert ("valid_loss" in model.history_[0]) == (held_out > 0)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.1, 18), (0.25, 45)])
def test_validation_fraction_is_the_share_held_out(table, fraction, held_out):
    model = regressor(early_stopping=True, validation_fraction=fraction, max_epochs=1)
    assert held_out_by(model, *table) == held_out


def test_rows_are_trained_on_or_held_out(table):
    X, _ = table
    model = regressor(early_stopping=True, validation_fraction=0.3, max_epochs=1)
    seen = watched(model, *table)[1]
    first_column = np.r_[seen.rows.X[:, 0], seen.held_out.X[:, 0]]
    assert_array_equal(np.sort(first_column), np.sort(X[:, 0]))
    assert len(seen.held_out) == 54


def test_held_out_classes_are_stratified():
    X, y = load_breast_cancer(return_X_y=True)
    rows = np.r_[np.flatnonzero(y == 1)[:180], np.flatnonzero(y == 0)[:20]]
    model = classifier(early_stopping=True, validation_fraction=0.1, max_epochs=1)
    held_out = watched(model, X[rows], y[rows])[1].held_out
    assert np.bincount(held_out.y).tolist() == [2, 18]


@pytest.mark.parametrize("sizes", [(8, 8, 1), (4, 4, 4)], ids=["rare", "many"])
def test_classes_too_few_to_be_stratified_are_held_out_all_the_same(sizes):
    y = np.repeat([0, 1, 2], sizes)
    X = np.random.default_rng(0).normal(size=(len(y), 3))
    model = classifier(early_stopping=True, validation_fraction=0.1, max_epochs=1)
    held_out = watched(model, X, y)[1].held_out
    assert len(held_out) == 2
    assert model.classes_.tolist() == [0, 1, 2]


def test_held_out_rows_of_ones_own_leave_all_rows_for_training(table, fresh_rows):
    X_val, y_val = fresh_rows
    model, seen = watched(regressor(max_epochs=1), *table, X_val=X_val, y_val=y_val)
    assert_array_equal(seen.rows.X, table[0])
    assert_array_equal(seen.held_out.X, X_val)
    assert_array_equal(seen.held_out.y, y_val)
    assert 0 < model.history_[0, "valid_score"] < 1


def test_held_out_loss_is_in_units_of_the_training_targets(table, fresh_rows):
    X, y = table
    X_val, y_val = fresh_rows
    noted = []
    scoring = make_scorer(lambda y, p: noted.append(((y - p) ** 2).mean()) or 0.0)
    model = regressor(max_epochs=3, scoring=scoring, early_stopping=False)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    expected = np.array(noted) / y.var()
    assert_allclose(model.history_[:, "valid_loss"], expected, rtol=1e-9)


def test_weights_of_held_out_rows_count_them(table, fresh_rows):
    X_val, y_val = fresh_rows
    weight = np.random.default_rng(0).integers(0, 3, size=len(y_val))
    weighted = regressor().fit(
        *table, X_val=X_val, y_val=y_val, sample_weight_val=weight
    )
    repeated = regressor().fit(
        *table, X_val=X_val.repeat(weight, 0), y_val=y_val.repeat(weight)
    )
    for name in ("valid_loss", "valid_score"):
        ours, theirs = weighted.history_[:, name], repeated.history_[:, name]
        assert_allclose(ours, theirs, rtol=1e-9)
    assert_allclose(weighted.predict(X_val), repeated.predict(X_val), rtol=1e-9)


# What it does -------------------------------------------------------------------


def noisy(n_samples=60):
    """Few rows and a target that is mostly noise, to overfit soon."""
    random = np.random.default_rng(5)
    X = random.normal(size=(2 * n_samples, 4))
    y = X[:, 0] + 2 * random.normal(size=2 * n_samples)
    half = slice(n_samples), slice(n_samples, None)
    return [a[s] for s in half for a in (X, y)]


def test_the_best_epoch_is_restored():
    X, y, X_val, y_val = noisy()
    settings = {"max_epochs": 40, "prox": 0.3, "n_iter_no_change": 40}
    model = regressor(early_stopping=True, **settings)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    losses = model.history_[:, "valid_loss"]
    assert losses[-1] > 1.1 * min(losses)
    best = int(np.argmin(losses)) + 1
    seen = []

    def features(estimator, X, y):
        seen.append(estimator.transform(X))
        return 0.0

    regressor(**{**settings, "scoring": features, "early_stopping": False}).fit(
        X, y, X_val=X_val, y_val=y_val
    )
    assert_allclose(model.transform(X_val), seen[best - 1], rtol=1e-9, atol=1e-12)


def test_the_head_of_the_training_is_kept_where_the_exact_one_is_worse():
    X, y, X_val, y_val = noisy()
    model = regressor(early_stopping=True, alpha=0, prox=1.0, max_epochs=40)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    best = min(model.history_[:, "valid_loss"])
    error = mean_squared_error(y_val, model.predict(X_val)) / y.var()
    assert error == pytest.approx(best, rel=1e-9)


def test_beside_a_head_that_is_kept_stands_the_ridge_that_was_chosen():
    X, y = load_breast_cancer(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0))[:379]
    model = classifier(max_epochs=5, random_state=1, dtype="float64")
    model.fit(X, y[:379])
    errors = model.alpha_path_["held_out"][:, 0]
    assert errors.min() > min(model.history_[:, "valid_loss"])
    assert model.alpha_ == model.alpha_path_["alphas"][errors.argmin()] > 1


def test_training_ends_after_epochs_without_improvement():
    X, y, X_val, y_val = noisy()
    model = regressor(n_iter_no_change=3, tol=0, max_epochs=60, prox=0.3)
    losses = model.fit(X, y, X_val=X_val, y_val=y_val).history_[:, "valid_loss"]
    assert len(losses) == model.n_iter_ == np.argmin(losses) + 1 + 3 < 60
    longer = regressor(n_iter_no_change=8, tol=0, max_epochs=60, prox=0.3)
    longer.fit(X, y, X_val=X_val, y_val=y_val)
    assert longer.n_iter_ > model.n_iter_
    assert longer.history_[: len(losses), "valid_loss"] == losses


def test_a_gain_below_tol_is_none(table, fresh_rows):
    X_val, y_val = fresh_rows
    model = regressor(tol=10.0, n_iter_no_change=4)
    model.fit(*table, X_val=X_val, y_val=y_val)
    # The first epoch is the best that tol admits, though the loss falls on.
    assert model.n_iter_ == 5
    losses = model.history_[:, "valid_loss"]
    assert np.argmin(losses) > 0


def test_without_early_stopping_all_epochs_run_and_the_last_one_stays():
    X, y, X_val, y_val = noisy()
    settings = {"max_epochs": 30, "prox": 0.3, "alpha": 0.1}
    model = regressor(early_stopping=False, n_iter_no_change=1, **settings)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    assert model.n_iter_ == 30
    last = regressor(early_stopping=False, **settings).fit(X, y)
    assert_array_equal(model.transform(X), last.transform(X))


# Scoring ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "scoring"), [(regressor, "r2"), (classifier, "accuracy")]
)
def test_the_default_score_is_that_of_score(make, scoring):
    X, y = load_breast_cancer(return_X_y=True)
    own, named = (
        make(max_epochs=4, scoring=s).fit(X, y, X_val=X, y_val=y)
        for s in (None, scoring)
    )
    ours, theirs = (m.history_[:, "valid_score"] for m in (own, named))
    assert_allclose(ours, theirs, rtol=1e-9)
    assert 0.5 < ours[-1] < 1


@pytest.mark.parametrize("form", ["name", "function"])
def test_scoring_is_recorded_each_epoch(table, fresh_rows, form):
    X_val, y_val = fresh_rows
    noted = []

    def error(estimator, X, y):
        assert isinstance(estimator, CFLLRegressor)
        assert_array_equal(X, X_val)
        noted.append(-np.abs(estimator.predict(X) - y).mean())
        return noted[-1]

    regressor(max_epochs=4, scoring=error).fit(*table, X_val=X_val, y_val=y_val)
    scoring = error if form == "function" else "neg_mean_absolute_error"
    model = regressor(max_epochs=4, scoring=scoring)
    model.fit(*table, X_val=X_val, y_val=y_val)
    assert_allclose(model.history_[:, "valid_score"], noted[:4], rtol=1e-9)


@pytest.mark.parametrize("form", ["name", "function"])
def test_scoring_has_the_weights_of_the_held_out_rows(table, fresh_rows, form):
    X_val, y_val = fresh_rows
    weight = np.linspace(0.1, 3, len(X_val))
    noted = []

    def error(estimator, X, y, sample_weight=None):
        gap = np.abs(estimator.predict(X) - y)
        noted.append(-np.average(gap, weights=sample_weight))
        return noted[-1]

    held_out = {"X_val": X_val, "y_val": y_val, "sample_weight_val": weight}
    regressor(max_epochs=3, scoring=error).fit(*table, **held_out)
    scoring = error if form == "function" else "neg_mean_absolute_error"
    model = regressor(max_epochs=3, scoring=scoring, early_stopping=False)
    model.fit(*table, **held_out)
    assert_allclose(model.history_[:, "valid_score"], noted[:3], rtol=1e-9)
    plain = regressor(max_epochs=3, scoring=scoring, early_stopping=False)
    plain.fit(*table, X_val=X_val, y_val=y_val)
    scores = (fitted.history_[:, "valid_score"] for fitted in (model, plain))
    assert not np.isclose(*scores, rtol=1e-3).any()


def test_scoring_decides_the_best_epoch_and_the_end(table, fresh_rows):
    X_val, y_val = fresh_rows
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2])
    watching = regressor(scoring=lambda *_: next(scores), n_iter_no_change=3)
    watching.fit(*table, X_val=X_val, y_val=y_val)
    assert watching.n_iter_ == 5
    assert watching.history_[:, "valid_score"] == [0.1, 0.5, 0.4, 0.3, 0.2]
    seen = []
    noting = regressor(
        scoring=lambda model, X, y: seen.append(model.transform(X)) or 0.0,
        early_stopping=False,
    )
    noting.fit(*table, X_val=X_val, y_val=y_val)
    assert_allclose(watching.transform(X_val), seen[1], rtol=1e-9, atol=1e-12)


def test_scoring_of_a_frame_gives_no_warning_of_names(table):
    X, y = table
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = regressor(nn.Identity(), scoring="r2", early_stopping=True, max_epochs=2)
    assert model.fit(frame, y).feature_names_in_.tolist() == list("abcd")
