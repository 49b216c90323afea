"""Weights of any size in classifiers and streams, and streams of small chunks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification, make_friedman1
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from skorch.callbacks import LRScheduler
from small_models import classifier, regressor

from sklearn_cfll._score_factor import curvature_of, moved_factor

FROZEN = {"stream_epochs": 0}


@pytest.fixture(scope="module")
def rows():
    return make_friedman1(900, noise=0.5, random_state=0)


@pytest.fixture(scope="module")
def labelled():
    return make_classification(
        1200, 10, n_informative=5, flip_y=0.1, shuffle=True, random_state=0
    )


# Weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 / 600, 1000.5])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_classifier_doesnt_see_the_size_of_weights(labelled, size, early_stopping):
    X, y = labelled
    weight = np.random.default_rng(0).uniform(0.5, 2, 600)
    plain, sized = (
        classifier(max_epochs=3, dtype="float64", early_stopping=early_stopping).fit(
            X[:600], y[:600], sample_weight=factor * weight
        )
        for factor in (1.0, size)
    )
    assert log_loss(y[600:], plain.predict_proba(X[600:])) < 0.4
    first, second = (model.predict_proba(X[600:]) for model in (plain, sized))
    assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("size", [1 / 600, 1000.5])
@pytest.mark.parametrize("fitted", [False, True], ids=["stream", "fit"])
def test_a_stream_of_classes_doesnt_see_the_size_of_weights(labelled, size, fitted):
    X, y = labelled
    weight = np.random.default_rng(0).uniform(0.5, 2, 600)
    probabilities = []
    for factor in (1.0, size):
        model = classifier(max_epochs=3, dtype="float64", alpha=0.01, **FROZEN)
        first = {"sample_weight": factor * weight[:300]}
        if fitted:
            model.fit(X[:300], y[:300], **first)
        else:
            model.partial_fit(X[:300], y[:300], classes=[0, 1], **first)
        for start in (300, 310, 320):
            part = slice(start, start + 10)
            model.partial_fit(X[part], y[part], sample_weight=factor * weight[part])
        probabilities.append(model.predict_proba(X[600:]))
    assert_allclose(*probabilities, atol=1e-4)


def test_a_stream_of_classes_takes_integer_weights_as_repeated_rows(labelled):
    X, y = labelled
    weight = np.random.default_rng(0).integers(1, 4, 400)
    settings = {"dtype": "float64", "alpha": 0.01, **FROZEN}
    weighted = classifier(max_epochs=2, **settings)
    weighted.partial_fit(X[:300], y[:300], classes=[0, 1], sample_weight=weight[:300])
    repeated = classifier(weighted.backbone_, **settings)
    rows = np.repeat(np.arange(400), weight)
    early, late = rows[rows < 300], rows[rows >= 300]
    repeated.partial_fit(X[early], y[early], classes=[0, 1])
    assert_allclose(weighted.calibration_, repeated.calibration_, rtol=1e-3)
    weighted.partial_fit(X[300:400], y[300:400], sample_weight=weight[300:])
    repeated.partial_fit(X[late], y[late])
    assert_allclose(weighted.calibration_, repeated.calibration_, rtol=1e-3)
    assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-3)
    assert_allclose(weighted._sums.curvature, repeated._sums.curvature, rtol=1e-3)


def test_a_first_chunk_is_as_sure_whatever_the_targets_scale(labelled):
    X, y = labelled
    backbone = classifier(max_epochs=2).fit(X[:300], y[:300]).backbone_
    settings = {"dtype": "float64", "alpha": 0.01, **FROZEN}
    probabilities = [
        classifier(backbone, target_scale=scale, **settings)
        .partial_fit(X[:300], y[:300], classes=[0, 1])
        .predict_proba(X[600:])
        for scale in (1.0, 30.0)
    ]
    assert_allclose(*probabilities, atol=1e-5)


def test_held_out_weights_have_a_size_of_their_own(labelled):
    X, y = labelled
    models = [
        classifier(max_epochs=3, dtype="float64").fit(
            X[:600],
            y[:600],
            sample_weight=np.full(600, size),
            X_val=X[600:700],
            y_val=y[600:700],
        )
        for size in (1.0, 1 / 600)
    ]
    first, second = (model.predict_proba(X[700:]) for model in models)
    assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("size", [0.01, 100.0])
@pytest.mark.parametrize("alpha", ["auto", 0.01])
def test_a_stream_doesnt_see_the_size_of_all_weights(rows, size, alpha):
    X, y = rows
    models = []
    for weight in (1.0, size):
        model = regressor(alpha=alpha, **FROZEN)
        for part in (slice(0, 300), slice(300, 600)):
            model.partial_fit(X[part], y[part], sample_weight=np.full(300, weight))
        models.append(model)
    assert models[0].alpha_ == models[1].alpha_
    assert models[0].score(X[600:], y[600:]) > 0.7
    first, second = (model.predict(X[600:]) for model in models)
    assert_allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_probabilities_of_a_stream_stand_weights_of_any_size(labelled, size):
    X, y = labelled
    losses = []
    for weight in (1.0, size):
        model = classifier(max_epochs=3).partial_fit(
            X[:600], y[:600], classes=[0, 1], sample_weight=np.full(600, weight)
        )
        losses.append(log_loss(y[600:], model.predict_proba(X[600:])))
    # Weights count rows, so that many make the model somewhat surer than few.
    assert losses[0] < 0.4
    assert_allclose(losses[1], losses[0], rtol=0.1)


def test_forgetting_counts_a_chunks_rows_as_weights_by_age_do(labelled):
    X, y = labelled[0][:600], labelled[1][:600]
    classes = {"classes": [0, 1]}
    settings = {"alpha": 0.01, "dtype": "float64", **FROZEN}
    fading = classifier(forgetting=0.99, **settings)
    fading.partial_fit(X, y, **classes)
    age = np.arange(599.0, -1, -1)
    # The columns' scale, which doesn't know of forgetting, comes with the backbone.
    weighted = classifier(fading.backbone_, **settings)
    weighted.partial_fit(X, y, sample_weight=0.99**age, **classes)
    head, other = fading.net_.module_.head, weighted.net_.module_.head
    assert_allclose(head.weight, other.weight, rtol=1e-8)
    # Rows that fade count for less than one beside the row of doubt that the factor
    # has; weights that are no counts are of one in the mean.
    assert_allclose(fading.calibration_, weighted.calibration_, rtol=0.05)


@pytest.mark.parametrize("outputs", [1, 2])
def test_forgetting_goes_with_weights(rows, outputs):
    X, y = rows
    y = np.column_stack([y, X[:, 0]])[:, :outputs]
    age = np.arange(299.0, -1, -1)
    settings = {"alpha": 0.01, "dtype": "float64", **FROZEN}
    fading = regressor(forgetting=0.99, **settings)
    weight = np.random.default_rng(0).uniform(1, 2, 300)
    fading.partial_fit(X[:300], y[:300], sample_weight=weight)
    weighted = regressor(fading.backbone_, **settings)
    weighted.partial_fit(X[:300], y[:300], sample_weight=weight * 0.99**age)
    assert_allclose(fading.coef_, weighted.coef_, rtol=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("epochs", [0, 1])
def test_rows_may_lose_all_weight(rows, outputs, epochs):
    X, y = np.tile(rows[0], (9, 1)), np.tile(rows[1], 9)
    y = np.column_stack([y, X[:, 0]])[:, :outputs]
    model = regressor(
        forgetting=0.9, stream_epochs=epochs, missing_targets="ignore", max_epochs=2
    )
    assert 0.9 ** len(X) == 0
    model.partial_fit(X, y)
    if outputs > 1:
        y[:, 1] = np.nan
    model.partial_fit(X, y)
    predictions, deviation = model.predict(X, return_std=True)
    assert np.isfinite(predictions).all()
    assert np.isfinite(deviation).all()
    if epochs:
        assert model.score(X, y) > 0.5


@pytest.mark.parametrize("outputs", [1, 2])
def test_weights_need_no_decomposition_of_their_own(rows, outputs, monkeypatch):
    X, y = rows
    y = np.column_stack([y, X[:, 0]])[:, :outputs]
    model = regressor(**FROZEN, missing_targets="ignore").partial_fit(X[:300], y[:300])
    y[310, 0] = np.nan
    calls = []
    whole = torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda gram: calls.append(0) or whole(gram)
    )
    weight = np.random.default_rng(0).uniform(1, 2, 600)
    model.partial_fit(X[300:], y[300:], sample_weight=weight)
    assert len(calls) == outputs


# How sure a stream of classes is -----------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("fitted", [False, True], ids=["stream", "fit"])
def test_chunks_of_any_size_are_as_sure(labelled, size, fitted):
    X, y = labelled
    model = classifier(max_epochs=5)
    if fitted:
        model.fit(X[:300], y[:300])
    else:
        model.partial_fit(X[:300], y[:300], classes=[0, 1]).set_params(**FROZEN)
    for start in range(300, 600, size):
        rows = slice(start, min(start + size, 600))
        model.partial_fit(X[rows], y[rows])
    logits = model.decision_function(X[600:])
    losses = [
        np.logaddexp(0, np.where(y[600:] == 1, -factor, factor) * logits).mean()
        for factor in np.geomspace(0.1, 10, 41)
    ]
    assert log_loss(y[600:], model.predict_proba(X[600:])) < min(losses) + 0.01


def test_earlier_rows_move_the_factor_as_if_they_were_there(labelled):
    X, y = labelled[0], labelled[1].copy()
    y[:600:20] = 1 - y[:600:20]  # which makes the first half less sure
    scores = LogisticRegression().fit(X, y).decision_function(X)[:, None] / 3
    whole = moved_factor(1.5, 0.0, scores, y, np.ones(len(y)), bounds=(0.01, 100))
    half = slice(600)
    first = moved_factor(
        1.5, 0.0, scores[half], y[half], np.ones(600), bounds=(0.01, 100)
    )
    known = curvature_of(first, scores[half], np.ones(600))
    rest = slice(600, None)
    both = moved_factor(
        first, known, scores[rest], y[rest], np.ones(600), bounds=(0.01, 100)
    )
    assert abs(np.log(first / whole)) > 0.02
    assert abs(np.log(both / whole)) < 0.01


@pytest.mark.parametrize("forgetting", [1.0, 0.99, 0.5])
def test_rows_that_fade_say_as_much_less_of_the_factor(labelled, forgetting):
    X, y = labelled[0], labelled[1].copy()
    y[600:900:5] = 1 - y[600:900:5]  # which makes the later rows less sure
    model = classifier(max_epochs=2).partial_fit(X[:600], y[:600], classes=[0, 1])
    model.set_params(**FROZEN, forgetting=forgetting)
    factor = model.calibration_[0] * model.target_scale
    scores = model.decision_function(X[600:900])[:, None] / factor
    left = forgetting**300 * model._sums.curvature
    model.partial_fit(X[600:900], y[600:900])
    rows, ones = (scores, y[600:900], np.ones(300)), np.ones(300)
    moved = moved_factor(factor, left, *rows, bounds=(0.01, 1000))
    assert_allclose(model.calibration_[0] * model.target_scale, moved, rtol=1e-4)
    curvature = left + curvature_of(moved, scores, ones)
    assert_allclose(model._sums.curvature, curvature, rtol=1e-4)


def test_a_chunk_of_one_class_may_be_forgotten(labelled):
    X, y = labelled[0], np.zeros(1200, int)
    model = classifier(max_epochs=2).partial_fit(X[:32], y[:32], classes=[0, 1])
    before = model.calibration_
    model.forget(X[:5], y[:5])
    assert_allclose(model.calibration_, before)
    assert (model.predict(X) == 0).all()


# Small chunks -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"prox": "auto"}, {"callbacks": [LRScheduler("StepLR", step_size=99)]}],
    ids=["default", "prox", "schedule"],
)
def test_small_chunks_dont_unlearn_what_came_before(rows, size, settings):
    X, y = rows
    model = regressor(batch_size="auto", **settings).partial_fit(X[:300], y[:300])
    before = model.score(X[600:], y[600:])
    for start in range(300, 300 + 20 * size, size):
        part = slice(start, start + size)
        model.partial_fit(X[part], y[part])
    assert model.n_recoveries_ == 0
    assert model.score(X[600:], y[600:]) > before - 0.05


def test_a_chunk_of_few_rows_makes_steps_as_much_smaller(rows):
    X, y = rows
    model = regressor(prox=2.0).partial_fit(X[:300], y[:300])
    for n_rows, share in [(100, 1.0), (20, 0.2), (250, 1.0)]:
        after = copy.deepcopy(model).partial_fit(X[:n_rows], y[:n_rows])
        assert_allclose(after.history_[0, "lr"], 0.02 * share / 4)
        assert_allclose(after.net_.prox, 2 / share)
