"""One random_state gives one model, and a fit leaves everything else as it was."""

from __future__ import annotations

import copy

import joblib
import numpy as np
import pytest
import threadpoolctl
import torch
from numpy.testing import assert_array_equal
from skorch.callbacks import EpochScoring
from small_instruments import small
from small_models import classifier, regressor
from torch import nn

from sklearn_cfll import MLP, TorchBackbone

DROPOUT = MLP(width=32, dropout=0.2)


def lazy_dropout():
    return nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.Dropout(0.2))


MODELS = {
    "default backbone": lambda **params: regressor(**params),
    "dropout": lambda **params: regressor(DROPOUT, **params),
    "held-out rows": lambda **params: regressor(early_stopping=True, **params),
    "factory": lambda **params: regressor(TorchBackbone(lazy_dropout), **params),
    "float32": lambda **params: regressor(DROPOUT, dtype="float32", **params),
    "classifier": lambda **params: classifier(
        early_stopping=True, batch_size=32, **params
    ),
}


@pytest.fixture(scope="module")
def rows(table):
    """Give the table a target that both estimators take."""
    X, y = table
    return X, np.digitize(y, [0, 2])


def learnt(model, X):
    """All that a fit learns, to compare to the bit."""
    return [
        model.predict(X),
        model.transform(X),
        model.coef_,
        model.intercept_,
        *(p.detach().numpy() for p in model.backbone_.parameters()),
        model.history_[:, "train_loss"],
    ]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert_array_equal(a, b)


def set_global_seeds(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global state is what is tested)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_one_random_state_gives_one_model_whatever_the_global_seeds(rows, make):
    results = []
    for seed in (1, 2):
        set_global_seeds(seed)
        results.append(learnt(make(random_state=5, max_epochs=4).fit(*rows), rows[0]))
    assert_same(*results)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_other_random_states_give_other_models(rows, make):
    first, second = (
        make(random_state=seed, max_epochs=2).fit(*rows).transform(rows[0])
        for seed in (5, 6)
    )
    assert np.abs(first - second).max() > 1e-2


def test_without_a_random_state_fits_differ(rows):
    model = regressor(random_state=None, max_epochs=1)
    first, second = (model.fit(*rows).transform(rows[0]) for _ in range(2))
    assert np.abs(first - second).max() > 1e-2


def test_without_a_random_state_numpy_seeds_the_fit(rows):
    results = []
    for _ in range(2):
        set_global_seeds(3)
        model = regressor(random_state=None, max_epochs=2).fit(*rows)
        results.append(learnt(model, rows[0]))
    assert_same(*results)


def test_a_generator_goes_on_from_fit_to_fit(rows):
    model = regressor(random_state=np.random.RandomState(0), max_epochs=1)
    first, second = (model.fit(*rows).transform(rows[0]) for _ in range(2))
    again = regressor(random_state=np.random.RandomState(0), max_epochs=1)
    assert_array_equal(again.fit(*rows).transform(rows[0]), first)
    assert np.abs(first - second).max() > 1e-2


# What a fit leaves as it was ----------------------------------------------------


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_fit_and_predict_draw_no_global_random_numbers(rows, make):
    set_global_seeds(7)
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    set_global_seeds(7)
    make(max_epochs=2).fit(*rows).predict(rows[0])
    assert_array_equal(torch.rand(3), expected[0])
    assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_a_fit_that_fails_leaves_the_global_state_too(rows):
    def fails(in_features):
        torch.rand(5)
        raise RuntimeError("no network today")

    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="could not be built: no network today"):
        regressor(TorchBackbone(fails)).fit(*rows)
    assert_array_equal(torch.get_rng_state(), state)


def test_fit_leaves_the_users_module_as_it_was(rows):
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1)).eval()
    before = copy.deepcopy(module.state_dict())
    model = regressor(module, max_epochs=2).fit(*rows)
    assert not module.training
    assert all(p.grad is None for p in module.parameters())
    assert module.state_dict().keys() == before.keys()
    for name, value in module.state_dict().items():
        assert_array_equal(value, before[name])
        assert value.dtype == before[name].dtype
    assert model.backbone is module
    assert model.backbone_ is not module
    assert model.backbone_[1].num_batches_tracked > 0


def test_fit_leaves_a_lazy_module_without_weights(rows):
    module = nn.Sequential(nn.LazyLinear(8), nn.Tanh())
    regressor(module, max_epochs=1).fit(*rows)
    assert module[0].has_uninitialized_params()


