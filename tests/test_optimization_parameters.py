"""Each parameter of the optimization has its effect: steps, rates, batches, epochs."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_models import regressor, watched
from torch import nn

from sklearn_cfll import TorchBackbone
from sklearn_cfll.optimizers import MuonWithAdamW

# The classes of torch.optim by the rate that "auto" stands for.
RATES = {
    1.0: ["LBFGS"],
    1e-1: ["SGD"],
    3e-2: ["Adagrad"],
    2e-2: ["AdamW", "Adam", "NAdam", "RAdam", "Muon"],
    3e-3: ["RMSprop"],
}
OPTIMIZERS = [
    (kind, rate) for rate in RATES for kind in RATES[rate] if hasattr(torch.optim, kind)
]


# Optimizer ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rate"), OPTIMIZERS)
def test_optimizer_by_name_with_its_own_rate(table, fresh_rows, kind, rate):
    whole = {"batch_size": "full"} if kind == "LBFGS" else {}
    model = regressor(optimizer=kind.lower(), lr_schedule="constant", **whole)
    model, seen = watched(model, *table)
    assert seen.optimizer is (
        MuonWithAdamW if kind == "Muon" else getattr(torch.optim, kind)
    )
    assert set(seen.lr) == {rate}
    assert model.score(*fresh_rows) > 0.95


def test_sgd_has_momentum(table):
    _, seen = watched(regressor(optimizer="sgd", max_epochs=1), *table)
    assert seen.options["momentum"] == 0.9


def test_optimizer_as_a_class_is_the_one_by_name(table):
    X, y = table
    by_name, by_class = (
        regressor(optimizer=optimizer, max_epochs=3).fit(X, y).predict(X)
        for optimizer in ("adamw", torch.optim.AdamW)
    )
    assert_array_equal(by_name, by_class)


def test_optimizer_as_a_function_of_parameters_and_rate(table):
    X, y = table
    calls = []

    def make(params, lr):
        calls.append(lr)
        return torch.optim.SGD(params, lr=lr, momentum=0.9)

    by_function = regressor(optimizer=make, lr=0.05, max_epochs=3).fit(X, y)
    by_name = regressor(optimizer="sgd", lr=0.05, max_epochs=3).fit(X, y)
    assert set(calls) == {0.05}
    assert_array_equal(by_function.predict(X), by_name.predict(X))


def test_optimizer_as_a_partial_keeps_its_arguments(table):
    make = functools.partial(torch.optim.SGD, nesterov=True, momentum=0.7)
    _, seen = watched(regressor(optimizer=make, max_epochs=1), *table)
    assert seen.optimizer is torch.optim.SGD
    assert (seen.options["nesterov"], seen.options["momentum"]) == (True, 0.7)


class MuonStandIn(torch.optim.SGD):
    """In the place of torch's own, which the oldest supported torch lacks."""


class RealMuonStandIn(MuonStandIn):
    """Refuses complex parameters, as torch's own does."""

    def __init__(self, params, **kwargs):
        params = list(params)
        assert not any(parameter.is_complex() for parameter in params)
        super().__init__(params, **kwargs)


def test_muon_steps_the_matrices_and_adamw_the_rest(table, monkeypatch):
    monkeypatch.setattr(torch.optim, "Muon", MuonStandIn, raising=False)
    made = []

    def make(params, lr):
        made.append(MuonWithAdamW(params, lr=lr, adamw_lr=0.5))
        return made[-1]

    model = regressor(optimizer=make, lr=0.02, lr_schedule="constant", max_epochs=1)
    model.fit(*table)
    muon, adamw = made[-1].parts
    assert (type(muon), type(adamw)) == (MuonStandIn, torch.optim.AdamW)
    for part, ndims, rate in [(muon, {2}, 0.02), (adamw, {1, 3}, 0.5)]:
        (group,) = part.param_groups
        assert {p.ndim for p in group["params"]} == ndims
        assert group["lr"] == rate
        assert all(p.grad is not None for p in group["params"])


