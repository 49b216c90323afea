"""The ``backbone`` of load: it takes the place of the user's own and no other."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from small_models import regressor, small_network
from torch import nn

from sklearn_cfll import CFLLIVRegressor, TorchBackbone, load, save
from sklearn_cfll.backbones import Backbone


def make_network(in_features, width=6):
    return nn.Sequential(nn.Linear(in_features, width), nn.Tanh())


class Net(nn.Module):
    def __init__(self, in_features=4, inner=None):
        super().__init__()
        self.linear = nn.Linear(in_features, 6)
        self.inner = nn.Tanh() if inner is None else inner

    def forward(self, X):
        return self.inner(self.linear(X))


class Own(Backbone):
    def build(self, batches):
        return make_network(batches.sample_shape[0])


class Maker:
    def __call__(self, in_features):
        return make_network(in_features)


def square():
    """Make a class of the same name as another."""

    class Net(nn.Module):
        def forward(self, X):
            return X.square()

    return Net


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def predicts_the_same(model, again, X):
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_a_lambda_takes_the_place_of_the_factory_alone(table, path):
    factory, schedule = lambda n: make_network(n), lambda progress: 1 - progress
    backbone = TorchBackbone(factory)
    model = regressor(backbone, max_epochs=2, lr_schedule=schedule).fit(*table)
    save(model, path)
    message = r"needs \w+:\w+\.<locals>\.<lambda>, which is not among what may be impo"
    with pytest.raises(ValueError, match=message):
        load(path, backbone=factory)
    again = load(path, backbone=factory, custom_objects={"<lambda>": schedule})
    assert again.backbone.factory is factory
    assert again.lr_schedule is schedule
    predicts_the_same(model, again, table[0])
    predicts_the_same(model, again.fit(*table), table[0])


PASSED = {
    "class": (TorchBackbone(Net), Net),
    "backbone object of a class": (TorchBackbone(Net), TorchBackbone(Net)),
    "module for its factory": (TorchBackbone(Net), Net()),
    "module": (Net(), Net()),
    "class of a module": (Net(), Net),
    "module in a module": (nn.Sequential(Net()), Net),
    "function": (TorchBackbone(make_network), make_network),
    "function of a partial": (
        TorchBackbone(partial(make_network, width=5)),
        make_network,
    ),
    "class of a user's backbone": (Own(), Own),
    "user's backbone": (Own(), Own()),
}


@pytest.mark.parametrize(("backbone", "passed"), PASSED.values(), ids=PASSED)
def test_every_form_of_the_users_own_is_taken(table, path, backbone, passed):
    model = regressor(backbone, max_epochs=1).fit(*table)
    save(model, path)
    with pytest.raises(ValueError, match="is not among what may be imported"):
        load(path)
    predicts_the_same(model, load(path, backbone=passed), table[0])


def test_a_class_of_the_same_name_is_another_one(table, path):
    other = square()
    backbone = TorchBackbone(Net, inner=other())
    model = regressor(backbone, max_epochs=1).fit(*table)
    save(model, path)
    with pytest.raises(ValueError, match=r"needs \w+:square\.<locals>\.Net, which is"):
        load(path, backbone=Net)
    again = load(path, backbone=Net, custom_objects={"square.<locals>.Net": other})
    assert type(again.backbone_.inner) is other
    predicts_the_same(model, again, table[0])


NAMELESS = {
    "partial": partial(make_network, width=6),
    "backbone object of a partial": TorchBackbone(partial(make_network, width=6)),
    "callable object": Maker(),
    "another object": SimpleNamespace(),
}


@pytest.mark.parametrize("passed", NAMELESS.values(), ids=NAMELESS)
def test_what_has_no_name_is_an_error_that_says_what_to_pass(table, path, passed):
    save(regressor(small_network(), max_epochs=1).fit(*table), path)
    kind = type(getattr(passed, "factory", passed)).__name__
    message = (
        rf"\Abackbone is a {kind}, which has no name to be found by in the file; pass "
        r"the class or the function that it calls, since the file holds the arguments "
        r"of a functools\.partial, or an object's class in custom_objects\.\Z"
    )
    with pytest.raises(ValueError, match=message):
        load(path, backbone=passed)


def test_two_factories_without_names_can_not_be_told_apart(path):
    random = np.random.default_rng(0)
    instruments = random.normal(size=(120, 1))
    X = 2 * instruments + random.normal(size=(120, 1))
    factory = lambda n: make_network(n)  # noqa: E731
    model = CFLLIVRegressor(
        TorchBackbone(factory),
        instrument_backbone=TorchBackbone(factory),
        max_epochs=1,
        n_estimators=1,
        random_state=0,
    ).fit(X, X[:, 0], instruments=instruments)
    save(model, path)
    message = r"two factories of the name .*<lambda>, which backbone can't tell apart"
    with pytest.raises(ValueError, match=message):
        load(path, backbone=factory)
    again = load(path, custom_objects={"<lambda>": factory})
    predicts_the_same(model, again, X)
