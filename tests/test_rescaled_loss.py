"""The classifier's rescaled square loss: targets' scale M, true class's weight k."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from refusals import assert_refused
from sklearn.datasets import load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from small_models import classifier
from torch import nn

from sklearn_cfll import KalmanUpdate
from sklearn_cfll._final import ALPHA_PATH
from sklearn_cfll.functional import solve_ridge
from sklearn_cfll.losses import SquaredLoss, TrueClassWeight


@pytest.fixture(scope="module")
def wine():
    """Three classes on three standardised columns, a fifth of the labels wrong."""
    X, y = load_wine(return_X_y=True)
    X = X[:, [0, 9, 10]]
    wrong = np.random.default_rng(0).random(len(y)) < 0.2
    return (X - X.mean(0)) / X.std(0), np.where(wrong, (y + 1) % 3, y)


def split(table, every=3):
    """Keep every third row apart."""
    X, y = table
    apart = np.arange(len(y)) % every == 0
    return (X[~apart], y[~apart]), (X[apart], y[apart])


def one_hot(y):
    return torch.from_numpy(np.where(y[:, None] == np.arange(3), 1.0, -1.0))


# The scale of the targets ----------------------------------------------------------


@pytest.mark.parametrize("scale", [8.0, 0.3], ids=["a power of two", "any"])
@pytest.mark.parametrize("weight", [1.0, 3.0], ids=["k=1", "k=3"])
def test_a_scale_scales_the_scores_and_leaves_the_probabilities(wine, scale, weight):
    train, (X, y) = split(wine)
    fitted = [
        classifier(
            target_scale=each,
            true_class_weight=weight,
            n_iter_no_change=2,
            max_epochs=30,
            optimizer_params={"eps": 1e-8 * each**2},
        ).fit(*train, X_val=X, y_val=y)
        for each in (1.0, scale)
    ]
    assert fitted[0].n_iter_ == fitted[1].n_iter_ < 30
    logits, probabilities = (
        [getattr(model, method)(X) for model in fitted]
        for method in ("decision_function", "predict_proba")
    )
    # Powers of two do not round at all.
    tolerance = 0 if scale == 8.0 else 1e-6
    assert_allclose(logits[1], logits[0], rtol=tolerance, atol=tolerance)
    scores = [model.net_.predict_proba(X) for model in fitted]
    assert_allclose(scores[1], scale * scores[0], rtol=tolerance, atol=tolerance)
    assert_allclose(probabilities[1], probabilities[0], rtol=tolerance)
    assert_allclose(
        fitted[1].calibration_ * [scale, 1.0], fitted[0].calibration_, rtol=tolerance
    )
    assert fitted[0].alpha_ == fitted[1].alpha_


@pytest.mark.parametrize("early_stopping", [True, False])
def test_gradient_descent_at_a_rate_over_the_scales_square_is_the_same(
    wine, early_stopping
):
    settings = {"optimizer": "sgd", "early_stopping": early_stopping}
    plain = classifier(lr=0.1, **settings).fit(*wine)
    scaled = classifier(lr=0.1 / 16, target_scale=4.0, **settings).fit(*wine)
    assert_array_equal(scaled.predict_proba(wine[0]), plain.predict_proba(wine[0]))
    unlike = classifier(lr=0.1, target_scale=4.0, **settings).fit(*wine)
    assert np.abs(
        unlike.predict_proba(wine[0]) - plain.predict_proba(wine[0])
    ).max() > (1e-3)


def test_scores_are_near_the_scale_where_the_class_is_sure(wine):
    X, _ = wine
    sure = X[:, 0] > 0  # a column that tells two classes
    model = classifier(target_scale=30.0).fit(np.c_[X, 2.0 * sure - 1], sure)
    scores = model.net_.predict_proba(np.c_[X, 2.0 * sure - 1])[:, 0]
    assert_allclose(scores, np.where(sure, 30, -30), atol=9)
    plain = classifier().fit(np.c_[X, 2.0 * sure - 1], sure)
    losses = [m.history_[0, "train_loss"] for m in (model, plain)]
    assert losses[0] == pytest.approx(30**2 * losses[1], rel=0.01)


def test_a_warm_start_takes_a_new_scale(wine):
    model = classifier(nn.Identity(), alpha=0.1, warm_start=True).fit(*wine)
    weight = model.net_.module_.head.weight
    model.set_params(target_scale=2.0).fit(*wine)
    assert_allclose(model.net_.module_.head.weight, 2 * weight, rtol=1e-9)


# The weight of the true class ------------------------------------------------------


def test_a_larger_weight_raises_the_score_of_the_true_class(wine):
    X, y = wine
    scores = [
        np.take_along_axis(
            classifier(true_class_weight=weight).fit(X, y).net_.predict_proba(X),
            y[:, None],
            axis=1,
        ).mean()
        for weight in (0.2, 1.0, 5.0, 15.0)
    ]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 0.2


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("held_out", [False, True], ids=["leave one out", "held out"])
def test_the_last_head_is_the_weighted_ridge_of_the_best_alpha(
    wine, weighted, held_out
):
    (X, y), (X_val, y_val) = split(wine)
    weight = np.random.default_rng(1).uniform(0.5, 1, len(y)) if weighted else None
    extra = {"X_val": X_val, "y_val": y_val} if held_out else {}
    model = classifier(
        nn.Identity(), true_class_weight=3.0, early_stopping=False, max_epochs=1
    ).fit(X, y, weight, **extra)
    samples = torch.ones(len(y)) if weight is None else torch.from_numpy(weight)
    features, targets = torch.from_numpy(X), one_hot(y)
    weights = TrueClassWeight(3.0)(targets, samples.double())

    head, bias = solve_ridge(features, targets, model.alpha_, weights)
    solved = model.net_.module_.head
    assert_allclose(solved.weight, head, rtol=1e-8)
    assert_allclose(solved.bias, bias, rtol=1e-8)

    def error(alpha):
        if held_out:
            head, bias = solve_ridge(features, targets, alpha, weights)
            predictions = torch.from_numpy(X_val) @ head + bias
            truth = one_hot(y_val)
            return SquaredLoss()(predictions, truth, TrueClassWeight(3.0)(truth)).item()
        predictions = [
            left_out(features, targets, weights, alpha, i) for i in range(len(y))
        ]
        return SquaredLoss()(torch.stack(predictions), targets, weights).item()

    errors = [error(alpha) for alpha in ALPHA_PATH]
    good = np.array(errors) <= min(errors) * (1 + 1e-3) + 1e-6
    assert model.alpha_ == ALPHA_PATH[np.flatnonzero(good)[-1]]


def left_out(features, targets, weights, alpha, row):
    """Predict a row by a refit without it, at the penalty of all rows."""
    kept = torch.arange(len(features)) != row
    share = weights.sum(0) / weights[kept].sum(0)
    energy = [(w @ (features.square().sum(1) + 1)) / w.sum() for w in weights.unbind(1)]
    kept_energy = [
        (w @ (features[kept].square().sum(1) + 1)) / w.sum()
        for w in weights[kept].unbind(1)
    ]
    held = alpha * share * torch.stack(energy) / torch.stack(kept_energy)
    head, bias = solve_ridge(features[kept], targets[kept], held, weights[kept])
    return features[row] @ head + bias


@pytest.mark.parametrize("alpha", ["auto", 0.01])
@pytest.mark.parametrize("class_weight", [None, {0: 2.0, 2: 3.0}], ids=["", "classes"])
def test_integer_weights_equal_repeated_rows(wine, alpha, class_weight):
    X, y = wine[0][::6], wine[1][::6]
    counts = np.arange(len(y)) % 4
    settings = {"true_class_weight": 3.0, "alpha": alpha, "class_weight": class_weight}
    weighted = classifier(**settings).fit(X, y, counts)
    rows = np.repeat(np.arange(len(y)), counts)
    repeated = classifier(**settings).fit(X[rows], y[rows])
    assert weighted.net_.batch_size < len(rows) == repeated.net_.batch_size
    assert weighted.alpha_ == repeated.alpha_
    assert_allclose(
        weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6, atol=1e-9
    )


def test_the_calibration_counts_rows_and_not_outputs(wine):
    train, (X, y) = split(wine)
    weight = np.linspace(0.1, 3, len(y))
    model = classifier(true_class_weight=15.0)
    model.fit(*train, X_val=X, y_val=y, sample_weight_val=weight)
    scores = model.decision_function(X)

    def loss(factor):
        logits = torch.from_numpy(scores) / factor
        return log_loss(y, logits.softmax(1), sample_weight=weight)

    # Within the pull of the one row that has every label alike.
    assert loss(1.0) < min(loss(0.9), loss(1.1)) + 1e-4
    assert loss(1.0) < min(loss(0.5), loss(2.0))


def test_two_classes_share_an_output_that_is_true_for_either(wine):
    X, y = wine[0], wine[1] == 1
    plain = classifier().fit(X, y)
    weighted = classifier(
        true_class_weight=7.0, net_params={"head_update": KalmanUpdate()}
    )
    assert weighted.fit(X, y).net_.output_weight is None
    weighted.set_params(net_params=None).fit(X, y)
    assert_array_equal(weighted.predict_proba(X), plain.predict_proba(X))


def test_a_weight_of_one_leaves_the_weights_of_the_rows_as_they_are(wine):
    net = classifier().fit(*wine).net_
    weight = torch.ones(5)
    assert net.output_weight is None
    assert net.row_weights(torch.ones(5, 3), weight) is weight
    assert net.row_weights(torch.ones(5, 3), None) is None


@pytest.mark.parametrize(
    "params",
    [
        {"prox": "auto"},
        {"update_order": "backbone_first"},
        {"prox": 0.0, "batch_size": "full", "optimizer": "lbfgs"},
        {"dtype": "float32", "alpha": [0.01, 0.1, 1.0]},
    ],
    ids=["learnt pull", "backbone first", "variable projection", "alpha per output"],
)
def test_it_goes_with_the_other_parameters(wine, params):
    X, y = wine
    plain, weighted = (
        classifier(true_class_weight=weight, **params).fit(X, y)
        for weight in (1.0, 3.0)
    )
    chances = [model.predict_proba(X) for model in (plain, weighted)]
    assert np.abs(chances[0] - chances[1]).max() > 1e-3
    assert weighted.score(X, y) > 0.5  # by chance a third; a fifth of the labels lie


def test_an_update_with_one_factor_for_all_outputs_is_refused(wine):
    model = classifier(
        true_class_weight=2.0, net_params={"head_update": KalmanUpdate()}
    )
    with pytest.raises(
        ValueError, match=r"^KalmanUpdate has one factor.+set true_class"
    ):
        model.fit(*wine)


def test_the_net_takes_the_same_weights(wine):
    X, y = wine
    own = classifier(true_class_weight=3.0).fit(X, y)
    weights = {"output_weight": TrueClassWeight(3.0)}
    given = classifier(net_params=weights).fit(X, y)
    assert_array_equal(given.predict_proba(X), own.predict_proba(X))


# Both ------------------------------------------------------------------------------


def test_both_are_searched_and_survive_a_pickle(wine):
    grid = {"target_scale": [1.0, 5.0], "true_class_weight": [1.0, 4.0]}
    search = GridSearchCV(
        classifier(max_epochs=3), grid, scoring="neg_log_loss", cv=3
    ).fit(*wine)
    results = search.cv_results_
    losses = dict(
        zip(
            [tuple(params.values()) for params in results["params"]],
            results["mean_test_score"],
            strict=True,
        )
    )
    assert len(losses) == 4
    assert abs(losses[1.0, 1.0] - losses[1.0, 4.0]) > 1e-3
    best = search.best_estimator_
    copy = pickle.loads(pickle.dumps(best))
    assert_array_equal(copy.predict_proba(wine[0]), best.predict_proba(wine[0]))


@pytest.mark.parametrize("name", ["target_scale", "true_class_weight"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "large"])
def test_values_that_are_not_positive_are_refused(name, value):
    message = (
        rf"The '{name}' parameter of CFLLClassifier must be a float in the range "
        rf"\(0\.0, inf\)\. Got {value!r} instead\."
    )
    assert_refused(classifier, {name: value}, {}, ValueError, message)
