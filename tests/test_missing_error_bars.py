"""Error bars of outputs whose targets are not all known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from small_models import regressor

from sklearn_cfll.functional import Moments, RidgePath
from sklearn_cfll.functional.posterior import HeadPosterior, effective_dof, log_evidence


@pytest.fixture(scope="module")
def gappy(table):
    """Two outputs, a third of the second's targets and a fifth of the first's gone."""
    X, y = table
    Y = np.column_stack([y, 50 * X.sum(1)])
    missing = np.random.default_rng(3).random(Y.shape) < [0.2, 0.33]
    return X, np.where(missing, np.nan, Y)


def model_for(**params):
    settings = {"dtype": "float64", "max_epochs": 5, **params}
    return regressor(missing_targets="ignore", **settings)


def close(actual, expected, tolerance=1e-7):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def own_rows(model, X, Y, output):
    """Features and targets of the rows that have an output's target."""
    known = ~np.isnan(Y[:, output])
    return torch.tensor(model.transform(X[known])), torch.tensor(Y[known][:, [output]])


def check_posterior(model, X, Y, alpha):
    for output in range(2):
        path = RidgePath(Moments.of(*own_rows(model, X, Y, output)))
        expected = HeadPosterior.of(path, alpha).leverage(
            torch.tensor(model.transform(X))
        )
        close(np.reshape(model.leverage(X), (len(X), 2))[:, output], expected[:, 0])
        close(model.effective_dof_[output], effective_dof(path, alpha))
        noise = torch.tensor(model.noise_[output] ** 2)
        close(model.log_evidence_[output], log_evidence(path, alpha, noise)[0])


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
def test_each_output_has_the_posterior_of_its_own_rows(gappy):
    X, Y = gappy
    model = model_for(alpha=0.01, early_stopping=False).fit(X, Y)
    check_posterior(model, X, Y, 0.01)
    predictions, deviation = model.predict(X, return_std=True)
    assert deviation.shape == predictions.shape
    relative = 1 + model.posterior_scale_ * model.leverage(X)
    close(deviation, model.noise_ * np.sqrt(relative))


def test_so_it_has_after_chunks_with_gaps(gappy):
    X, Y = gappy
    model = model_for(alpha=0.01, early_stopping=False).fit(X[:90], Y[:90])
    model.partial_fit(X[90:130], Y[90:130]).partial_fit(X[130:], Y[130:])
    check_posterior(model, X, Y, 0.01)


def test_so_it_has_in_a_stream_and_the_noise_that_is_left(gappy):
    X, Y = gappy
    model = model_for(alpha=0.01, stream_epochs=0)
    model.partial_fit(X[:90], Y[:90]).partial_fit(X[90:], Y[90:])
    check_posterior(model, X, Y, 0.01)
    squares = np.nansum((Y - model.predict(X)) ** 2, axis=0)
    left = (~np.isnan(Y)).sum(0) - model.effective_dof_
    close(model.noise_, np.sqrt(squares / left))


def test_intervals_count_the_targets_that_are_known(gappy):
    X, Y = gappy
    model = model_for().fit(X[:120], Y[:120], X_val=X[120:], y_val=Y[120:])
    for one in (model, model.refit_head(X[:60], Y[:60]).conformalize(X[60:], Y[60:])):
        held_out = Y[120:] if one is model else Y[60:]
        counts = (~np.isnan(held_out)).sum(0)
        assert [scores.n_rows for scores in one._conformal.scores[0]] == counts.tolist()
        low, high = np.moveaxis(one.predict_interval(X[-len(held_out) :], 0.8), -1, 0)
        slack = 1e-9 * (high - low)
        inside = (low - slack <= held_out) & (held_out <= high + slack)
        np.testing.assert_array_equal(inside.sum(0), np.ceil((counts + 1) * 0.8 - 1e-9))


@pytest.mark.parametrize("weighted", [False, True], ids=["rows", "weights"])
def test_leave_one_out_of_each_output_leaves_out_its_own_rows(gappy, weighted):
    X, Y = gappy
    weight = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else None
    model = model_for(alpha=0.01, store_loo=True, early_stopping=False)
    model.fit(X, Y, weight)
    assert np.isfinite(model.loo_predictions_).all()
    scores = []
    for output in range(2):
        known = ~np.isnan(Y[:, output])
        own = None if weight is None else weight[known]
        predictions = model.loo_predictions_[known, output]
        scores.append(r2_score(Y[known, output], predictions, sample_weight=own))
    assert model.loo_score_ == pytest.approx(np.mean(scores))
    # A row that lacks a target has nothing to be left out.
    missing = np.isnan(Y)
    close(model.loo_predictions_[missing], model.predict(X)[missing])


def test_errors_of_the_path_are_means_over_the_known_targets(gappy):
    X, Y = gappy
    model = model_for().fit(X[:120], Y[:120], X_val=X[120:], y_val=Y[120:])
    path = model.alpha_path_
    for output in range(2):
        features, targets = own_rows(model, X[:120], Y[:120], output)
        ridge = RidgePath(Moments.of(features, targets))
        new, truth = own_rows(model, X[120:], Y[120:], output)
        for alpha, error in zip(
            path["alphas"], path["held_out"][:, output], strict=True
        ):
            weight, bias = ridge.solve(float(alpha))
            expected = (new @ weight + bias - truth).square().mean()
            close(error, expected.item(), 1e-6)


def test_few_held_out_rows_of_an_output_dont_make_its_noise(table):
    """It is that of leave-one-out where these say more, or where there are none."""
    X, y = table
    Y = np.column_stack([y, y + np.random.default_rng(0).normal(size=180)])
    gaps = Y.copy()
    gaps[120:, 1] = np.nan
    settings = {"early_stopping": False, "alpha": 0.01}
    expected = model_for(**settings).fit(X[:120], Y[:120]).noise_
    held_out = {"X_val": X[120:], "y_val": gaps[120:]}
    unknown = model_for(alpha=0.01).fit(X[:120], Y[:120], **held_out)
    close(unknown.noise_[1], expected[1], 0.1)
    # One row that happens to be predicted as it is.
    gaps[120, 1] = unknown.predict(X[120:121])[0, 1]
    held_out["y_val"] = gaps[120:]
    one = model_for(alpha=0.01).fit(X[:120], Y[:120], **held_out)
    close(one.noise_[1], expected[1], 0.1)


@pytest.mark.parametrize("held_out", [False, True], ids=["left out", "held out"])
def test_one_target_of_an_output_does_not_make_its_noise_zero(table, held_out):
    X, y = table
    Y = np.column_stack([y, y])
    Y[1:, 1] = np.nan
    model = model_for(early_stopping=False, max_epochs=1)
    validation = {"X_val": X[-30:], "y_val": Y[-30:]} if held_out else {}
    model.fit(X[:-30], Y[:-30], **validation)
    close(model.noise_[1], model._targets.scale[1])
    alone = model.refit_head(X[:-30], Y[:-30])
    close(alone.noise_[1], model._targets.scale[1])