class ComplexLayer(nn.Module):
    """A matrix of complex numbers and one of real ones."""

    def __init__(self, in_features):
        super().__init__()
        matrix = torch.randn(in_features, 8, dtype=torch.complex64)
        self.matrix, self.mixed = nn.Parameter(matrix), nn.Linear(16, 8)

    def forward(self, X):
        product = torch.view_as_real(X.to(self.matrix.dtype) @ self.matrix)
        return self.mixed(product.flatten(1)).tanh()


def test_muon_leaves_complex_matrices_to_adamw(table, monkeypatch):
    monkeypatch.setattr(torch.optim, "Muon", RealMuonStandIn, raising=False)
    model = regressor(TorchBackbone(ComplexLayer), optimizer="muon", max_epochs=3)
    assert model.fit(*table).score(*table) > 0.5


def test_muon_on_a_torch_without_it_is_an_error(table, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    message = (
        r"^optimizer 'muon' needs torch 2\.9 or newer, this is torch "
        rf"{re.escape(torch.__version__)}; upgrade it or choose another optimizer\.$"
    )
    with pytest.raises(ValueError, match=message):
        regressor(optimizer="muon").fit(*table)


def test_optimizer_params_reach_the_optimizer(table):
    model = regressor(optimizer_params={"betas": (0.5, 0.7), "eps": 1e-3})
    _, seen = watched(model, *table)
    assert (seen.options["betas"], seen.options["eps"]) == ((0.5, 0.7), 1e-3)
    assert model.optimizer_params == {"betas": (0.5, 0.7), "eps": 1e-3}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", torch.optim.AdamW])
@pytest.mark.parametrize(
    ("params", "fused"),
    [
        (None, True),
        ({"fused": False}, False),
        ({"foreach": True}, None),
        ({"foreach": False}, None),
        ({"differentiable": False}, None),
    ],
    ids=str,
)
def test_adam_is_fused_unless_told_how_to_step(table, optimizer, params, fused):
    model = regressor(optimizer=optimizer, optimizer_params=params, max_epochs=1)
    _, seen = watched(model, *table)
    assert seen.options["fused"] is fused
    assert (params or {}).items() <= seen.options.items()


def test_steps_that_are_to_be_differentiated_are_an_error(table):
    message = r"^optimizer_params holds differentiable=True, .*; leave it out\.$"
    with pytest.raises(ValueError, match=message):
        regressor(optimizer_params={"differentiable": True}).fit(*table)


def test_unknown_optimizer_params_are_an_error(table):
    with pytest.raises(TypeError, match="unexpected keyword argument 'beta'"):
        regressor(optimizer_params={"beta": 0.5}).fit(*table)


@pytest.mark.parametrize(
    ("name", "decay", "expected"),
    [("adamw", None, 0.01), ("adamw", 0.3, 0.3), ("sgd", None, 0.0), ("sgd", 0.2, 0.2)],
)
def test_weight_decay_or_the_optimizers_own(table, name, decay, expected):
    model = regressor(optimizer=name, weight_decay=decay, max_epochs=1)
    assert watched(model, *table)[1].options["weight_decay"] == expected


def test_weight_decay_shrinks_the_backbone(table):
    norms = [
        sum(float(p.square().sum().detach()) for p in model.backbone_.parameters())
        for model in (regressor(weight_decay=d).fit(*table) for d in (0, 10.0))
    ]
    assert norms[1] < 0.2 * norms[0]


def test_weight_decay_that_the_optimizer_lacks_is_an_error(table):
    message = (
        r"^weight_decay=0\.1 was given but optimizer 'lbfgs' takes none; set "
        r"weight_decay=None\.$"
    )
    with pytest.raises(ValueError, match=message):
        regressor(optimizer="lbfgs", weight_decay=0.1).fit(*table)


# Rate ---------------------------------------------------------------------------


def test_lr_is_the_rate(table):
    model, seen = watched(regressor(lr=0.004, lr_schedule="constant"), *table)
    assert set(seen.lr) == {0.004}
    assert set(model.history_[:, "lr"]) == {0.004}


SCHEDULES = {
    "cooldown": lambda progress: np.minimum(1, 2 - 2 * progress),
    "cosine": lambda progress: (1 + np.cos(np.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "constant": np.ones_like,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_schedule_sets_the_rate_of_each_step(table, monkeypatch, name, optimizer):
    monkeypatch.setattr(torch.optim, "Muon", MuonStandIn, raising=False)
    model = regressor(optimizer=optimizer, lr=0.02, lr_schedule=name, max_epochs=3)
    model, seen = watched(model, *table)
    progress = np.arange(18) / 18  # six batches in each of three epochs
    assert_allclose(seen.lr, 0.02 * SCHEDULES[name](progress), rtol=1e-12)
    assert_allclose(model.history_[:, "lr"], seen.lr[5::6])


def test_schedule_as_a_function_of_the_progress(table):
    calls = []

    def falling(progress):
        calls.append(progress)
        return 0.5**progress

    model = regressor(lr=0.02, lr_schedule=falling, batch_size="full", max_epochs=4)
    _, seen = watched(model, *table)
    assert calls == [0, 0.25, 0.5, 0.75]
    assert_allclose(seen.lr, 0.02 * 0.5 ** np.array(calls), rtol=1e-12)


# Batches and epochs -------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        ("full", [180]),
        (1000, [180]),
        (100, [90, 90]),
        (50, [45, 45, 45, 45]),
        ("auto", [30, 30, 30, 30, 30, 30]),
    ],
)
def test_batch_size_cuts_even_batches(table, batch_size, sizes):
    model = regressor(batch_size=batch_size, max_epochs=2)
    assert watched(model, *table)[1].sizes == sizes * 2


@pytest.mark.parametrize(
    ("n_samples", "n_batches", "largest"),
    [(64, 1, 64), (65, 3, 22), (5000, 40, 125), (20_000, 79, 254)],
)
def test_automatic_batch_size_grows_with_the_table(n_samples, n_batches, largest):
    X = np.random.default_rng(0).normal(size=(n_samples, 2))
    settings = {"batch_size": "auto", "max_epochs": 1, "early_stopping": False}
    model = regressor(nn.Identity(), **settings)
    sizes = watched(model, X, X[:, 0])[1].sizes
    assert (len(sizes), max(sizes)) == (n_batches, largest)


def test_max_epochs_are_run(table):
    assert regressor(max_epochs=4).fit(*table).n_iter_ == 4


def automatic_epochs(method, *shape):
    """Count the epochs of the first rows, each of the given shape."""
    X = np.random.default_rng(0).normal(size=shape)
    model = regressor(
        nn.Flatten(), max_epochs="auto", batch_size="auto", early_stopping=False
    )
    return getattr(model, method)(X, X.reshape(len(X), -1)[:, 0]).n_iter_


@pytest.mark.parametrize(("n_samples", "epochs"), [(65, 100), (2000, 32)])
def test_automatic_epochs_make_a_thousand_steps(n_samples, epochs):
    assert automatic_epochs("fit", n_samples, 2) == epochs


@pytest.mark.parametrize("n_samples", [5, 64])
def test_of_the_smallest_tables_there_are_fewer_epochs(n_samples):
    assert automatic_epochs("fit", n_samples, 2) == 30


def test_few_samples_that_are_no_rows_of_a_table_get_as_many_epochs_as_others():
    assert automatic_epochs("fit", 40, 2, 2) == 100


def test_a_first_chunk_of_few_rows_gets_as_many_epochs_as_others():
    assert automatic_epochs("partial_fit", 40, 2) == 100


def test_more_epochs_fit_closer(table):
    losses = [
        regressor(max_epochs=n).fit(*table).history_[-1, "train_loss"] for n in (2, 30)
    ]
    assert losses[1] < 0.5 * losses[0]
