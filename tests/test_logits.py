"""Logits: a logistic head on the features, blended with the solved one."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from small_models import classifier
from torch import nn

from sklearn_cfll import _logits as logits_module
from sklearn_cfll._logits import (
    ClassRows,
    PenalisedLogLoss,
    fit_blend,
    fit_logistic,
)

# Fitting ---------------------------------------------------------------------------


def rows_of(X, y, weight=None):
    weight = np.ones(len(y)) if weight is None else weight
    return ClassRows(*map(torch.as_tensor, (X, y, weight)))


@pytest.fixture(params=[2, 3], ids=["two classes", "three classes"])
def noisy(request):
    """Features that tell the classes roughly, far from zero, and weights."""
    rng = np.random.default_rng(0)
    y = rng.integers(request.param, size=300)
    X = rng.standard_normal((300, 6)) + np.eye(6)[y] + 5
    return X, y, rng.integers(1, 4, 300).astype(float)


def test_the_logistic_head_is_scikit_learns(noisy):
    X, y, weight = noisy
    n_outputs = 1 if y.max() == 1 else 3
    # Rows that say nothing: the first ridge, which is the largest, is the best.
    unseen = rows_of(np.random.default_rng(1).permutation(X), y)
    logits = fit_logistic(rows_of(X, y, weight), unseen, n_outputs)
    mean = np.average(X, axis=0, weights=weight)
    ridge = 2 * 0.3 * ((X - mean) ** 2).mean() * weight.sum()
    # One column of logits stands for two of half its size each: half the penalty.
    peer = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=1000)
    peer.fit(X - mean, y, weight)
    assert_allclose(logits.weight, peer.coef_.T, atol=1e-4)
    intercept = logits.bias.numpy() + mean @ logits.weight.numpy()
    assert_allclose(intercept, peer.intercept_, rtol=1e-3)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_penalised_loss_and_its_gradient_are_those_of_autograd(n_outputs):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    label = torch.arange(40) % max(2, n_outputs)
    weight = torch.rand(40, generator=generator, dtype=torch.float64)
    head = 300 * torch.randn(n_outputs, 6, generator=generator, dtype=torch.float64)
    rows = ClassRows(features, label, weight)
    loss, gradient = PenalisedLogLoss(rows, n_outputs)(head.numpy().ravel(), 0.1)

    head.requires_grad_()
    logits = features @ head[:, :-1].T + head[:, -1]
    if n_outputs == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    losses = nn.functional.cross_entropy(logits, label, reduction="none")
    expected = losses @ weight / weight.sum() + 0.1 * head[:, :-1].square().sum()
    expected.backward()
    assert_allclose(loss, expected.item(), rtol=1e-12)
    assert_allclose(gradient, head.grad.numpy().ravel(), rtol=1e-9, atol=1e-12)


def test_held_out_rows_choose_the_ridge(noisy):
    X, y, _ = noisy
    n_outputs = 1 if y.max() == 1 else 3
    sure = fit_logistic(rows_of(X, y), rows_of(X, y), n_outputs)
    unsure = fit_logistic(rows_of(X, y), rows_of(X, np.roll(y, 1)), n_outputs)
    assert sure.weight.norm() > 2 * unsure.weight.norm()


def test_integer_weights_equal_repeated_rows(noisy):
    X, y, weight = noisy
    repeated = np.repeat(np.arange(len(y)), weight.astype(int))
    n_outputs = 1 if y.max() == 1 else 3
    heads = [
        fit_logistic(rows, rows, n_outputs)
        for rows in (rows_of(X, y, weight), rows_of(X[repeated], y[repeated]))
    ]
    # The penalty's unit is the mean square of the rows as they are given.
    assert_allclose(heads[0].weight, heads[1].weight, rtol=0.05, atol=0.01)
    parts = [head.of(torch.from_numpy(X)) for head in heads]
    both = np.stack(parts)
    assert_allclose(
        fit_blend(parts[:1], y, weight),
        fit_blend([both[0][repeated]], y[repeated], np.ones(len(repeated))),
        rtol=1e-6,
    )


def test_the_blend_has_the_least_log_loss_of_all_on_a_grid(noisy):
    _, y, weight = noisy
    rng = np.random.default_rng(2)
    n_outputs = 1 if y.max() == 1 else 3
    truth = (2.0 * y[:, None] - 1) if n_outputs == 1 else np.eye(3)[y]
    parts = [truth + 2 * rng.standard_normal((300, n_outputs)) for _ in range(2)]
    blend = fit_blend(parts, y, weight)

    def loss(a, b):
        logits = a * parts[0] + b * parts[1]
        if n_outputs == 1:
            logits = np.hstack([0 * logits, logits])
        given = log_loss(y, softmax(logits, axis=1), sample_weight=weight)
        each = -np.log(softmax(logits, axis=1)).mean(1)  # a row of every label
        total = weight.sum()
        return (total * given + np.average(each, weights=weight)) / (total + 1)

    grid = np.linspace(0, 3, 31)
    assert loss(*blend) <= min(loss(a, b) for a in grid for b in grid)
    assert (blend > 0).all()


def test_a_part_that_says_the_opposite_is_left_out():
    y = np.arange(60) % 2
    good = np.where(y == 1, 1.0, -1.0)[:, None] + np.linspace(-2, 2, 60)[:, None]
    blend = fit_blend([good, -good], y, np.ones(60))
    assert blend[0] > 0
    assert blend[1] == 0


def test_a_single_part_that_says_the_opposite_keeps_a_little_weight():
    y = np.arange(60) % 2
    (factor,) = fit_blend([np.where(y == 1, -1.0, 1.0)[:, None]], y, np.ones(60))
    assert factor == 0.01


def test_few_rows_that_are_all_right_leave_the_blend_finite():
    y = np.array([0, 1, 1])
    blend = fit_blend([np.where(y == 1, 1.0, -1.0)[:, None]], y, np.ones(3))
    assert 1 < blend[0] < 10


# In the estimator -----------------------------------------------------------------


@pytest.fixture(scope="module", params=["two classes", "ten classes"])
def split(request):
    load = load_breast_cancer if request.param == "two classes" else load_digits
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return train_test_split(X, y, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def fitted(split):
    return classifier().fit(split[0], split[2])


def test_probabilities_and_classes_are_those_of_the_logits(fitted, split):
    X = split[1]
    logits = fitted.decision_function(X)
    by_hand = fitted.transform(X) @ fitted.coef_.T + fitted.intercept_
    assert_allclose(logits, by_hand.reshape(logits.shape), atol=1e-5)
    probabilities = fitted.predict_proba(X)
    if logits.ndim == 1:
        assert_allclose(probabilities[:, 1], expit(logits))
    else:
        assert_allclose(probabilities, softmax(logits, axis=1))
    assert_array_equal(fitted.predict(X), fitted.classes_[probabilities.argmax(1)])


def test_coefficients_that_are_read_only_predict_as_well(fitted, split):
    expected = fitted.predict_proba(split[1])
    frozen = copy.copy(fitted)
    for name in ("coef_", "intercept_"):
        setattr(frozen, name, getattr(fitted, name).copy())
        getattr(frozen, name).flags.writeable = False
    assert_array_equal(frozen.predict_proba(split[1]), expected)


def test_logits_are_the_solved_heads_scores_and_the_logistic_heads(fitted):
    solved = fitted.net_.module_.head
    share, logistic = fitted.calibration_
    assert share >= 0
    rest = fitted.coef_ - share * solved.weight.double().numpy().T
    assert (logistic > 0) == (np.abs(rest).max() > 1e-12)


def test_without_held_out_rows_the_logits_are_scaled_scores(split):
    X, X_test, y, _ = split
    model = classifier(early_stopping=False).fit(X, y)
    share, logistic = model.calibration_
    assert logistic == 0
    assert_allclose(
        model.decision_function(X_test).reshape(len(X_test), -1),
        share * model.net_.predict_proba(X_test),
        rtol=1e-4,
        atol=1e-5,
    )


def test_classes_that_follow_a_logistic_law_get_its_probabilities():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((4000, 4))
    law = X @ rng.standard_normal((4, 5)) * 1.5 + [2.0, 1.0, 0.0, -1.0, -2.0]
    y = (law + rng.gumbel(size=law.shape)).argmax(1)
    train, test = slice(2000), slice(2000, None)
    model = classifier(nn.Identity(), max_epochs=1).fit(X[train], y[train])
    assert model.calibration_[1] > 0
    scores = model.net_.predict_proba(X[test].astype(np.float32))
    scaled = [softmax(factor * scores, axis=1) for factor in np.linspace(0.5, 8, 31)]
    best = min(log_loss(y[test], each) for each in scaled)  # by the test rows even
    least = log_loss(y[test], softmax(law[test], axis=1))
    found = log_loss(y[test], model.predict_proba(X[test]))
    assert found - least < 0.2 * (best - least)


def test_log_loss_can_be_watched_from_the_first_fit_on(split):
    X, X_test, y, y_test = split
    model = classifier(nn.Identity(), scoring="neg_log_loss", max_epochs=3)
    model.fit(X, y, X_val=X_test, y_val=y_test)
    scores = model.history_[:, "valid_score"]
    assert all(-np.log(len(model.classes_)) < score < 0 for score in scores)
    # The head is solved once more, and the logits are calibrated.
    assert -log_loss(y_test, model.predict_proba(X_test)) > max(scores)


def test_many_classes_are_blended_by_fewer_held_out_rows(monkeypatch):
    seen = []
    whole = logits_module.fit_blend

    def watching(parts, index, weight):
        seen.append(len(index))
        return whole(parts, index, weight)

    monkeypatch.setattr(logits_module, "fit_blend", watching)
    X, y = load_digits(return_X_y=True)
    rows = {"X_val": X[900:1400], "y_val": y[900:1400]}
    for logits, least in ((2**22, 1), (10 * 200, 1), (10 * 200, 300)):
        monkeypatch.setattr(logits_module, "_MOST_HELD_OUT_LOGITS", logits)
        monkeypatch.setattr(logits_module, "_LEAST_HELD_OUT_ROWS", least)
        classifier(max_epochs=1).fit(X[:900], y[:900], **rows)
    assert seen == [500, 200, 300]
