"""Backbones in half precision, and autocast: what comes out is in float32 at least."""

import numpy as np
import pytest
import torch
from small_models import classifier, draw, regressor
from torch import nn

from sklearn_cfll import CFLLNet, ClosedFormHead

HALF = [torch.bfloat16, torch.float16]

X = draw(300, 4).numpy()
Y = np.sin(X[:, 0]) + X[:, 1]


class InHalf(nn.Module):
    """A network that computes under autocast, and may cast what it gives."""

    def __init__(self, dtype, *, cast=False):
        super().__init__()
        self.dtype, self.cast = dtype, cast
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh())

    def forward(self, X):
        with torch.autocast("cpu", dtype=self.dtype):
            features = self.layers(X)
        return features.float() if self.cast else features


@pytest.fixture(params=HALF, ids=str)
def half(request):
    return request.param


def test_predictions_are_those_of_a_backbone_that_casts_by_itself(half):
    given, cast = (
        regressor(InHalf(half, cast=cast), max_epochs=3, dtype="float32").fit(X, Y)
        for cast in (False, True)
    )
    np.testing.assert_array_equal(given.predict(X), cast.predict(X))
    np.testing.assert_array_equal(given.transform(X), cast.transform(X))
    by_hand = given.transform(X) @ given.coef_ + given.intercept_
    np.testing.assert_allclose(given.predict(X), by_hand, rtol=1e-5, atol=1e-5)
    assert given.score(X, Y) > 0.8


def test_a_classifier_has_probabilities(half):
    labels = Y > 0
    model = classifier(InHalf(half), max_epochs=3, early_stopping=True).fit(X, labels)
    logits = model.transform(X) @ model.coef_[0] + model.intercept_
    np.testing.assert_allclose(model.decision_function(X), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    assert model.score(X, labels) > 0.9


def test_a_net_takes_a_module_in_half_precision():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh()).bfloat16()
    net = CFLLNet(layers, n_features=16, n_outputs=1, max_epochs=3, batch_size=50)
    predictions = net.fit(X, Y).predict(X)
    assert predictions.dtype == np.float32
    assert ((predictions[:, 0] - Y) ** 2).mean() < 0.3 * Y.var()


def test_the_head_answers_in_float32(half):
    head = ClosedFormHead(4, 2)
    features = draw(9, 4).to(half)
    head.update_(features, draw(9, 2, seed=1), alpha=0.1, prox=0.1)
    predictions = head(features)
    assert predictions.dtype == torch.float32
    torch.testing.assert_close(predictions, head(features.float()), rtol=0, atol=0)


def test_a_solve_under_autocast_is_as_precise_as_without():
    features, targets = draw(2100, 64).float(), draw(2100, 2, seed=1)
    features[:, 1:] = features[:, :1] + 0.1 * features[:, 1:]  # a high condition
    alpha = torch.tensor([0.0])  # which the solve by LAPACK itself doesn't take
    heads = [ClosedFormHead(64, 2) for _ in range(2)]
    heads[0].update_(features, targets, alpha=alpha, prox=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        heads[1].update_(features, targets, alpha=alpha, prox=0.1)
        assert heads[1](features).dtype == torch.float32
    torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-5, atol=1e-7)


def test_a_net_is_not_trained_under_autocast():
    layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
    net = CFLLNet(layers, n_features=16, n_outputs=1, max_epochs=3, batch_size=50)
    message = r"^training can't be inside of torch\.autocast, .* backbone's forward\.$"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=message),
    ):
        net.fit(X, Y)
