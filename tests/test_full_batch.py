"""The deterministic method: all rows at each step, and each head exact."""

from __future__ import annotations

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from refusals import assert_refused, case
from skorch.callbacks import Callback
from small_models import classifier, regressor, small_network, watched
from torch import nn

from sklearn_cfll import CFLLNet, KalmanUpdate
from sklearn_cfll.batches import TensorBatches
from sklearn_cfll.functional import feature_energy, solve_ridge

ALPHA = 0.05


class Steps(Callback):
    """Keeps the network after each step; it has no ear for single batches."""

    def on_train_begin(self, net, **kwargs):
        self.networks = [copy.deepcopy(net.module_)]

    def on_epoch_end(self, net, **kwargs):
        self.networks.append(copy.deepcopy(net.module_))


def centred(table):
    X, y = table
    return X, (y - y.mean()) / y.std()


def best_head(backbone, X, y, alpha=ALPHA):
    features = backbone(torch.from_numpy(X))
    return features, solve_ridge(features, torch.from_numpy(y)[:, None], alpha)


def reduced_objective(backbone, X, y, weight=None):
    """L*(theta), with autograd's way through the solve: the loss and the ridge."""
    features = backbone(X)
    head, bias = solve_ridge(features, y, ALPHA, weight)
    errors = (features @ head + bias - y).square().mean(1)
    share = torch.ones(len(X)).double() if weight is None else weight
    loss = (share * errors).sum() / share.sum()
    ridge = ALPHA * feature_energy(features, weight) * head.square().sum(0).mean()
    return loss + ridge


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
def test_each_head_is_the_ridge_head_of_its_backbone(table, order):
    X, y = centred(table)
    steps = Steps()
    model = regressor(
        small_network(),
        alpha=ALPHA,
        prox=0,
        batch_size="full",
        update_order=order,
        early_stopping=False,
        max_epochs=5,
        callbacks=[("steps", steps)],
    ).fit(X, y)
    assert model.history_[:, "prox"] == [0.0] * 5
    networks = dict(model.net_.callbacks_)["steps"].networks
    for before, after in itertools.pairwise(networks):
        solved_on = before if order == "head_first" else after
        _, (weight, bias) = best_head(solved_on.backbone, X, y)
        torch.testing.assert_close(after.head.weight, weight, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(after.head.bias, bias, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [regressor, classifier], ids=["R", "C"])
def test_estimators_learn_with_exact_heads(table, fresh_rows, make):
    (X, y), (X_new, y_new) = table, fresh_rows
    if make is classifier:
        y, y_new = y > np.median(y), y_new > np.median(y)
    model = make(prox=0.0, batch_size="full", max_epochs=60).fit(X, y)
    assert model.score(X_new, y_new) > 0.93
    assert np.diff(model.history_[:, "train_loss"]).max() < 0.05


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_line_search_sees_the_reduced_objective_and_its_gradient(
    table, weighted, n_outputs
):
    X, y = centred(table)
    targets = np.column_stack([y, np.sin(3 * y), X[:, 0]])[:, :n_outputs]
    weight = np.random.default_rng(2).uniform(0.2, 3, len(X)) if weighted else None
    # No LayerNorm: the unit of the ridge moves with the backbone.
    backbone = small_network().double()
    net = CFLLNet(
        backbone,
        n_features=8,
        n_outputs=n_outputs,
        alpha=ALPHA,
        prox=0.0,
        optimizer=torch.optim.LBFGS,
        max_epochs=2,
    )
    batches = TensorBatches(X, targets, weight, batch_size=len(X), dtype=torch.float64)
    net.fit(batches, None)
    (batch,) = batches
    trained = net.module_.backbone
    net._remember_head()
    trained.zero_grad()
    step = net.train_step_single(batch)
    gradients = [p.grad.clone() for p in trained.parameters()]

    objective = reduced_objective(
        trained, batch[0]["X"], batch[1], batch[0].get("sample_weight")
    )
    expected = torch.autograd.grad(objective, list(trained.parameters()))
    torch.testing.assert_close(step["objective"], objective.detach())
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-7, atol=1e-9)


