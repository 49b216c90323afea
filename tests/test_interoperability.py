"""The estimators inside scikit-learn's tools."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy.stats import loguniform, randint
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    RandomForestClassifier,
    StackingRegressor,
    VotingClassifier,
)
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import LinearRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from small_models import classifier, regressor

NAMES = ["a", "b", "c", "noise"]


@pytest.fixture(scope="module")
def fitted(table):
    return regressor().fit(*table)


@pytest.fixture(scope="module")
def cells():
    """Breast cancer, standardised: two classes."""
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


# Composition --------------------------------------------------------------------


def test_pipeline_with_column_transformer_on_a_mixed_frame(table):
    X, y = table
    frame = pd.DataFrame(X, columns=NAMES)
    kind = np.random.default_rng(2).choice(["low", "middle", "high"], size=len(X))
    frame["kind"] = pd.Categorical(kind)
    y = y + pd.Series(kind).map({"low": -8.0, "middle": 0.0, "high": 8.0}).to_numpy()
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), NAMES), ("kinds", OneHotEncoder(), ["kind"])]
    )
    model = make_pipeline(columns, regressor()).fit(frame[:120], y[:120])
    assert model.score(frame[120:], y[120:]) > 0.95
    assert model[-1].n_features_in_ == len(NAMES) + 3


@pytest.mark.parametrize(
    ("name", "poor", "good"),
    [
        ("backbone__width", 2, 32),
        ("lr", 1e-7, 1e-2),
        ("alpha", 100.0, 1e-3),
        ("prox", 1e5, (0.3, 100.0)),
        ("optimizer", "sgd", "adamw"),
    ],
)
def test_grid_search_in_processes_prefers_the_better_value(table, name, poor, good):
    model = regressor(max_epochs=15)
    if name == "prox":  # a fixed alpha keeps the exact solve from mending the head
        model.set_params(alpha=1e-3)
    if name == "optimizer":  # a rate that is far too small for sgd
        model.set_params(lr=1e-3)
    search = GridSearchCV(model, {name: [poor, good]}, n_jobs=2, cv=3).fit(*table)
    assert search.best_params_ == {name: good}
    serial = cross_validate(clone(model).set_params(**{name: good}), *table, cv=3)
    assert search.best_score_ == pytest.approx(serial["test_score"].mean(), rel=1e-9)


def test_randomized_search_in_processes(table, fresh_rows):
    search = RandomizedSearchCV(
        regressor(max_epochs=10),
        {
            "backbone__width": randint(8, 64),
            "lr": loguniform(1e-3, 3e-2),
            "alpha": loguniform(1e-6, 1e-1),
            "prox": [(0.3, 100.0), 1.0, 10.0],
            "optimizer": ["adamw", "sgd", "rmsprop"],
        },
        n_iter=6,
        n_jobs=2,
        cv=2,
        random_state=0,
    ).fit(*table)
    assert search.score(*fresh_rows) > 0.95
    assert search.best_estimator_.get_params().items() >= search.best_params_.items()
    assert len(set(search.cv_results_["mean_test_score"])) == 6


def test_transformed_target_is_fitted_on_the_transformed_scale(table):
    X, y = table
    inside = TransformedTargetRegressor(regressor(), func=np.log, inverse_func=np.exp)
    by_hand = regressor().fit(X, y)
    predictions = inside.fit(X, np.exp(y)).predict(X)
    np.testing.assert_allclose(predictions, np.exp(by_hand.predict(X)), rtol=1e-9)


def test_bagging_averages_its_members(table, fresh_rows):
    bag = BaggingRegressor(regressor(), n_estimators=3, random_state=0).fit(*table)
    X, y = fresh_rows
    members = [member.predict(X) for member in bag.estimators_]
    np.testing.assert_allclose(bag.predict(X), np.mean(members, axis=0))
    assert np.ptp(members, axis=0).min() > 0
    assert bag.score(X, y) > 0.95


def test_members_without_resampling_are_plain_fits_of_other_seeds(table, cells):
    # Bagging hands over rows that are drawn once each as weights of one.
    bag = BaggingRegressor(regressor(), n_estimators=2, bootstrap=False, random_state=0)
    first, second = bag.fit(*table).estimators_
    assert first.random_state != second.random_state
    alone = regressor(random_state=first.random_state).fit(*table)
    np.testing.assert_array_equal(first.predict(table[0]), alone.predict(table[0]))

    X, y = cells
    bag = BaggingClassifier(
        classifier(), n_estimators=3, bootstrap=False, random_state=0
    ).fit(X, y)
    members = [member.predict_proba(X) for member in bag.estimators_]
    assert np.ptp(members, axis=0).max() > 1e-3
    np.testing.assert_allclose(bag.predict_proba(X), np.mean(members, axis=0))


def test_stacking_improves_on_a_linear_model(table, fresh_rows):
    members = [("linear", LinearRegression()), ("network", regressor())]
    stack = StackingRegressor(members, cv=3).fit(*table)
    assert stack.score(*fresh_rows) > 0.95
    assert LinearRegression().fit(*table).score(*fresh_rows) < 0.85
    assert abs(stack.final_estimator_.coef_[1]) > 0.8


def test_soft_voting_averages_probabilities(cells):
    X, y = cells
    forest = RandomForestClassifier(n_estimators=20, random_state=0)
    vote = VotingClassifier(
        [("network", classifier()), ("forest", forest)], voting="soft"
    ).fit(X[:300], y[:300])
    members = [member.predict_proba(X[300:]) for member in vote.estimators_]
    np.testing.assert_allclose(vote.predict_proba(X[300:]), np.mean(members, axis=0))
    assert vote.score(X[300:], y[300:]) > 0.93


def test_multi_output_fits_a_model_for_each_column(table):
    X, y = table
    together = MultiOutputRegressor(regressor()).fit(X, np.c_[y, -2 * X[:, 1]])
    apart = [regressor().fit(X, y), regressor().fit(X, -2 * X[:, 1])]
    expected = np.column_stack([model.predict(X) for model in apart])
    np.testing.assert_array_equal(together.predict(X), expected)


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibration_by_cross_validation(cells, method):
    X, y = cells
    model = CalibratedClassifierCV(classifier(), method=method, cv=3)
    model.fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > 0.95
    assert log_loss(y[300:], model.predict_proba(X[300:])) < 0.2


@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "predict_log_proba", "decision_function"]
)
def test_cross_val_predict(method):
    X, y = load_wine(return_X_y=True)
    outcome = cross_val_predict(classifier(max_epochs=30), X, y, cv=3, method=method)
    labels = outcome if method == "predict" else outcome.argmax(1)
    assert accuracy_score(y, labels) > 0.95
    if "proba" in method:
        outcome = np.exp(outcome) if "log" in method else outcome
        np.testing.assert_allclose(outcome.sum(1), 1)


def test_permutation_importance_finds_the_columns_that_matter(fitted, fresh_rows):
    result = permutation_importance(fitted, *fresh_rows, n_repeats=3, random_state=0)
    *useful, noise = result.importances_mean
    assert min(useful) > 0.1 > 0.01 > abs(noise)
    assert np.argmax(result.importances_mean) == 0


def test_partial_dependence_follows_the_function(fitted, fresh_rows):
    X, _ = fresh_rows
    result = partial_dependence(fitted, X, [0], kind="average", grid_resolution=9)
    slope = np.polyfit(result["grid_values"][0], result["average"][0], 1)[0]
    assert slope == pytest.approx(3, abs=0.2)


def test_learning_curve_rises_with_rows(table):
    sizes, _, scores = learning_curve(regressor(), *table, train_sizes=[12, 110], cv=3)
    assert sizes.tolist() == [12, 110]
    poor, good = scores.mean(1)
    assert good > 0.95
    assert poor < good - 0.05


# Weights and output settings ----------------------------------------------------


def test_sample_weight_is_routed_to_fit_and_score(table):
    X, y = table
    weight = np.random.default_rng(3).uniform(0.1, 3, size=len(y))
    folds = list(KFold(3).split(X))
    expected = []
    for train, test in folds:
        model = regressor().fit(X[train], y[train], weight[train])
        expected.append(model.score(X[test], y[test], weight[test]))
    with sklearn.config_context(enable_metadata_routing=True):
        model = regressor().set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        result = cross_validate(model, X, y, cv=folds, params={"sample_weight": weight})
    np.testing.assert_array_equal(result["test_score"], expected)


def test_held_out_rows_are_routed_to_fit(table, fresh_rows):
    X, y = table
    X_val, y_val = fresh_rows
    expected = regressor().fit(X, y, X_val=X_val, y_val=y_val).predict(X)
    with sklearn.config_context(enable_metadata_routing=True):
        model = regressor().set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(model).fit(X, y, X_val=X_val, y_val=y_val)
    np.testing.assert_array_equal(pipeline.predict(X), expected)


@pytest.mark.parametrize(("library", "frame"), [("pandas", pd), ("polars", pl)])
def test_set_output_names_the_features(table, library, frame):
    X, y = table
    model = regressor(max_epochs=1).fit(X, y)
    features = model.transform(X)
    named = model.set_output(transform=library).transform(X)
    assert isinstance(named, frame.DataFrame)
    assert list(named.columns) == [f"cfllregressor{i}" for i in range(32)]
    assert list(named.columns) == model.get_feature_names_out().tolist()
    np.testing.assert_array_equal(named.to_numpy(), features)
