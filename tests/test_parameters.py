"""Each parameter of the estimators has its effect: model, head, numbers, classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_wine
from sklearn.utils.class_weight import compute_class_weight
from small_models import classifier, regressor, small_network
from torch import nn

from sklearn_cfll import MLP, CFLLRegressor, TorchBackbone


class Counting(nn.Module):
    """Counts its forward passes in training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, X):
        self.passes += self.training
        return self.layer(X).tanh()


@pytest.fixture(scope="module")
def wine():
    """Three classes, of which the last is rare, on four columns."""
    X, y = load_wine(return_X_y=True)
    rows = np.r_[0:59, 59:130, 130:140]
    columns = X[:, [0, 4, 9, 10]]
    return ((columns - columns.mean(0)) / columns.std(0))[rows], y[rows]


# Backbone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "same"),
    [
        (None, MLP(width=256, depth=2, activation="silu", dropout=0.0)),
        (TorchBackbone(small_network), TorchBackbone(small_network, width=8)),
    ],
    ids=["None is the default MLP", "a factory's defaults"],
)
def test_backbones_that_are_the_same(table, backbone, same):
    model, other = (
        CFLLRegressor(b, max_epochs=2, random_state=0).fit(*table)
        for b in (backbone, same)
    )
    assert_array_equal(model.predict(table[0]), other.predict(table[0]))


def test_a_module_starts_from_its_own_weights(table):
    module = small_network()
    before = [p.clone() for p in module.parameters()]
    model = regressor(module, lr=1e-12).fit(*table)
    for kept, trained in zip(before, model.backbone_.parameters(), strict=True):
        assert_allclose(trained.detach(), kept.detach(), atol=1e-8)


# Head ---------------------------------------------------------------------------


