"""Parameters and data that a CFLLNet takes, as skorch does, or refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_cfll import (
    BatchRidgeUpdate,
    CFLLNet,
    ProximalUpdate,
    RunningAverageUpdate,
)

_random = np.random.default_rng(0)
X = _random.normal(size=(60, 3)).astype(np.float32)
TARGETS = np.sin(X[:, :1]).astype(np.float32)


def net_of(**params):
    torch.manual_seed(0)
    settings = {"module": nn.Sequential(nn.Linear(3, 8), nn.Tanh()), **params}
    settings = {"n_features": 8, "n_outputs": 1, "max_epochs": 2, **settings}
    return CFLLNet(settings.pop("module"), **settings)


SIZES = (
    r"the backbone gives 8 features, and targets are {} to a row, but the head was "
    r"made for n_features={} and n_outputs={}; set these to the sizes of the data\."
)
NUMBER = (
    r"alpha must be a number, or one for each output, finite and not negative; got "
)
REFUSED = {
    "features": ({"n_features": 7}, SIZES.format(1, 7, 1)),
    "outputs": ({"n_outputs": 2}, SIZES.format(1, 8, 2)),
    "order": (
        {"update_order": "head"},
        r"update_order must be 'head_first' or 'backbone_first', got 'head'\.",
    ),
    "prox by name": (
        {"prox": "strong"},
        r"prox must be 'auto', a number or a pair \(start, end\), got 'strong'\.",
    ),
    "three prox": ({"prox": (1, 2, 3)}, r"prox must be 'auto', a number or a pair .*"),
    "negative prox": (
        {"prox": -1.0},
        r"prox must be finite and not negative, got -1\.0\.",
    ),
    "prox from zero": (
        {"prox": (0, 100)},
        r"a pair of prox must be positive at both ends, .*; got \(0, 100\)\.",
    ),
    "negative alpha": ({"alpha": -0.1}, NUMBER + r"-0\.1\."),
    "alpha by name": ({"alpha": "auto"}, NUMBER + r"'auto'\."),
    "two alphas": (
        {"alpha": torch.ones(2)},
        r"alpha has shape \(2,\); pass a number, or one for each output "
        r"\(n_outputs=1\)\.",
    ),
    "batch size by name": (
        {"batch_size": "full"},
        r"batch_size must be a positive integer, or -1 for all rows, got 'full'\.",
    ),
    "no batch": (
        {"batch_size": 0},
        r"batch_size must be a positive integer, or -1 for all rows, got 0\.",
    ),
}


@pytest.mark.parametrize(("params", "message"), REFUSED.values(), ids=REFUSED)
def test_parameters_that_cannot_be_used_are_named(params, message):
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        net_of(**params).fit(X, TARGETS)


@pytest.mark.parametrize("rule", [ProximalUpdate, BatchRidgeUpdate])
def test_rules_refuse_a_negative_ridge(rule):
    with pytest.raises(ValueError, match=r"^alpha must be .* not negative; got -1"):
        rule(alpha=-1)
    with pytest.raises(ValueError, match=r"^alpha must be .* not negative; got "):
        RunningAverageUpdate(alpha=torch.tensor([0.1, -0.1]))


def test_a_pair_of_prox_may_be_a_list_or_an_array():
    predictions = [
        net_of(prox=prox).fit(X, TARGETS).predict(X)
        for prox in [(1.0, 10.0), [1, 10], np.array([1.0, 10.0])]
    ]
    np.testing.assert_array_equal(predictions[0], predictions[1])
    np.testing.assert_array_equal(predictions[0], predictions[2])


def test_a_backbone_of_several_outputs_is_told():
    message = r"^the backbone returned a tuple; it must return one tensor of features"
    with pytest.raises(TypeError, match=message):
        net_of(module=nn.LSTM(3, 8)).fit(X, TARGETS)


def test_a_batch_size_of_minus_one_is_all_rows():
    given, expected = (
        net_of(batch_size=size).fit(X, TARGETS).predict(X) for size in (-1, len(X))
    )
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("n_targets", [59, 61])
def test_rows_and_targets_must_be_as_many(n_targets):
    targets = np.zeros((n_targets, 1), np.float32)
    message = f"^X has 60 rows but y has {n_targets}; pass one target a row\\.$"
    with pytest.raises(ValueError, match=message):
        net_of().fit(X, targets)


@pytest.mark.parametrize("kind", ["with a gradient", "in half precision"])
def test_targets_may_be_a_tensor_that_numpy_does_not_take(kind):
    targets = torch.from_numpy(TARGETS).bfloat16()
    plain = targets.float().numpy()
    if kind == "with a gradient":
        targets = targets.float().requires_grad_()
    given = net_of().fit(torch.from_numpy(X), targets[:, 0]).predict(X)
    np.testing.assert_array_equal(given, net_of().fit(X, plain).predict(X))


def test_without_a_device_all_stays_where_the_module_is():
    given, expected = (
        net_of(device=device).fit(X, TARGETS).predict(X) for device in (None, "cpu")
    )
    np.testing.assert_array_equal(given, expected)
    elsewhere = net_of(module=nn.Linear(3, 8, device="meta"), device=None).initialize()
    assert elsewhere.module_.head.weight.device.type == "meta"