def test_lbfgs_is_variable_projection(table):
    X, y = centred(table)
    steps = Steps()
    settings = {"alpha": ALPHA, "prox": 0, "batch_size": "full", "max_epochs": 40}
    model = regressor(
        small_network(),
        optimizer="lbfgs",
        lr_schedule="constant",
        early_stopping=False,
        callbacks=[("steps", steps)],
        **settings,
    ).fit(X, y)
    networks = dict(model.net_.callbacks_)["steps"].networks[1:]
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    values, gradients = [], []
    for network in networks:
        objective = reduced_objective(network.backbone, inputs, targets)
        parameters = list(network.backbone.parameters())
        gradient = torch.autograd.grad(objective, parameters)
        values.append(objective.item())
        gradients.append(torch.cat([g.ravel() for g in gradient]).norm().item())
        _, (weight, bias) = best_head(network.backbone, X, y)
        torch.testing.assert_close(network.head.weight, weight, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(network.head.bias, bias, rtol=1e-7, atol=1e-8)
    assert np.diff(values).max() < 1e-10
    assert gradients[-1] < 1e-3 * gradients[0]


@pytest.mark.parametrize(
    "settings",
    [{"prox": 5.0}, {"prox": "auto"}, {"net_params": {"head_update": KalmanUpdate()}}],
    ids=["constant", "auto", "Kalman"],
)
def test_each_trial_of_a_line_search_starts_from_the_last_head(table, settings):
    X, y = centred(table)
    seen = []

    class Searching(torch.optim.LBFGS):
        def step(self, closure):
            seen.append([closure().item() for _ in range(3)])

    settings = {"batch_size": "full", "max_epochs": 3, **settings}
    regressor(small_network(), optimizer=Searching, **settings).fit(X, y)
    assert len(seen) == 3
    for values in seen:
        assert_allclose(values, values[0], rtol=1e-12)


def test_lbfgs_searches_by_strong_wolfe_unless_told_otherwise(table):
    settings = {"optimizer": "lbfgs", "batch_size": "full", "max_epochs": 1}
    _, seen = watched(regressor(**settings), *table)
    assert seen.options["line_search_fn"] == "strong_wolfe"
    options = {"line_search_fn": None, "max_iter": 3}
    _, seen = watched(regressor(optimizer_params=options, **settings), *table)
    assert (seen.options["line_search_fn"], seen.options["max_iter"]) == (None, 3)


def test_lbfgs_reaches_in_a_few_steps_what_takes_adamw_many(table):
    settings = {"batch_size": "full", "prox": 0, "early_stopping": False, "alpha": 1e-3}
    settings["lr_schedule"] = "cosine"
    fast, slow = (
        regressor(small_network(16), optimizer=name, max_epochs=n, **settings).fit(
            *table
        )
        for name, n in [("lbfgs", 10), ("adamw", 100)]
    )
    assert fast.history_[-1, "train_loss"] < slow.history_[-1, "train_loss"]


def test_a_backbone_without_parameters_has_its_exact_head_at_once(table):
    X, y = centred(table)
    settings = {"prox": 0, "alpha": ALPHA, "batch_size": "full", "max_epochs": 1}
    model = regressor(nn.Identity(), early_stopping=False, **settings).fit(X, y)
    features, (weight, bias) = best_head(nn.Identity(), X, y)
    loss = (features @ weight + bias - torch.from_numpy(y)[:, None]).square().mean()
    assert model.history_[0, "train_loss"] == pytest.approx(loss.item(), rel=1e-9)


# What is refused --------------------------------------------------------------------

REFUSED = [
    *(
        case(
            f"prox of zero with batch_size {batch_size!r}",
            ValueError,
            rf"prox=0 needs batch_size='full', got batch_size={batch_size!r}: without "
            r"a pull each head would fit its minibatch alone\.",
            params={"prox": 0.0, "batch_size": batch_size},
        )
        for batch_size in ("auto", 32)
    ),
    case(
        "prox from zero on the full batch",
        ValueError,
        (
            r"prox must be positive and finite, at its start and its end; got "
            r"\(0, 1\)\."
        ),
        params={"prox": (0, 1), "batch_size": "full"},
    ),
    *(
        case(
            f"L-BFGS on minibatches, as {type(optimizer).__name__}",
            ValueError,
            r"optimizer .*(lbfgs|LBFGS).* needs batch_size='full', got batch_size=32: "
            r"it compares losses along a line, which are of all rows or of little use"
            r"\.",
            params={"optimizer": optimizer, "batch_size": 32},
        )
        for optimizer in (
            "lbfgs",
            torch.optim.LBFGS,
            functools.partial(torch.optim.LBFGS, max_iter=3),
        )
    ),
    case(
        "a head update that is none",
        TypeError,
        r"head_update must be None or a HeadUpdate, such as KalmanUpdate\(\); got "
        r"'kalman'\.",
        params={"net_params": {"head_update": "kalman"}},
    ),
]


@pytest.mark.parametrize(
    ("make", "params", "fit_arguments", "error", "message"), REFUSED
)
def test_what_needs_the_full_batch_is_refused_without(
    make, params, fit_arguments, error, message
):
    assert_refused(make, params, fit_arguments, error, message)