def test_a_larger_alpha_gives_a_smaller_head(table):
    sizes = [
        np.linalg.norm(regressor(nn.Identity(), alpha=alpha).fit(*table).coef_)
        for alpha in (0, 0.1, 10, 1000)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-2 * sizes[0]


def test_alpha_zero_on_plain_columns_is_least_squares(table):
    X, y = table
    model = regressor(nn.Identity(), alpha=0).fit(X, y)
    exact, *_ = np.linalg.lstsq(np.c_[X, np.ones(len(X))], y, rcond=None)
    assert_allclose([*model.coef_, model.intercept_], exact, rtol=1e-9)
    assert model.alpha_ == 0


@pytest.mark.parametrize(
    ("max_epochs", "share"),
    [("auto", 1.0), (100, 1.0), (50, 0.5), (30, 0.3), (2, 0.3)],
)
def test_default_pull_is_weaker_in_shorter_trainings(max_epochs, share):
    X = np.random.default_rng(0).normal(size=(320, 2))
    model = regressor(batch_size=32, max_epochs=max_epochs, early_stopping=False)
    # Ten batches an epoch, a hundred epochs of which are a thousand steps.
    assert model.set_params(prox=None).fit(X, X[:, 0]).net_.prox == pytest.approx(
        (share, 100 * share)
    )


def test_default_pull_of_few_rows_is_that_of_many():
    X = np.random.default_rng(0).normal(size=(40, 2))
    model = regressor(batch_size="auto", max_epochs="auto", prox=None)
    assert model.fit(X, X[:, 0]).net_.prox == (1.0, 100.0)


def test_given_pull_stays_in_short_trainings(table):
    assert regressor(prox=(2, 50), max_epochs=1).fit(*table).net_.prox == (2.0, 50.0)


def test_alpha_of_one_output_changes_that_output_alone(table):
    X, y = table
    targets = np.c_[y, X[:, 1] - y]
    settings = [(0.01, 0.01), (0.01, 100.0)]
    same, other = (
        regressor(nn.Identity(), alpha=np.array(alpha)).fit(X, targets)
        for alpha in settings
    )
    assert_allclose(other.coef_[0], same.coef_[0], rtol=1e-9)
    assert np.linalg.norm(other.coef_[1]) < 0.1 * np.linalg.norm(same.coef_[1])
    single = regressor(nn.Identity(), alpha=0.01).fit(X, targets)
    assert_allclose(same.coef_, single.coef_, rtol=1e-9)
    assert_array_equal(other.alpha_, settings[1])
    assert single.alpha_ == 0.01


def test_automatic_alpha_suits_the_noise_of_each_output(table):
    X, _ = table
    targets = np.c_[X[:, 0] - X[:, 3], np.random.default_rng(0).normal(size=len(X))]
    model = regressor(nn.Identity()).fit(X, targets)
    clean, noisy = model.alpha_
    assert clean <= 1e-3 < 1 <= noisy
    by_hand = regressor(nn.Identity(), alpha=model.alpha_).fit(X, targets)
    assert_allclose(by_hand.coef_, model.coef_, rtol=1e-12)


def test_one_automatic_alpha_for_all_classes(wine):
    model = classifier().fit(*wine)
    assert isinstance(model.alpha_, float)
    assert 1e-8 <= model.alpha_ <= 100


@pytest.mark.parametrize("prox", [5.0, np.float32(2)], ids=str)
def test_a_constant_prox_stays(table, prox):
    model = regressor(prox=prox, max_epochs=4).fit(*table)
    assert model.history_[:, "prox"] == [float(prox)] * 4


@pytest.mark.parametrize("pair", [(0.1, 10.0), [3.0, 0.3], np.array([1.0, 1.0])])
def test_a_pair_of_prox_is_annealed_geometrically(table, pair):
    model = regressor(prox=pair, batch_size="full", max_epochs=7).fit(*table)
    assert_allclose(model.history_[:, "prox"], np.geomspace(*pair, 7), rtol=1e-12)


def test_a_large_prox_holds_the_head_of_the_training(table):
    free, held = (
        regressor(nn.Identity(), prox=prox, max_epochs=1).fit(*table)
        for prox in (1e-3, 1e9)
    )
    # Each batch is fitted as it comes, or all by the first, well damped, head.
    assert free.history_[-1, "train_loss"] < 0.8 * held.history_[-1, "train_loss"]
    assert_allclose(free.coef_, held.coef_, rtol=1e-9)  # the exact solve is the same


@pytest.mark.parametrize(
    ("order", "passes"), [("head_first", 1), ("backbone_first", 2)]
)
def test_update_order_decides_the_forward_passes_of_a_step(table, order, passes):
    model = regressor(Counting(), update_order=order, max_epochs=3).fit(*table)
    steps = 3 * -(-len(table[0]) // 32)
    first_head = 1
    assert model.backbone_.passes == passes * steps + first_head


def test_update_order_decides_the_loss_of_the_first_step(table):
    head_first, backbone_first = (
        regressor(update_order=order, max_epochs=1, batch_size="full").fit(*table)
        for order in ("head_first", "backbone_first")
    )
    # Solved on the very batch a second time, the head fits it closer.
    losses = [m.history_[0, "train_loss"] for m in (head_first, backbone_first)]
    assert losses[0] < losses[1]


# Numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "n_samples", "expected"),
    [
        ("float32", 50, torch.float32),
        ("float64", 301, torch.float64),
        ("auto", 300, torch.float64),
        ("auto", 301, torch.float32),
    ],
)
def test_dtype_of_the_backbone(dtype, n_samples, expected):
    X = np.random.default_rng(0).normal(size=(n_samples, 3))
    model = regressor(dtype=dtype, max_epochs=1).fit(X, X.sum(1))
    assert {p.dtype for p in model.backbone_.parameters()} == {expected}
    assert model.net_.module_.head.weight.dtype == torch.float64
    assert model.score(X, X.sum(1)) > 0.95


def test_precisions_agree_to_rounding(table):
    X, y = table
    narrow, wide = (
        regressor(dtype=dtype, alpha=1e-2, max_epochs=2).fit(X, y).predict(X)
        for dtype in ("float32", "float64")
    )
    assert 0 < np.abs(narrow - wide).max() < 1e-3 * y.std()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")], ids=repr)
def test_device(table, device):
    model = regressor(device=device, max_epochs=1).fit(*table)
    tensors = [*model.backbone_.parameters(), model.net_.module_.head.weight]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert model.net_.device == "cpu"


def test_a_device_that_is_not_there_is_an_error(table):
    message = r"^device='nowhere' is not available here \(.+\); use device='auto' or"
    with pytest.raises(ValueError, match=message):
        regressor(device="nowhere").fit(*table)


def test_net_params_reach_the_net(table):
    model = regressor(max_epochs=3, net_params={"criterion": nn.HuberLoss})
    model.fit(*table)
    assert isinstance(model.net_.criterion_, nn.HuberLoss)
    plain = regressor(max_epochs=3).fit(*table)
    assert model.history_[0, "train_loss"] < 0.6 * plain.history_[0, "train_loss"]


# Warm start ---------------------------------------------------------------------


def test_warm_start_goes_on_from_the_last_fit(table):
    model = regressor(warm_start=True, max_epochs=5).fit(*table)
    first = [p.clone() for p in model.backbone_.parameters()]
    losses = model.history_[:, "train_loss"]
    model.set_params(max_epochs=2, lr=1e-12).fit(*table)
    assert model.n_iter_ == 7
    assert model.history_[:5, "train_loss"] == losses
    assert max(model.history_[5:, "train_loss"]) < min(losses[:2])
    for before, after in zip(first, model.backbone_.parameters(), strict=True):
        assert_allclose(after.detach(), before.detach(), atol=1e-8)


def test_without_warm_start_a_fit_forgets_the_last(table):
    model = regressor(max_epochs=5).fit(*table)
    expected = model.predict(table[0])
    model.fit(table[0], -table[1])
    assert_array_equal(model.fit(*table).predict(table[0]), expected)
    assert model.n_iter_ == 5


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "balanced"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: 1.0, 2: 100.0}),
        ("balanced", None),
    ],
    ids=str,
)
def test_a_warm_start_takes_new_class_weights(wine, before, after):
    settings = {"alpha": 0.1, "early_stopping": False, "max_epochs": 2}
    model = classifier(nn.Identity(), class_weight=before, warm_start=True, **settings)
    first = model.fit(*wine).predict_proba(wine[0])
    model.set_params(class_weight=after).fit(*wine)
    fresh = classifier(nn.Identity(), class_weight=after, **settings).fit(*wine)
    expected = fresh.predict_proba(wine[0])
    assert_allclose(model.predict_proba(wine[0]), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - first).max() > 0.02


