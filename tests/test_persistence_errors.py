"""Error bars, intervals and sets of an estimator that comes back from a file."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_models import classifier, regressor

from sklearn_cfll import load, save
from sklearn_cfll.layers import PeriodicEmbedding

GROUPS = np.array(["north", "south"])[np.arange(60) % 2]


@pytest.fixture(scope="module")
def targets(table):
    X, y = table
    return np.column_stack([y, 100 * X[:, 3]])


@pytest.fixture(scope="module")
def labels(table):
    return np.array(["a", "b", "c"])[(table[1] > 0).astype(int) + (table[1] > 2)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def reloaded(model, path):
    save(model, path)
    return load(path)


def as_fitted(model, X, y):
    return model


def conformalized(model, X, y):
    return model.conformalize(X[:60], y[:60])


def with_groups(model, X, y):
    return model.conformalize(X[:60], y[:60], groups=GROUPS)


def streamed(model, X, y):
    model.set_params(early_stopping="auto").partial_fit(X[:40], y[:40])
    return conformalized(model, X, y)


def with_a_new_head(model, X, y):
    return model.refit_head(X[:99], y[:99], X_val=X[99:], y_val=y[99:])


STATES = [as_fitted, conformalized, with_groups, streamed, with_a_new_head]


def same_bits(first, second):
    first, second = np.asarray(first), np.asarray(second)
    assert first.dtype == second.dtype
    np.testing.assert_array_equal(first, second)


def same_pairs(first, second):
    for actual, expected in zip(first, second, strict=True):
        same_bits(actual, expected)


def same_paths(model, again):
    first, second = (vars(one).get("alpha_path_", {}) for one in (model, again))
    assert first.keys() == second.keys()
    for name, errors in first.items():
        same_bits(errors, second[name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("outputs", ["one output", "several"])
@pytest.mark.parametrize("state", STATES)
def test_error_bars_come_back_to_the_bit(table, targets, path, state, outputs, dtype):
    X, y = table
    y = y if outputs == "one output" else targets
    model = regressor(max_epochs=2, dtype=dtype, store_loo=True, early_stopping=True)
    model = state(model.fit(X, y), X, y)
    again = reloaded(model, path)
    groups = {"groups": GROUPS} if state is with_groups else {}
    rows = X[:60]
    for question in ({"return_std": True}, {"return_cov": True}):
        pairs = zip(
            *(one.predict(rows, **question) for one in (again, model)), strict=True
        )
        for actual, expected in pairs:
            same_bits(actual, expected)
    same_bits(
        again.predict_interval(rows, 0.8, **groups),
        model.predict_interval(rows, 0.8, **groups),
    )
    same_bits(again.sample_y(rows, 3), model.sample_y(rows, 3))
    same_bits(again.leverage(rows), model.leverage(rows))
    same_paths(model, again)
    learnt = ["noise_", "posterior_scale_", "effective_dof_", "log_evidence_"]
    kept = [] if state is streamed else ["loo_predictions_", "loo_score_"]
    for name in learnt + kept:
        same_bits(getattr(again, name), getattr(model, name))


@pytest.mark.parametrize("state", STATES)
def test_sets_come_back_to_the_bit(table, labels, path, state):
    X, _ = table
    model = classifier(max_epochs=2, early_stopping=True).fit(X, labels)
    model = state(model, X, labels)
    again = reloaded(model, path)
    groups = {"groups": GROUPS} if state is with_groups else {}
    same_bits(
        again.predict_set(X[:60], 0.8, **groups),
        model.predict_set(X[:60], 0.8, **groups),
    )
    same_bits(again.predict_proba(X), model.predict_proba(X))
    same_paths(model, again)


def test_a_head_that_moved_is_still_known_to_have_moved(table, path):
    X, y = table
    model = regressor(max_epochs=2).fit(X[:120], y[:120]).partial_fit(X[120:], y[120:])
    again = reloaded(model, path)
    with pytest.raises(AttributeError, match="alpha_path_ is that of the head"):
        again.alpha_path_  # noqa: B018
    with pytest.raises(ValueError, match=r"moved; call conformalize\(X, y\)"):
        again.predict_interval(X)


@pytest.mark.filterwarnings("ignore:no rows were held out in fit")
def test_error_bars_move_alike_after_loading(table, path):
    X, y = table
    model = regressor(max_epochs=2, dtype="float64").fit(X[:120], y[:120])
    again = reloaded(model, path)
    for one in (model, again):
        one.partial_fit(X[120:], y[120:], np.arange(1.0, 61)).forget(X[:5], y[:5])
    pairs = zip(
        *(one.predict(X, return_std=True) for one in (again, model)), strict=True
    )
    for actual, expected in pairs:
        same_bits(actual, expected)


def test_the_embedding_of_numeric_columns_comes_back(table, path):
    X, y = table
    X = np.column_stack([X[:, 0] > 0, X, X[:, 1] > 0])  # two columns stay as they are
    model = regressor(max_epochs=2).fit(X, y)
    again = reloaded(copy.deepcopy(model), path)
    first, second = (
        next(m for m in one.backbone_.modules() if isinstance(m, PeriodicEmbedding))
        for one in (model, again)
    )
    buffers, others = dict(first.named_buffers()), dict(second.named_buffers())
    assert buffers.keys() == others.keys() != set()
    assert any(b.dtype == torch.int64 and len(b) == 4 for b in buffers.values())
    for name, buffer in buffers.items():
        assert buffer.dtype == others[name].dtype
        assert torch.equal(buffer, others[name])
    same_bits(again.transform(X), model.transform(X))
