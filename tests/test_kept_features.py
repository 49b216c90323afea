"""After the training few rows pass once, and no result depends on it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import is_classifier
from small_models import classifier, regressor
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import nn

from sklearn_cfll import TorchBackbone


@pytest.fixture
def small_chunks(monkeypatch):
    """Pass over rows in several chunks."""
    monkeypatch.setattr("sklearn_cfll.chunks._CHUNK_NUMBERS", 1000)


def held_out_rows(X, y):
    return {"X_val": X[:40], "y_val": y[:40]}


def weights(X, y):
    return {"sample_weight": np.linspace(0.5, 2, len(X))}


def nothing(X, y):
    return {}


FITS = {
    "regression": (regressor(early_stopping=False), nothing),
    "held-out rows": (regressor(early_stopping=True), held_out_rows),
    "weights": (regressor(early_stopping=False), weights),
    "leave-one-out": (regressor(early_stopping=False, store_loo=True), nothing),
    "classes": (classifier(early_stopping=True), held_out_rows),
    "weights of classes": (classifier(early_stopping=False), weights),
}
ATTRIBUTES = ["coef_", "intercept_", "alpha_", "noise_", "loo_predictions_"]


def results(model, X):
    """Collect what a fit found, and what it predicts."""
    found = [getattr(model, name) for name in ATTRIBUTES if hasattr(model, name)]
    probabilities = getattr(model, "predict_proba", None)
    return [*found, model.predict(X), *([probabilities(X)] if probabilities else [])]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("model", "keywords"), FITS.values(), ids=FITS)
def test_kept_features_change_nothing(table, monkeypatch, model, keywords):
    X, y = table
    if is_classifier(model):
        y = np.digitize(y, [-1, 2])
    kept = results(model.set_params(max_epochs=2).fit(X, y, **keywords(X, y)), X)
    monkeypatch.setattr("sklearn_cfll._stream._KEPT_NUMBERS", 0)
    again = results(model.fit(X, y, **keywords(X, y)), X)
    assert len(kept) >= 4
    for one, other in zip(kept, again, strict=True):
        assert_array_equal(one, other)


@pytest.mark.usefixtures("small_chunks")
def test_a_head_for_new_targets_is_the_same(table, monkeypatch):
    X, y = table
    model = regressor(early_stopping=False, max_epochs=2).fit(X, y)
    kept = model.refit_head(X, y**2)
    monkeypatch.setattr("sklearn_cfll._stream._KEPT_NUMBERS", 0)
    again = model.refit_head(X, y**2)
    assert_array_equal(kept.coef_, again.coef_)
    assert kept.alpha_ == again.alpha_


class Reusing(nn.Module):
    """Writes its features of each pass without gradients into the same memory."""

    def __init__(self, n_features_in):
        super().__init__()
        self.layer = nn.Linear(n_features_in, 8)
        self.memory = None

    def forward(self, X):
        features = self.layer(X).tanh()
        if features.requires_grad:
            return features
        if self.memory is None or self.memory.dtype != features.dtype:
            self.memory = features.new_empty(1000, 8)
        self.memory[: len(X)] = features
        return self.memory[: len(X)]


class Fresh(Reusing):
    """Gives features in memory of their own."""

    def forward(self, X):
        return super().forward(X).clone()


@pytest.mark.usefixtures("small_chunks")
def test_a_backbone_may_use_its_memory_again(table):
    reused, fresh = (
        regressor(TorchBackbone(kind), early_stopping=False, max_epochs=2).fit(*table)
        for kind in (Reusing, Fresh)
    )
    assert_array_equal(reused.coef_, fresh.coef_)


def test_the_last_solve_leaves_other_threads_alone(table, monkeypatch):
    seen, solve = [], type(regressor())._solve

    def watch(self, *args):
        blas = ThreadpoolController().select(internal_api="openblas").info()
        seen.extend(library["num_threads"] for library in blas)
        return solve(self, *args)

    monkeypatch.setattr(type(regressor()), "_solve", watch)
    with threadpool_limits(2, user_api="blas"):
        regressor(max_epochs=1).fit(*table)
        after = ThreadpoolController().select(internal_api="openblas").info()
    assert seen
    assert set(seen) == {1}
    assert {library["num_threads"] for library in after} == {2}
