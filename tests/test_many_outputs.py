"""Many outputs: their errors from few, and one factorisation for all of them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from numpy.testing import assert_allclose
from small_models import draw, regressor
from torch import nn

from sklearn_cfll import CFLLNet, ClosedFormHead
from sklearn_cfll._final import ALPHA_PATH, leave_one_out, leave_one_out_errors
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional import Moments, PathErrors, RidgePath, proximal_update
from sklearn_cfll.functional.paths import moments_of, path_of
from sklearn_cfll.losses import TrueClassWeight
from sklearn_cfll.network import Network

N_FEATURES, N_OUTPUTS = 6, 40


def path_and_rows(n_rows, n_outputs=N_OUTPUTS):
    features = draw(n_rows, N_FEATURES) * 3 + 1
    targets = draw(n_rows, n_outputs, seed=1) + features[:, :1].sin() + 5
    weight = draw(n_rows, seed=2).exp()
    return RidgePath(Moments.of(features, targets, weight)), features, targets, weight


@pytest.mark.parametrize("pooled", [False, True], ids=["each", "pooled"])
@pytest.mark.parametrize("n_outputs", [3, N_OUTPUTS])
@pytest.mark.parametrize("n_rows", [4, 50], ids=["interpolated", "not"])
def test_errors_are_those_of_the_heads_predictions(n_rows, n_outputs, pooled):
    path, features, targets, _ = path_and_rows(n_rows, n_outputs)
    errors = PathErrors(path, pooled=pooled)
    assert (errors.basis is not None) == (pooled and n_outputs == N_OUTPUTS)
    squares = list(errors.squares(path.project(features), targets, ALPHA_PATH))
    assert len(squares) == len(ALPHA_PATH)
    for alpha, square in zip(ALPHA_PATH, squares, strict=True):
        weight, bias = path.solve(alpha)
        expected = (features @ weight + bias - targets).square()
        if pooled:
            expected = expected.mean(1, keepdim=True)
        # Residuals of 1e-7, where the rows are interpolated, have eight digits.
        assert_allclose(square, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("pooled", [False, True], ids=["each", "pooled"])
@pytest.mark.parametrize("n_outputs", [2, N_OUTPUTS])
@pytest.mark.parametrize("n_alphas", [1, 2, 17])
def test_rows_need_not_be_projected_for_their_errors(n_alphas, n_outputs, pooled):
    path, features, targets, _ = path_and_rows(50, n_outputs)
    errors, alphas = PathErrors(path, pooled=pooled), ALPHA_PATH[-n_alphas:]
    projections = []

    def project(rows):
        projections.append(rows)
        return path.project(rows)

    errors.path = copy.copy(errors.path)
    errors.path.project = project
    squares = list(errors.squares_of_rows(features, targets, alphas))
    # There are fewer columns than features, in the basis that the outputs share, too.
    columns = n_alphas * min(n_outputs, N_FEATURES if pooled else n_outputs)
    assert bool(projections) == (columns >= N_FEATURES)
    by_projection = errors.squares(path.project(features), targets, alphas)
    for square, expected in zip(squares, by_projection, strict=True):
        assert_allclose(square, expected, rtol=1e-10, atol=0)


def many_outputs(n_rows, weighted, output_weight):
    """Give X as features: the net, the path over its rows, and the rows."""
    _, features, targets, weight = path_and_rows(n_rows)
    network = Network(nn.Identity(), ClosedFormHead(N_FEATURES, N_OUTPUTS))
    sizes = {"n_features": N_FEATURES, "n_outputs": N_OUTPUTS}
    net = CFLLNet(network, output_weight=output_weight, **sizes).initialize()
    weight = weight if weighted else None
    path = path_of(moments_of(features, targets, net.row_weights(targets, weight)))
    batches = TensorBatches(features, targets, weight, dtype=torch.float64)
    return net, path, SimpleNamespace(batches=batches, removed=0.5)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n_rows", [8, 50], ids=["nearly interpolated", "not"])
@pytest.mark.parametrize(
    "output_weight", [None, TrueClassWeight(3.0)], ids=["shared", "by output"]
)
def test_leave_one_out_errors_are_those_of_the_predictions(
    n_rows, weighted, output_weight
):
    rows = many_outputs(n_rows, weighted, output_weight)
    each, pooled = (
        leave_one_out_errors(*rows, ALPHA_PATH, pooled) for pooled in (False, True)
    )
    for i, alpha in enumerate(ALPHA_PATH):
        ((_, targets, predictions, weight),) = leave_one_out(*rows, [alpha])
        weight = weight[:, None]
        if output_weight is not None:
            weight = output_weight(targets, weight[:, 0])
        square = weight * (predictions - targets).square()
        expected = square.sum(0) / weight.sum(0).mean()
        assert_allclose(each[i], expected, rtol=1e-8)
        assert_allclose(pooled[i].mean(), expected.mean(), rtol=1e-8)


# One factorisation --------------------------------------------------------------


@pytest.fixture
def factorisations(monkeypatch):
    """Names of the factorisations that are called, in order."""
    called = []

    def counted(name):
        original = getattr(torch.linalg, name)

        def count(*args, **kwargs):
            called.append(name)
            return original(*args, **kwargs)

        return count

    for name in ("eigh", "cholesky", "cholesky_ex", "solve", "lstsq", "qr", "svd"):
        monkeypatch.setattr(torch.linalg, name, counted(name))
    return called


def test_an_alpha_an_output_takes_one_factorisation_an_update(factorisations):
    n_outputs = 3000
    alphas = torch.logspace(-4, 1, n_outputs, dtype=torch.float64)
    features, targets = draw(20, N_FEATURES), draw(20, n_outputs, seed=1)
    last = draw(N_FEATURES, n_outputs, seed=2), draw(n_outputs, seed=3)
    head = proximal_update(features, targets, *last, alpha=alphas, prox=0.5)
    assert factorisations == ["eigh"]
    for i in (0, 1234, n_outputs - 1):
        one = proximal_update(
            features,
            targets[:, [i]],
            last[0][:, [i]],
            last[1][[i]],
            alpha=float(alphas[i]),
            prox=0.5,
        )
        assert_allclose(head.weight[:, i], one.weight[:, 0], rtol=1e-9)
        assert_allclose(head.bias[i], one.bias[0], rtol=1e-9)


def test_an_alpha_an_output_takes_one_factorisation_in_the_end(factorisations):
    alphas = torch.logspace(-4, 1, 2000, dtype=torch.float64)
    features, targets = draw(20, N_FEATURES), draw(20, 2000, seed=1)
    path = RidgePath(Moments.of(features, targets))
    weight, _ = path.solve(alphas)
    assert factorisations == ["eigh"]
    for i in (0, 1999):
        assert_allclose(weight[:, i], path.solve(float(alphas[i]))[0][:, i], rtol=1e-12)


def test_a_fit_takes_one_factorisation_a_step_and_one_in_the_end(factorisations):
    X, Y = draw(60, 4).numpy(), draw(60, 2000, seed=1).numpy()
    alpha = torch.logspace(-3, 0, 2000).numpy()
    # The first head is one more.
    regressor(alpha=alpha, batch_size=20, max_epochs=2).fit(X, Y)
    assert factorisations == ["eigh"] * (1 + 6 + 1)
