"""The training step, against loops written by hand in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import CFLLNet
from sklearn_cfll.batches import TensorBatches

N_ROWS, N_COLUMNS, N_FEATURES, N_OUTPUTS = 50, 4, 6, 2


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    X = random.normal(size=(N_ROWS, N_COLUMNS))
    targets = np.column_stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]])
    return X, targets, random.uniform(0.2, 3, size=N_ROWS)


def make_backbone(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(N_COLUMNS, N_FEATURES)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return nn.Sequential(layer, nn.Tanh()).to(dtype)


def make_net(backbone=None, **settings):
    defaults = {
        "n_features": N_FEATURES,
        "n_outputs": N_OUTPUTS,
        "optimizer": torch.optim.SGD,
        "lr": 0.05,
        "max_epochs": 3,
    }
    backbone = make_backbone() if backbone is None else backbone
    return CFLLNet(backbone, **{**defaults, **settings})


class Recorder(Callback):
    """Keeps what each step leaves behind."""

    def __init__(self):
        self.steps = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.steps.append(copy.deepcopy(net.module_.state_dict()))


def solve_by_hand(features, targets, weight, last, alpha, prox):
    """Solve the proximal normal equations, in one matrix with the intercept."""
    share = weight / weight.sum()
    ones = torch.ones(len(features), 1, dtype=torch.float64)
    extended = torch.cat([features, ones], 1)
    energy = (share @ extended.square().sum(1)) / extended.shape[1]
    identity = torch.eye(extended.shape[1], dtype=torch.float64)
    free = identity.clone()
    free[-1, -1] = 0
    matrix = extended.T @ (share[:, None] * extended)
    matrix = matrix + energy * (alpha * free + prox * identity)
    right = extended.T @ (share[:, None] * targets) + energy * prox * last
    return torch.linalg.solve(matrix, right)


def train_by_hand(batches, n_epochs, *, order, alpha, prox, lr, cosine):
    """Plain gradient descent on the backbone; yields each step's weights and loss."""
    backbone = make_backbone()
    head = torch.zeros(N_FEATURES + 1, N_OUTPUTS, dtype=torch.float64)
    n_steps, step = n_epochs * len(batches), 0

    def solved(X, targets, weight, pull):
        with torch.no_grad():
            features = backbone(X)
        return solve_by_hand(features, targets, weight, head, alpha, pull)

    head = solved(*batches[0], 0.1)
    for _ in range(n_epochs):
        for X, targets, weight in batches:
            start, end = prox
            pull = start * (end / start) ** (step / (n_steps - 1))
            rate = lr * (1 + math.cos(math.pi * step / n_steps)) / 2 if cosine else lr
            if order == "head_first":
                head = solved(X, targets, weight, pull)
            predictions = backbone(X) @ head[:-1] + head[-1]
            errors = (predictions - targets).square().mean(1)
            loss = (weight * errors).sum() / weight.sum()
            gradients = torch.autograd.grad(loss, list(backbone.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(
                    backbone.parameters(), gradients, strict=True
                ):
                    parameter -= rate * gradient
            if order == "backbone_first":
                head = solved(X, targets, weight, pull)
            step += 1
            yield copy.deepcopy(backbone.state_dict()), head, loss.item()


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("batch_size", "cosine", "prox"),
    [(17, False, (0.5, 0.5)), (17, True, (0.3, 30.0)), (N_ROWS, True, (1.0, 2.0))],
    ids=["constant rates", "annealed", "full batch"],
)
def test_every_step_is_the_one_written_by_hand(
    data, order, weighted, batch_size, cosine, prox
):
    X, targets, weights = data
    weights = weights if weighted else None
    batches = TensorBatches(
        X, targets, weights, batch_size=batch_size, dtype=torch.float64
    )
    recorder = Recorder()
    net = make_net(
        alpha=0.25,
        prox=prox[0] if prox[0] == prox[1] else prox,
        update_order=order,
        lr_schedule="cosine" if cosine else "constant",
        callbacks=[("recorder", recorder)],
    ).fit(batches, None)
    by_hand = train_by_hand(
        [
            (i["X"], t, i.get("sample_weight", torch.ones(len(t)).double()))
            for i, t in batches
        ],
        3,
        order=order,
        alpha=0.25,
        prox=prox,
        lr=0.05,
        cosine=cosine,
    )
    losses = []
    for state, (backbone, head, loss) in zip(recorder.steps, by_hand, strict=True):
        expected = {f"backbone.{name}": value for name, value in backbone.items()}
        expected |= {"head.weight": head[:-1], "head.bias": head[-1]}
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
        losses.append(loss)
    recorded = [row["train_loss"] for e in net.history for row in e["batches"]]
    np.testing.assert_allclose(recorded, losses, rtol=1e-9)


def test_weights_in_loss_and_solve_equal_repeated_rows(data):
    X, targets, _ = data
    counts = np.arange(N_ROWS) % 3 + 1

    def fit(*arrays):
        batches = TensorBatches(*arrays, batch_size=1000, dtype=torch.float64)
        return make_net().fit(batches, None)

    weighted = fit(X, targets, counts)
    repeated = fit(np.repeat(X, counts, axis=0), np.repeat(targets, counts, axis=0))
    for one, other in zip(
        weighted.module_.state_dict().values(),
        repeated.module_.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        weighted.history[:, "train_loss"], repeated.history[:, "train_loss"]
    )


def test_a_backbone_without_parameters_gets_a_solved_head(data):
    X, targets, _ = data
    batches = TensorBatches(X, targets, batch_size=1000, dtype=torch.float64)
    net = make_net(nn.Tanh(), n_features=4, prox=1e-6, alpha=0.0).fit(batches, None)
    extended = np.column_stack([np.tanh(X), np.ones(N_ROWS)])
    expected = np.linalg.lstsq(extended, targets, rcond=None)[0]
    np.testing.assert_allclose(net.module_.head.weight, expected[:-1], atol=1e-5)
    np.testing.assert_allclose(net.module_.head.bias, expected[-1], atol=1e-5)
