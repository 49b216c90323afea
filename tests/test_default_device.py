"""Torch's default device has no part in a fit: all is where the estimator has it."""

import numpy as np
import pytest
import torch
from small_models import draw, small_network
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLNet, CFLLRegressor

X = draw(300, 4).numpy()
Y = np.sin(X[:, 0]) + X[:, 1]


@pytest.fixture
def elsewhere():
    """Make all tensors that are made without a device tensors without numbers."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


SETTINGS = {
    "held out": {},
    "leave-one-out": {"early_stopping": False},
    "full batch": {"batch_size": "full", "prox": 0},
    "prox is learnt": {"prox": "auto"},
}


@pytest.mark.parametrize("params", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [CFLLRegressor, CFLLClassifier])
def test_estimators_fit_and_predict(kind, params):
    y = Y if kind is CFLLRegressor else np.digitize(Y, [-0.5, 0.5])
    settings = {"device": "cpu", "max_epochs": 3, "random_state": 0, **params}
    expected = kind(small_network(), **settings).fit(X, y)
    backbone = small_network()
    torch.set_default_device("meta")
    try:
        model = kind(backbone, **settings).fit(X, y)
        predictions = model.predict(X)
        score = model.partial_fit(X, y).score(X, y)
    finally:
        torch.set_default_device(None)
    np.testing.assert_array_equal(predictions, expected.predict(X))
    assert score == expected.partial_fit(X, y).score(X, y)


def test_what_a_regressor_gives_besides(elsewhere):
    with torch.device("cpu"):
        backbone = small_network()
    model = CFLLRegressor(backbone, device="cpu", max_epochs=3, random_state=0)
    model.fit(X, Y)
    assert np.isfinite(model.predict(X, return_std=True)[1]).all()
    assert model.predict_interval(X).shape == (len(X), 2)
    assert model.sample_y(X, n_samples=2).shape == (len(X), 2)
    assert model.conformalize(X, Y).score(X, Y) > 0.5
    assert model.refit_head(X, -Y).score(X, -Y) > 0.5
    assert model.forget(X[:9], Y[:9]).score(X, Y) > 0.5


def test_a_net_trains_where_its_network_is():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    net = CFLLNet(layers, n_features=8, n_outputs=1, max_epochs=3).initialize()
    torch.set_default_device("meta")
    try:
        predictions = net.partial_fit(X, Y).predict(X)[:, 0]
    finally:
        torch.set_default_device(None)
    assert ((predictions - Y) ** 2).mean() < 0.3 * Y.var()
