"""What is known of a head's errors, once the head has moved or is another."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_models import classifier, regressor

from sklearn_cfll.functional import Moments, RidgePath
from sklearn_cfll.functional.posterior import HeadPosterior, effective_dof, log_evidence

EXACT = {"dtype": "float64", "max_epochs": 5}
FROZEN = {"dtype": "float64", "stream_epochs": 0}
OF_FIT = ["alpha_path_", "loo_predictions_", "loo_score_"]


@pytest.fixture(scope="module")
def targets(table):
    X, y = table
    noise = np.random.default_rng(2).normal(size=180)
    return np.column_stack([y, 100 * (X[:, 3] + noise)])


@pytest.fixture(scope="module")
def weight():
    return np.random.default_rng(4).uniform(0.5, 30, size=180)


@pytest.fixture(scope="module")
def labels(table):
    return np.array(["a", "b", "c"])[(table[1] > 0).astype(int) + (table[1] > 2)]


@pytest.fixture
def moved(table, targets):
    """Fitted on 120 rows, 40 of them held out; then 60 more."""
    X, _ = table
    model = regressor(store_loo=True, **EXACT)
    model.fit(X[:80], targets[:80], X_val=X[80:120], y_val=targets[80:120])
    return model.partial_fit(X[120:], targets[120:])


def close(actual, expected, tolerance=1e-7):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def same(first, second, names):
    for name in names:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def path_of_rows(model, X, y, weight=None):
    """Ridge path of rows that are all at hand, their weights one in the mean."""
    own = None if weight is None else torch.tensor(weight / weight.mean())
    features, targets = torch.tensor(model.transform(X)), torch.tensor(y)
    return RidgePath(Moments.of(features, targets.reshape(len(y), -1), own))


# Brought up to date ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
@pytest.mark.parametrize("alpha", [0.01, np.array([0.1, 0.001])], ids=["one", "each"])
@pytest.mark.parametrize("weighted", [False, True], ids=["rows", "weights"])
def test_error_bars_after_chunks_are_those_of_all_rows(
    table, targets, weight, fresh_rows, alpha, weighted
):
    X, _ = table
    own = weight if weighted else None
    model = regressor(alpha=alpha, early_stopping=False, **EXACT)
    parts = [slice(0, 90), slice(90, 91), slice(91, 180)]
    model.fit(X[parts[0]], targets[parts[0]], own[parts[0]] if weighted else None)
    noise, scale = model.noise_.copy(), model.posterior_scale_
    for rows in parts[1:]:
        model.partial_fit(X[rows], targets[rows], own[rows] if weighted else None)
    path, ridge = path_of_rows(model, X, targets, own), torch.tensor(alpha)
    features = torch.tensor(model.transform(fresh_rows[0]))
    leverage = HeadPosterior.of(path, ridge).leverage(features).numpy()
    close(model.leverage(fresh_rows[0]).reshape(leverage.shape), leverage)
    close(model.effective_dof_, np.ravel(effective_dof(path, ridge)))
    close(model.log_evidence_, log_evidence(path, ridge, torch.tensor(noise) ** 2))
    # The noise is the rows', which further rows don't change.
    close(model.noise_, noise)
    _, deviation = model.predict(fresh_rows[0], return_std=True)
    close(deviation, noise * np.sqrt(1 + scale * leverage))


@pytest.mark.parametrize("weighted", [False, True], ids=["rows", "weights"])
def test_what_came_and_was_forgotten_leaves_the_error_bars(
    table, targets, weight, weighted
):
    X, _ = table
    own = weight if weighted else None
    first, rest = slice(0, 120), slice(120, 180)
    model = regressor(early_stopping=False, **EXACT)
    model.fit(X[first], targets[first], own[first] if weighted else None)
    before = copy.deepcopy(model)
    model.partial_fit(X[rest], targets[rest], own[rest] if weighted else None)
    assert model.leverage(X).mean() < 0.9 * before.leverage(X).mean()
    model.forget(X[rest], targets[rest], own[rest] if weighted else None)
    for name in ["noise_", "posterior_scale_", "effective_dof_", "log_evidence_"]:
        close(getattr(model, name), getattr(before, name))
    close(model.leverage(X), before.leverage(X))


@pytest.mark.parametrize("weighted", [False, True], ids=["rows", "weights"])
def test_the_noise_of_a_stream_is_what_its_degrees_of_freedom_leave(
    table, targets, weight, weighted
):
    X, _ = table
    model = regressor(alpha=0.01, **FROZEN)
    for rows in np.split(np.arange(180), 3):
        model.partial_fit(X[rows], targets[rows], weight[rows] if weighted else None)
    counts = weight / weight.mean() if weighted else np.ones(180)
    squares = counts @ (targets - model.predict(X)) ** 2
    path = path_of_rows(model, X, targets, weight if weighted else None)
    degrees = effective_dof(path, 0.01).numpy()
    close(model.effective_dof_, degrees[0])
    close(model.noise_, np.sqrt(squares / (180 - degrees)))
    assert model.posterior_scale_ == 1
    # The second output is noise of 100 for the most part.
    assert model.noise_[1] == pytest.approx(100, rel=0.25)


@pytest.mark.parametrize("weighted", [False, True], ids=["rows", "weights"])
def test_where_the_backbone_moves_the_noise_is_that_of_rows_not_yet_learnt(
    table, targets, weight, weighted
):
    X, _ = table
    model = regressor(alpha=0.01, dtype="float64", stream_epochs=5)
    own = weight if weighted else np.ones(180)
    variances = []
    for number, rows in enumerate(np.split(np.arange(180), 3)):
        if number:
            squares = (targets[rows] - model.predict(X[rows])) ** 2
            leverage = model.leverage(X[rows])[:, None]
            counts = own[rows] / own[rows].sum()
            variances.append(counts @ (squares / (1 + leverage)))
        model.partial_fit(X[rows], targets[rows], own[rows] if weighted else None)
        if number:
            close(model.noise_, np.sqrt(np.mean(variances, axis=0)))
    assert model.posterior_scale_ == 1


def test_forgetting_rows_leaves_the_noise_of_rows_not_yet_learnt(table):
    X, y = table
    model = regressor(max_epochs=3).partial_fit(X[:100], y[:100])
    model.set_params(**FROZEN).partial_fit(X[100:], y[100:])
    noise = model.noise_
    model.forget(X[-5:], y[-5:])
    assert model.noise_ == noise
    model.predict(X, return_std=True)  # without a warning


def test_one_chunk_that_trains_the_backbone_warns_of_its_noise(table):
    X, y = table
    model = regressor(max_epochs=3).partial_fit(X[:100], y[:100])
    with pytest.warns(UserWarning, match="trained on all rows of the stream so far"):
        model.predict(X, return_std=True)
    model.partial_fit(X[100:], y[100:]).predict(X, return_std=True)


def test_a_head_with_a_degree_of_freedom_for_each_row_is_not_sure(table):
    X, y = table
    model = regressor(alpha=0.0, **FROZEN).partial_fit(X[:10], y[:10])
    close(model.predict(X[:10]), y[:10])
    close(model.noise_, y[:10].std())


def test_a_single_row_that_is_left_tells_nothing_of_the_noise(table):
    X, y = table
    model = regressor(alpha=0.1, **FROZEN).partial_fit(X[:40], y[:40])
    noise = model.noise_
    model.forget(X[:39], y[:39])
    close(model.noise_, noise)
    close(model.predict(X[39:40]), y[39:40])
    assert model.predict(X[:1], return_std=True)[1] > noise


def test_one_target_of_an_output_in_the_first_chunk_makes_it_not_sure(table):
    X, y = table
    Y = np.column_stack([y, y])
    Y[1:40, 1] = np.nan
    model = regressor(alpha=0.1, missing_targets="ignore", **FROZEN)
    model.partial_fit(X[:40], Y[:40])
    close(model.noise_[1], model._targets.scale[1])
    model.partial_fit(X[40:], Y[40:])
    assert model.noise_[1] < y.std()


# Dropped --------------------------------------------------------------------------


def move_on(model, X, y):
    return model.partial_fit(X[120:], y[120:])


def forget(model, X, y):
    return model.forget(X[:5], y[:5])


def start(model, X, y):
    names = {"classes": np.unique(y)} if hasattr(model, "classes_") else {}
    return clone(model).partial_fit(X[:120], y[:120], **names)


@pytest.mark.parametrize("move", [move_on, forget, start])
@pytest.mark.parametrize(
    ("make", "ask"), [(regressor, "predict_interval"), (classifier, "predict_set")]
)
def test_intervals_and_sets_of_a_head_that_moved_ask_for_rows(
    table, labels, make, ask, move
):
    X, y = table
    y = labels if make is classifier else y
    model = make(max_epochs=2).fit(X[:80], y[:80], X_val=X[80:120], y_val=y[80:120])
    getattr(model, ask)(X)
    model = move(model, X, y)
    with pytest.raises(ValueError, match=r"moved; call conformalize\(X, y\)"):
        getattr(model, ask)(X)
    first = getattr(model.conformalize(X[80:120], y[80:120]), ask)(X, 0.9)
    assert first.shape[0] == len(X)
    with pytest.raises(ValueError, match="conformalize"):
        getattr(model.partial_fit(X[120:], y[120:]), ask)(X)


@pytest.mark.parametrize("name", OF_FIT)
def test_what_the_rows_of_fit_told_is_gone_once_the_head_has_moved(moved, name):
    assert not hasattr(moved, name)
    with pytest.raises(AttributeError, match=f"{name} is that of the head that fit"):
        getattr(moved, name)


def test_it_is_there_again_after_another_fit_or_a_new_head(moved, table, targets):
    X, _ = table
    for model in (moved.refit_head(X, targets), copy.deepcopy(moved).fit(X, targets)):
        assert all(hasattr(model, name) for name in OF_FIT)
        assert model.loo_predictions_.shape == targets.shape
    assert not hasattr(moved, "loo_score_")


def test_an_attribute_that_never_was_is_missing_in_the_usual_words(moved):
    with pytest.raises(AttributeError, match="object has no attribute 'colour_'"):
        moved.colour_  # noqa: B018
    with pytest.raises(AttributeError, match="object has no attribute 'alpha_path_'"):
        regressor().alpha_path_  # noqa: B018


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
@pytest.mark.parametrize(
    "params", [{"stream_epochs": 1}, {"forgetting": 0.99}], ids=["stale", "aged"]
)
def test_there_is_no_evidence_of_rows_that_are_not_what_they_were(table, params):
    X, y = table
    model = regressor(alpha=0.01, **EXACT).fit(X[:60], y[:60])
    assert np.isfinite(model.partial_fit(X[60:120], y[60:120]).log_evidence_)
    model.set_params(**params).partial_fit(X[120:], y[120:])
    with pytest.raises(AttributeError, match="log_evidence_ is that of the head"):
        model.log_evidence_  # noqa: B018
    assert (model.predict(X, return_std=True)[1] > 0).all()


def test_a_call_that_fails_leaves_scores_and_path(table):
    X, y = table
    model = regressor(**EXACT).fit(X[:80], y[:80], X_val=X[80:], y_val=y[80:])
    before = model.predict_interval(X), pickle.dumps(model.alpha_path_)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="overflow"):
        model.partial_fit(X[:20], y[:20], np.full(20, 1e300) * np.arange(1, 21) ** 6)
    np.testing.assert_array_equal(model.predict_interval(X), before[0])
    assert pickle.dumps(model.alpha_path_) == before[1]


# A new head -----------------------------------------------------------------------

LEARNT = ["noise_", "posterior_scale_", "effective_dof_", "log_evidence_"]


def test_a_new_head_knows_nothing_of_the_old_targets(table, targets):
    X, y = table
    model = regressor(store_loo=True, early_stopping=True, **EXACT).fit(X, y)
    before = pickle.dumps(model)
    direct = model.refit_head(X, targets)
    detour = model.refit_head(X[:50], -y[:50]).refit_head(X, targets)
    same(direct, detour, [*LEARNT, "alpha_", "loo_predictions_", "loo_score_"])
    for name, errors in direct.alpha_path_.items():
        np.testing.assert_array_equal(errors, detour.alpha_path_[name])
    np.testing.assert_array_equal(direct.leverage(X), detour.leverage(X))
    assert "held_out" in model.alpha_path_
    assert "held_out" not in direct.alpha_path_
    with pytest.raises(ValueError, match="no rows were held out"):
        direct.predict_interval(X)
    assert pickle.dumps(model) == before


def test_a_new_heads_errors_are_in_the_new_targets_units(table):
    X, y = table
    model = regressor(early_stopping=False, **EXACT).fit(X, y)
    again, large = model.refit_head(X, y), model.refit_head(X, 100 * y)
    same(again, model, LEARNT)
    close(large.noise_, 100 * model.noise_)
    errors = model.alpha_path_["leave_one_out"]
    close(large.alpha_path_["leave_one_out"], 1e4 * errors)
    close(again.alpha_path_["leave_one_out"], errors)


def test_rows_held_out_of_a_new_head_give_its_intervals(table, targets):
    X, y = table
    model = regressor(**EXACT).fit(X, y)
    new = model.refit_head(X[:100], targets[:100], X_val=X[100:], y_val=targets[100:])
    low, high = np.moveaxis(new.predict_interval(X[100:], 0.8), -1, 0)
    # These are the rows of the calibration. The interval's end is the error of the 65th
    # of them, ceil(81 * 0.8), which rounding may leave on either side.
    slack = 1e-9 * (high - low)
    inside = (low - slack <= targets[100:]) & (targets[100:] <= high + slack)
    np.testing.assert_array_equal(inside.sum(0), [65, 65])
