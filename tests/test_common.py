"""The contract with scikit-learn: its estimator checks, and clones that keep all."""

from __future__ import annotations

import inspect

import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import GradientNormClipping
from torch import nn

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor, TorchBackbone

OTHER_VALUES = {
    "backbone": MLP(width=7, depth=3),
    "alpha": 0.5,
    "prox": (1.0, 10.0),
    "update_order": "backbone_first",
    "optimizer": "sgd",
    "lr": 0.02,
    "weight_decay": 0.1,
    "optimizer_params": {"momentum": 0.5},
    "lr_schedule": "linear",
    "batch_size": 17,
    "max_epochs": 3,
    "early_stopping": False,
    "validation_fraction": 0.25,
    "n_iter_no_change": 4,
    "tol": 0.01,
    "scoring": "accuracy",
    "dtype": "float32",
    "device": "cpu",
    "callbacks": [("clipping", GradientNormClipping(2.0))],
    "net_params": {"objective": "log"},
    "warm_start": True,
    "store_loo": True,
    "stream_epochs": 3,
    "forgetting": 0.9,
    "missing_targets": "ignore",
    "sample_norm": "relative",
    "random_state": 3,
    "verbose": 1,
    "class_weight": {0: 2.0, 1: 1.0},
    "target_scale": 30.0,
    "true_class_weight": 15.0,
}


class Hidden(nn.Module):
    """A class rather than a function: its name makes the same test ids in each run."""

    def __init__(self, in_features, width=16):
        super().__init__()
        self.linear = nn.Linear(in_features, width)

    def forward(self, X):
        return self.linear(X).tanh()


def every_backbone(cls):
    """One estimator with every default, and one for each way to give a backbone."""
    lazy = nn.Sequential(nn.LazyLinear(16), nn.Tanh())
    return [
        cls(),
        cls(TorchBackbone(Hidden, width=8), max_epochs=20),
        cls(lazy, max_epochs=20),
    ]


@parametrize_with_checks(
    [*every_backbone(CFLLRegressor), *every_backbone(CFLLClassifier)]
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


def parameters_of(cls):
    """Names and defaults of the constructor's parameters."""
    signature = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in signature if p.name != "self"}


def described(value):
    """Give what two clones have in common, in terms that compare."""
    if hasattr(value, "get_params"):
        return type(value), value.get_params()
    if isinstance(value, list):
        return [(name, described(callback)) for name, callback in value]
    return value


@pytest.mark.parametrize("cls", [CFLLRegressor, CFLLClassifier])
def test_get_params_names_every_parameter_of_the_constructor(cls):
    assert cls().get_params(deep=False) == parameters_of(cls)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(c, name) for c in (CFLLRegressor, CFLLClassifier) for name in parameters_of(c)],
)
def test_clone_keeps_each_parameter(cls, name):
    defaults, value = parameters_of(cls), OTHER_VALUES[name]
    estimator = cls(**{name: value})
    copied = clone(estimator)
    assert estimator.get_params(deep=False) == {**defaults, name: value}
    assert described(getattr(copied, name)) == described(value) != defaults[name]
    others = {k: v for k, v in copied.get_params(deep=False).items() if k != name}
    assert others == {k: v for k, v in defaults.items() if k != name}


def test_clone_keeps_a_module_with_its_weights():
    module = nn.Linear(3, 2)
    copied = clone(CFLLRegressor(module)).backbone
    assert copied is not module
    assert torch.equal(copied.weight, module.weight)
    assert torch.equal(copied.bias, module.bias)


def test_clone_keeps_the_parameters_of_a_torch_backbone():
    copied = clone(CFLLRegressor(TorchBackbone(Hidden, width=5))).backbone
    assert copied.get_params() == {"factory": Hidden, "width": 5}