def test_fit_leaves_the_parameters_as_they_were(rows):
    given = {
        "backbone": MLP(width=8),
        "alpha": np.array([0.1]),
        "prox": [0.3, 10.0],
        "optimizer_params": {"eps": 1e-6},
        "callbacks": [EpochScoring("r2", name="r2", on_train=True)],
        "net_params": {"objective": "root"},
        "random_state": np.random.RandomState(0),
    }
    model = regressor(**given)
    before = copy.deepcopy(given)
    model.fit(*rows)
    for name, value in given.items():
        assert getattr(model, name) is value
    assert given["backbone"].get_params() == before["backbone"].get_params()
    for name in ("alpha", "prox"):
        assert_array_equal(given[name], before[name])
    for name in ("optimizer_params", "net_params"):
        assert given[name] == before[name]
    assert vars(given["callbacks"][0]) == vars(before["callbacks"][0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("batch_size", [32, "full"])
def test_fit_leaves_the_arrays_as_they_were(rows, dtype, batch_size):
    X, y, weight = rows[0].astype(dtype), rows[1].astype(dtype), np.ones(180, dtype)
    before = [array.copy() for array in (X, y, weight)]
    model = regressor(dtype=np.dtype(dtype).name, batch_size=batch_size, max_epochs=2)
    model.fit(X, y, weight, X_val=X, y_val=y, sample_weight_val=weight)
    model.predict(X)
    assert_same([X, y, weight], before)


def test_fit_leaves_the_settings_of_torch_as_they_were(rows):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = settings()
    regressor(max_epochs=1, dtype="float64").fit(*rows)
    assert settings() == before


def of_regressor(X, y):
    """Compute by each of a regressor's ways through the backbone."""
    model = regressor(MLP(width=8), dtype="float32", max_epochs=2)
    model.fit(X, y, X_val=X[:20], y_val=y[:20])
    yield from model.predict(X, return_std=True)
    yield from (model.transform(X), model.refit_head(X, -y).predict(X))
    model.partial_fit(X[:40], y[:40])
    yield model.predict(X)
    yield model.forget(X[:40], y[:40]).predict(X)
    stream = regressor(MLP(width=8), dtype="float32", stream_epochs=1)
    for half in (slice(90), slice(90, None)):
        stream.partial_fit(X[half], y[half])
    yield from (stream.predict(X), stream.noise_)


def of_classifier(X, y):
    model = classifier(MLP(width=8), dtype="float32", max_epochs=2).fit(X, y)
    yield model.decision_function(X)
    yield model.partial_fit(X[:40], y[:40]).decision_function(X)


def of_instruments(X, y):
    model = small(dtype="float32", max_epochs=2)
    model.fit(X[:, :1], y, instruments=X[:, 1:])
    yield from model.predict(X[:, :1], return_std=True)
    yield model.transform(X[:, :1])
    yield model.score(X[:, :1], y, instruments=X[:, 1:])
    found = model.diagnose(X[:, :1], y, instruments=X[:, 1:])
    yield from (found["cragg_donald"], model.diagnostics_["cragg_donald"])


# The numbers of a device that holds none would be missed at once.
SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.filterwarnings("ignore:the instruments are weak")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    "computed", [of_regressor, of_classifier, of_instruments], ids=lambda f: f.__name__
)
def test_settings_of_torch_around_all_calls_make_no_difference(rows, computed, setting):
    def settings():
        return torch.is_autocast_enabled("cpu"), torch.empty(0).device

    expected = list(computed(*rows))
    with setting():
        before = settings()
        assert_same(computed(*rows), expected)
        assert settings() == before


# Threads ------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_fits_in_threads_equal_those_in_a_row(rows, make):
    def fit(seed):
        model = make(random_state=seed, max_epochs=5).fit(*rows)
        return learnt(model, rows[0])

    in_a_row = [fit(seed) for seed in (1, 2)]
    jobs = [joblib.delayed(fit)(seed) for seed in (1, 2)]
    in_threads = joblib.Parallel(n_jobs=2, backend="threading")(jobs)
    for ours, theirs in zip(in_threads, in_a_row, strict=True):
        assert_same(ours, theirs)


def test_threads_leave_the_global_state_as_it_was(rows):
    state = torch.get_rng_state()
    fits = [joblib.delayed(regressor(DROPOUT, max_epochs=5).fit)(*rows)] * 4
    joblib.Parallel(n_jobs=2, backend="threading")(fits)
    assert_array_equal(torch.get_rng_state(), state)


def test_threads_give_blas_its_own_threads_back(rows):
    # Pools of one thread, as tests have, would show nothing.
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        fits = [joblib.delayed(regressor(max_epochs=5).fit)(*rows)] * 4
        joblib.Parallel(n_jobs=2, backend="threading")(fits)
        assert blas_threads() == before


def blas_threads():
    pools = threadpoolctl.threadpool_info()
    return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]
