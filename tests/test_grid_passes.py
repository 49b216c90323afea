"""Passes over samples on a grid after the training: how many, and what they hold."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from small_models import draw
from torch import nn

from sklearn_cfll import CFLLRegressor, TorchBackbone
from sklearn_cfll import _left_out as left_out_module

N_SAMPLES, N_POINTS, N_FEATURES = 60, 40, 8


class Watched(nn.Module):
    """Notes, in each pass without gradients, how many numbers of features are alive."""

    alive, seen, most = [], 0, 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, N_FEATURES)

    def forward(self, X):
        features = self.layer(X).tanh()
        if not self.training:
            cls = type(self)
            cls.alive = [ref for ref in cls.alive if ref() is not None]
            cls.alive.append(weakref.ref(features))
            cls.seen += len(X)
            cls.most = max(cls.most, sum(ref().numel() for ref in cls.alive))
        return features


@pytest.fixture
def watched():
    """Give a class of backbones with nothing noted."""
    return type("Watched", (Watched,), {"alive": [], "seen": 0, "most": 0})


@pytest.fixture(scope="module")
def fields():
    X = draw(N_SAMPLES, N_POINTS, 3).float().numpy()
    return X, np.sin(X[..., 0]) + X[..., 1]


def fit(backbone, fields, **params):
    settings = {"max_epochs": 1, "batch_size": 20, "dtype": "float32"}
    settings |= {"early_stopping": False, "random_state": 0, **params}
    return CFLLRegressor(TorchBackbone(backbone), **settings).fit(*fields)


@pytest.fixture
def forgetful(monkeypatch):
    """Keep no features, as of many samples none are kept."""
    monkeypatch.setattr("sklearn_cfll._stream._KEPT_NUMBERS", 0)


@pytest.mark.parametrize("alpha", [1e-3, "auto"], ids=["given", "chosen"])
def test_after_the_training_the_samples_pass_once(watched, fields, alpha):
    # Two samples are tried before the training.
    fit(watched, fields, alpha=alpha)
    assert watched.seen == N_SAMPLES + 2


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("alpha", [1e-3, "auto"], ids=["given", "chosen"])
def test_many_samples_pass_twice_after_the_training(watched, fields, alpha):
    # Once for the moments of the folds and of all, once for the errors left out; and
    # two samples are tried before the training.
    fit(watched, fields, alpha=alpha)
    assert watched.seen == 2 * N_SAMPLES + 2


@pytest.mark.parametrize(("fewer", "passes"), [(0, 1), (1, 2)], ids=["all", "none"])
def test_features_are_kept_up_to_a_number_of_them(
    watched, fields, monkeypatch, fewer, passes
):
    most = N_SAMPLES * N_POINTS * N_FEATURES - fewer
    monkeypatch.setattr("sklearn_cfll._stream._KEPT_NUMBERS", most)
    fit(watched, fields)
    assert watched.seen == passes * N_SAMPLES + 2


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("held_out", [False, True], ids=["folds", "held out"])
def test_the_features_of_few_samples_are_held_at_once(
    watched, fields, monkeypatch, held_out
):
    numbers = N_POINTS * (N_FEATURES + 1)
    monkeypatch.setattr("sklearn_cfll.chunks._CHUNK_NUMBERS", 2 * numbers)
    X, y = fields
    held_out = {"X_val": X[:10], "y_val": y[:10]} if held_out else {}
    CFLLRegressor(
        TorchBackbone(watched),
        max_epochs=1,
        batch_size=2,  # which held-out samples keep, too
        early_stopping=bool(held_out),
        random_state=0,
    ).fit(X, y, **held_out)
    # A chunk of two, and the one before it, which the loop still names.
    assert 0 < watched.most <= 2 * 2 * N_POINTS * N_FEATURES
    assert watched.seen > N_SAMPLES


@pytest.mark.usefixtures("forgetful")
def test_of_many_samples_some_are_left_out_for_the_noise(watched, fields, monkeypatch):
    whole = fit(watched, fields)
    before = watched.seen
    monkeypatch.setattr(left_out_module, "_MOST_POINTS", 20 * N_POINTS)
    monkeypatch.setattr(left_out_module, "_LEAST_SAMPLES", 20)
    sampled = fit(watched, fields)
    assert watched.seen - before == N_SAMPLES + 20 + 2
    assert_array_equal(sampled.coef_, whole.coef_)
    assert sampled.noise_ != whole.noise_
    assert sampled.noise_ == pytest.approx(whole.noise_, rel=0.2)
