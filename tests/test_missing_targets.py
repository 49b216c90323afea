"""Targets that are not known: each output is that of its own rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from small_models import regressor

from sklearn_cfll.functional import solve_ridge


@pytest.fixture(scope="module")
def gappy(table):
    """Three outputs, a third of their targets missing at random."""
    X, y = table
    Y = np.c_[y, X[:, 2] ** 2, X.sum(1)]
    missing = np.random.default_rng(3).random(Y.shape) < 0.33
    missing[5] = True
    return X, np.where(missing, np.nan, Y), Y


def model_for(**params):
    return regressor(
        missing_targets="ignore", **{"dtype": "float64", "max_epochs": 10, **params}
    )


@pytest.mark.parametrize("alpha", ["auto", 1e-3], ids=str)
def test_each_output_has_the_head_of_its_own_rows(gappy, alpha):
    X, Y, _ = gappy
    model = model_for(alpha=alpha, early_stopping=False).fit(X, Y)
    features = torch.tensor(model.transform(X))
    alphas = np.broadcast_to(model.alpha_, 3)
    for output in range(3):
        known = ~np.isnan(Y[:, output])
        targets = torch.tensor(Y[known][:, [output]])
        weight, bias = solve_ridge(features[known], targets, alphas[output])
        expected = weight[:, 0].numpy()
        np.testing.assert_allclose(model.coef_[output], expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model.intercept_[output], bias[0], rtol=1e-8)


def test_the_gaps_are_filled_well(gappy):
    X, Y, truth = gappy
    model = model_for(max_epochs=30).fit(X, Y)
    missing = np.isnan(Y)
    error = (model.predict(X) - truth)[missing]
    assert np.mean(error**2) < 0.02 * np.var(truth[missing])


def test_one_output_is_as_without_the_rows_that_lack_it(table):
    X, y = table
    gaps = np.where(np.arange(len(y)) % 4 == 0, np.nan, y)
    known = ~np.isnan(gaps)
    actual = model_for().fit(X, gaps).predict(X)
    expected = model_for().fit(X[known], y[known]).predict(X)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_without_gaps_it_is_the_usual_fit(gappy):
    X, _, truth = gappy
    usual = regressor(dtype="float64", max_epochs=10).fit(X, truth)
    np.testing.assert_array_equal(
        model_for().fit(X, truth).predict(X), usual.predict(X)
    )


def test_integer_weights_equal_repeated_rows(gappy):
    X, Y, _ = (part[:60] for part in gappy)
    counts = np.arange(60) % 3
    index = np.repeat(np.arange(60), counts)
    model = model_for(batch_size="full", max_epochs=5)
    weighted = model.fit(X, Y, counts.astype(float)).predict(X)
    repeated = model.fit(X[index], Y[index]).predict(X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6, atol=1e-7)


def test_held_out_gaps_are_left_out_of_the_score(gappy):
    X, Y, truth = gappy
    model = model_for(early_stopping=False, max_epochs=3)
    model.fit(X, Y, X_val=X[:50], y_val=Y[:50])
    predictions = model.predict(X[:50])
    assert np.isfinite(model.history_[:, "valid_score"]).all()
    score = model._targets.score(predictions, Y[:50], None)
    parts = []
    for output in range(3):
        known = ~np.isnan(Y[:50, output])
        own = truth[:50][known, output]
        residual = predictions[known, output] - own
        parts.append(1 - (residual**2).sum() / ((own - own.mean()) ** 2).sum())
    assert score == pytest.approx(np.mean(parts))


def r2_by_hand(truth, predictions, weight):
    mean = np.average(truth, weights=weight)
    error = np.average((predictions - truth) ** 2, weights=weight)
    return 1 - error / np.average((truth - mean) ** 2, weights=weight)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_score_of_each_output_is_that_of_the_rows_that_have_it(gappy, weighted):
    X, Y, _ = gappy
    model = model_for(max_epochs=3).fit(X, Y)
    weight = np.arange(len(Y)) % 3 if weighted else np.ones(len(Y))
    predictions, parts = model.predict(X), []
    for output in range(3):
        known = ~np.isnan(Y[:, output])
        own = Y[known, output], predictions[known, output], weight[known]
        parts.append(r2_by_hand(*own))
    score = model.score(X, Y, weight if weighted else None)
    assert score == pytest.approx(np.mean(parts))


def test_an_output_without_weight_is_left_out_of_the_score(gappy):
    X, Y, _ = gappy
    model = model_for(max_epochs=3).fit(X, Y)
    weight = np.isnan(Y[:, 0]).astype(float)
    without = np.where(np.arange(3) == 0, np.nan, Y)
    assert model.score(X, Y, weight) == model.score(X, without, weight)


def test_gaps_in_a_column_are_scored_as_in_a_vector(table):
    X, y = table
    gaps = np.where(np.arange(len(y)) % 4 == 0, np.nan, y)
    vector = model_for(max_epochs=3).fit(X, gaps)
    column = model_for(max_epochs=3).fit(X, gaps[:, None])
    score = vector.score(X, gaps)
    assert [vector.score(X, gaps[:, None]), column.score(X, gaps)] == [score, score]


def test_cross_validation_scores_gaps(gappy):
    X, Y, _ = gappy
    scores = cross_val_score(model_for(), X, Y, cv=3, error_score="raise")
    assert (scores > 0.3).all()


def test_targets_of_other_outputs_have_no_score(gappy):
    X, Y, _ = gappy
    model = model_for(max_epochs=1).fit(X, Y)
    message = (
        rf"^y has shape \({len(X)}, 2\) but the predictions for X have shape "
        rf"\({len(X)}, 3\); pass the targets of the same samples and outputs\.$"
    )
    with pytest.raises(ValueError, match=message):
        model.score(X, Y[:, :2])


def test_an_output_that_no_held_out_row_has_follows_the_others(gappy):
    X, Y, _ = gappy
    held_out = Y[:40].copy()
    held_out[:, 1] = np.nan
    model = model_for(early_stopping=True)
    model.fit(X[40:], Y[40:], X_val=X[:40], y_val=held_out)
    assert model.alpha_[1] <= max(model.alpha_[[0, 2]])
    with pytest.raises(
        ValueError, match="9 calibration rows with a target of output 1, got 0"
    ):
        model.predict_interval(X)


@pytest.mark.parametrize("size", [13, 60])
def test_chunks_with_gaps_give_the_head_of_all_rows(gappy, size):
    X, Y, _ = gappy
    start = {"stream_epochs": 0, "alpha": 1e-3}
    whole = model_for(**start).partial_fit(X[6:46], Y[6:46])
    parts = model_for(**start).partial_fit(X[6:46], Y[6:46])
    rest_X, rest_Y = X[46:], Y[46:]
    whole.partial_fit(rest_X, rest_Y)
    for i in range(0, len(rest_X), size):
        parts.partial_fit(rest_X[i : i + size], rest_Y[i : i + size])
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-8, atol=1e-8)
    before = parts.coef_
    parts.partial_fit(X[:3], Y[:3]).forget(X[:3], Y[:3])
    np.testing.assert_allclose(parts.coef_, before, rtol=1e-8, atol=1e-8)


def test_gaps_may_begin_after_a_fit_without_any(gappy):
    X, Y, truth = gappy
    model = model_for(early_stopping=False).fit(X[:90], truth[:90])
    alpha = np.broadcast_to(model.alpha_, 3)
    model.partial_fit(X[90:], Y[90:])
    features = torch.tensor(model.transform(X))
    together = np.r_[truth[:90], Y[90:]]
    weight = torch.tensor((~np.isnan(together)).astype(float))
    targets = torch.tensor(np.nan_to_num(together))
    coefficients, _ = solve_ridge(features, targets, torch.tensor(alpha), weight)
    np.testing.assert_allclose(model.coef_, coefficients.T, rtol=1e-8, atol=1e-8)


def test_new_targets_may_have_gaps(gappy):
    X, Y, _ = gappy
    model = model_for(early_stopping=False).fit(X, Y)
    np.testing.assert_allclose(
        model.refit_head(X, Y).coef_, model.coef_, rtol=1e-8, atol=1e-8
    )


def test_gaps_are_an_error_unless_they_are_to_be_ignored(gappy):
    X, Y, _ = gappy
    with pytest.raises(ValueError, match="Input y contains NaN"):
        regressor().fit(X, Y)
    with pytest.raises(ValueError, match="infinity"):
        model_for().fit(X, np.where(np.isnan(Y), np.inf, Y))


def test_an_output_without_any_target_is_an_error(gappy):
    X, Y, _ = gappy
    Y = np.c_[Y, np.full(len(Y), np.nan)]
    with pytest.raises(ValueError, match="output 3 of y is missing in every row"):
        model_for().fit(X, Y)


def test_rows_without_any_known_target_are_an_error(gappy):
    X, Y, _ = gappy
    nothing = np.full_like(Y, np.nan)
    message = r"^y holds no known target; pass rows that have one\.$"
    with pytest.raises(ValueError, match=message):
        model_for().fit(X, nothing)
    model = model_for(max_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match=message):
        model.partial_fit(X[:9], nothing[:9])
    weight = np.isnan(Y).all(1).astype(float)
    with pytest.raises(ValueError, match=r"^y holds no known target in a row that"):
        model.partial_fit(X, Y, sample_weight=weight)


def test_a_scorer_can_not_score_gaps(gappy):
    X, Y, _ = gappy
    model = model_for(scoring="r2")
    with pytest.raises(ValueError, match="can't score missing targets"):
        model.fit(X, Y, X_val=X, y_val=Y)