def test_balanced_class_weights_of_a_warm_start_are_those_of_its_rows(wine):
    X, y = wine
    settings = {"alpha": 0.1, "early_stopping": False, "max_epochs": 2}
    model = classifier(nn.Identity(), class_weight="balanced", **settings)
    rows = np.flatnonzero((y != 0) | (np.arange(len(y)) % 4 == 0))
    expected = model.fit(X[rows], y[rows]).predict_proba(X)
    model.fit(X, y).set_params(warm_start=True).fit(X[rows], y[rows])
    assert_allclose(model.predict_proba(X), expected, rtol=1e-5, atol=1e-6)


# Classes ------------------------------------------------------------------------


def test_class_weights_may_name_classes_that_have_no_rows_now(wine):
    X, y = wine
    settings = {"max_epochs": 1, "class_weight": {0: 1.0, 2: 5.0}}
    weight = (y != 2) * 1.0
    absent = classifier(**settings).fit(X, y, weight)
    assert absent.predict_proba(X)[weight > 0].argmax(1).max() < 2
    again = classifier(warm_start=True, **settings).fit(X, y)
    again.fit(X[y != 2], y[y != 2])
    assert list(again.classes_) == [0, 1, 2]


def test_class_weights_are_sample_weights(wine):
    X, y = wine
    weights = {0: 1.0, 1: 0.25, 2: 8.0}
    model = classifier(class_weight=weights).fit(X, y)
    by_hand = classifier().fit(X, y, np.vectorize(weights.get)(y))
    assert_array_equal(model.predict_proba(X), by_hand.predict_proba(X))
    plain = classifier().fit(X, y)
    assert model.predict_proba(X)[:, 2].mean() > plain.predict_proba(X)[:, 2].mean()


def test_balanced_class_weights(wine):
    X, y = wine
    values = compute_class_weight("balanced", classes=np.arange(3), y=y)
    balanced = classifier(class_weight="balanced").fit(X, y)
    by_hand = classifier(class_weight=dict(enumerate(values))).fit(X, y)
    assert_array_equal(balanced.predict_proba(X), by_hand.predict_proba(X))
    rare = y == 2
    plain = classifier().fit(X, y).decision_function(X[rare])[:, 2].mean()
    assert balanced.decision_function(X[rare])[:, 2].mean() > plain


def test_class_weights_multiply_sample_weights(wine):
    X, y = wine
    weight = np.linspace(0.5, 2, len(y))
    model = classifier(class_weight={2: 4.0}).fit(X, y, weight)
    by_hand = classifier().fit(X, y, weight * np.where(y == 2, 4.0, 1.0))
    assert_array_equal(model.predict_proba(X), by_hand.predict_proba(X))


ON_ALL_ROWS = {"early_stopping": False, "batch_size": "full"}


@pytest.mark.parametrize(
    "class_weight", ["balanced", {0: 1.0, 1: 0.25, 2: 8.0}], ids=["balanced", "dict"]
)
@pytest.mark.parametrize("absent", [[0], [1, 2]], ids=["half", "two classes"])
def test_rows_without_weight_do_not_count_in_class_weights(wine, class_weight, absent):
    X, y = wine
    weight = np.where(np.isin(y, absent) & (np.arange(len(y)) % 2 == 0), 0.0, 1.0)
    model = classifier(class_weight=class_weight, dtype="float64", **ON_ALL_ROWS)
    weighted = model.fit(X, y, weight).predict_proba(X)
    left = model.fit(X[weight > 0], y[weight > 0]).predict_proba(X)
    assert_allclose(weighted, left, rtol=1e-8, atol=1e-8)


def test_a_class_without_weight_is_no_class_for_balanced_weights(wine):
    X, y = wine
    model = classifier(class_weight="balanced", dtype="float64", **ON_ALL_ROWS)
    weighted = model.fit(X, y, (y != 2).astype(float)).predict_proba(X)
    left = model.fit(X[y != 2], y[y != 2]).predict_proba(X)
    assert_allclose(weighted, left, rtol=1e-8, atol=1e-8)


def test_balanced_classes_have_the_same_sum_of_weights(wine):
    X, y = wine
    weight = np.linspace(0.5, 2, len(y)) * (1 + y)
    sums = np.bincount(y, weight)
    by_hand = dict(enumerate(sums.sum() / (3 * sums)))
    balanced = classifier(class_weight="balanced").fit(X, y, weight)
    expected = classifier(class_weight=by_hand).fit(X, y, weight)
    assert_allclose(balanced.predict_proba(X), expected.predict_proba(X), rtol=1e-6)
