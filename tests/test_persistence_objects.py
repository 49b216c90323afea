"""Objects that a backbone holds: the same again from a file, or an error in save."""

from __future__ import annotations

import copyreg
import re
from collections import OrderedDict
from enum import Enum, Flag, IntEnum
from functools import partial

import numpy as np
import pytest
import torch
from small_models import regressor, small_network
from torch import nn

from sklearn_cfll import TorchBackbone, load, save


class Shape(Enum):
    BOUNDED = "tanh"
    RECTIFIED = "relu"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Side(Flag):
    LEFT = 1
    RIGHT = 2


class Holder(nn.Module):
    """Calls what ``shape`` gives for the value that it holds."""

    def __init__(self, in_features, held):
        super().__init__()
        self.linear = nn.Linear(in_features, 6)
        self.held = held

    def forward(self, X):
        return shaped(self.held, self.linear(X))


def shaped(held, X):
    if isinstance(held, partial):
        return held(X)
    if held is Shape.BOUNDED or held is Level.HIGH:
        return torch.tanh(X)
    return torch.relu(X)


class Settings(dict):
    pass


class Stages(list):
    pass


class Words(OrderedDict):
    pass


class Slotted:
    __slots__ = ("rate",)


class BelowSlots(Slotted):
    pass


class Counted:
    def __new__(cls, *args):
        return super().__new__(cls)


class Reduced:
    def __reduce__(self):
        return Reduced, ()


class Stateful:
    def __getstate__(self):
        return {}


class Restored:
    def __setstate__(self, state):
        self.rate = 1.0


class Registered:
    pass


class Plain:
    def __init__(self):
        self.rate = 2.0

    def method(self, X):
        return X


class SlottedModule(nn.Module):
    __slots__ = ("rate",)


class CountedModule(nn.Module):
    def __new__(cls, *args):
        return super().__new__(cls)


class ListedModule(nn.Module):
    def __getstate__(self):
        return [1.0]


class Scaled(nn.Module):
    """Drops a tensor from its state and makes it anew, as nn.GRU does."""

    def __init__(self, in_features):
        super().__init__()
        self.linear = nn.Linear(in_features, 6)
        self.__setstate__(vars(self))

    def __getstate__(self):
        return {name: v for name, v in vars(self).items() if name != "scale"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.scale = torch.full((6,), 0.5, dtype=torch.float64)

    def forward(self, X):
        return torch.tanh(self.linear(X) * self.scale)


class Conjugated(nn.Module):
    """Buffers in the memory of another, with its conjugate and negative values."""

    def __init__(self, in_features):
        super().__init__()
        self.linear = nn.Linear(in_features, 5)
        weight = torch.randn(5, 3, dtype=torch.complex64)
        self.register_buffer("weight", weight)
        self.register_buffer("conjugate", weight.conj())
        self.register_buffer("adjoint", weight.mH)
        self.register_buffer("positive", weight.imag)
        self.register_buffer("negative", weight.conj().imag)

    def forward(self, X):
        hidden = self.linear(X) + 0j
        products = [hidden @ self.conjugate, hidden @ self.weight @ self.adjoint]
        real = [self.linear(X) @ part for part in (self.positive, self.negative)]
        return torch.cat([*(p.imag for p in products), *real], 1).tanh()


class Counting(nn.Module):
    """Has attributes of names such as those under which torch keeps hooks."""

    def __init__(self, in_features, hooks):
        super().__init__()
        self.linear = nn.Linear(in_features, 6)
        self.n_hooks, self._own_hooks = len(hooks), hooks

    def forward(self, X):
        return torch.tanh(self.linear(X) + self.n_hooks + sum(self._own_hooks))


class Encoder(nn.Module):
    """A layer of a transformer on sequences of one."""

    def __init__(self, in_features, activation):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            in_features, 2, 8, 0.0, activation, batch_first=True
        )

    def forward(self, X):
        return self.layer(X[:, None]).flatten(1)


HERE = ["test_persistence_objects"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def predicts_the_same(backbone, table, path):
    model = regressor(backbone, max_epochs=2).fit(*table)
    save(model, path)
    again = load(path, trusted=HERE)
    np.testing.assert_array_equal(again.predict(table[0]), model.predict(table[0]))
    return again


@pytest.mark.parametrize("member", [*Shape, *Level], ids=str)
def test_a_member_of_an_enum_is_the_same_object_again(table, path, member):
    backbone = TorchBackbone(Holder, held=member)
    again = predicts_the_same(backbone, table, path)
    assert again.backbone_.held is member
    assert again.backbone.held is member


def test_a_member_that_the_class_no_longer_has_is_named(table, path):
    backbone = TorchBackbone(Holder, held=Shape.BOUNDED)
    predicts_the_same(backbone, table, path)
    fewer = {"Shape": Enum("Shape", ["RECTIFIED"])}
    message = (
        r"the file needs the member 'BOUNDED' of test_persistence_objects:Shape, which "
        r"has \['RECTIFIED'\]; load it with the class that was saved\.\Z"
    )
    with pytest.raises(ValueError, match=message):
        load(path, trusted=HERE, custom_objects=fewer)
    with pytest.raises(ValueError, match=r"takes \w+:Shape for an Enum"):
        load(path, trusted=HERE, custom_objects={"Shape": Plain})


def test_a_partial_function_of_a_module_comes_back(table, path):
    held = partial(nn.functional.leaky_relu, negative_slope=0.3)
    held.note = "of a user's"
    again = predicts_the_same(TorchBackbone(Holder, held=held), table, path)
    assert again.backbone_.held.keywords == {"negative_slope": 0.3}
    assert again.backbone_.held.note == "of a user's"


@pytest.mark.parametrize(
    ("activation", "trusted"),
    [("gelu", []), (nn.functional.softplus, []), (torch.tanh, ["torch"])],
    ids=["gelu", "softplus", "tanh"],
)
def test_functions_of_torch_that_are_built_in_come_back(
    table, path, activation, trusted
):
    model = regressor(TorchBackbone(Encoder, activation=activation), max_epochs=2)
    save(model.fit(*table), path)
    again = load(path, backbone=Encoder, trusted=trusted)
    assert again.backbone_.layer.activation is model.backbone_.layer.activation
    np.testing.assert_array_equal(again.predict(table[0]), model.predict(table[0]))
    if trusted:
        with pytest.raises(ValueError, match=r"needs torch:tanh, which is not among"):
            load(path, backbone=Encoder)


def make(width, in_features, held):
    return nn.Sequential(nn.Linear(in_features, width), Holder(width, held))


def test_a_partial_function_may_make_the_backbone(table, path):
    backbone = TorchBackbone(partial(make, 5, held=Level.HIGH))
    again = predicts_the_same(backbone, table, path)
    assert again.backbone.factory.args == (5,)
    again.fit(*table)


def test_a_module_that_makes_its_state_itself_comes_back(table, path):
    predicts_the_same(TorchBackbone(Scaled), table, path)


@pytest.mark.parametrize(
    "held",
    [np.inf, -np.inf, np.nan, torch.device("cpu"), torch.float64, np.str_("mean")],
    ids=str,
)
def test_numbers_that_json_has_not_and_words_of_torch_come_back(table, path, held):
    again = predicts_the_same(TorchBackbone(Holder, held=held), table, path)
    for other in (again.backbone_.held, again.backbone.held):
        assert other == held or (np.isnan(other) and np.isnan(held))


def test_a_name_that_a_trusted_module_has_not_is_told(table, path, monkeypatch):
    predicts_the_same(TorchBackbone(Scaled), table, path)
    monkeypatch.delattr("test_persistence_objects.Scaled")
    message = (
        r"needs test_persistence_objects:Scaled, which can't be imported \(.*Scaled"
    )
    with pytest.raises(ValueError, match=message):
        load(path, trusted=HERE)


@pytest.mark.parametrize("hooks", [[], [0.5]], ids=str)
def test_attributes_named_as_hooks_come_back(table, path, hooks):
    again = predicts_the_same(TorchBackbone(Counting, hooks=hooks), table, path)
    assert again.backbone_.n_hooks == len(hooks)


def ring():
    held = [1]
    held.append(held)
    return held


LOST = {
    "dict": (Settings(rate=0.5), "a Settings, not saved: it is a dict of a class of"),
    "list": (Stages([1.0]), "a Stages, not saved: it is a list of a class of its own"),
    "ordered": (Words(a=1), "a Words, not saved: it is a dict of a class of its own"),
    "slots": (BelowSlots(), "a BelowSlots, not saved: Slotted has __slots__"),
    "new": (Counted(), "a Counted, not saved: Counted has a __new__ of its own"),
    "reduce": (Reduced(), "a Reduced, not saved: Reduced has a __reduce__ of its own"),
    "getstate": (Stateful(), "not saved: Stateful has a __getstate__ of its own"),
    "setstate": (Restored(), "not saved: Restored has a __setstate__ of its own"),
    "copyreg": (Registered(), "not saved: copyreg has a way of its own to copy it"),
}
FUNCTIONS = {
    "method": (Plain().method, "a method, not saved: it is bound to a Plain; keep a"),
    "builtin": ([].append, "not saved: it is bound to a list; keep a function"),
}
MODULES = {
    "slots": (SlottedModule(), "not saved: SlottedModule has __slots__"),
    "new": (CountedModule(), "not saved: CountedModule has a __new__ of its own"),
    "getstate": (ListedModule(), "not saved: its __getstate__ gives no dict"),
}
OTHERS = {
    "flags": (Side.LEFT | Side.RIGHT, "is no member of its class"),
    "mask": (np.ma.masked_equal([1.0, 2.0], 2.0), "an array of a class of its own"),
    "ring": (ring(), "a list, not saved: it holds itself"),
    "bare": (object(), "a object, not saved: it has no attributes"),
    "sparse": (torch.eye(2).to_sparse(), "not saved: its layout is torch.sparse_coo"),
    "dates": (np.array(["2020"], "M8[Y]"), "not saved: its dtype is datetime64[Y]"),
}


@pytest.mark.parametrize(
    ("held", "message"),
    [*LOST.values(), *FUNCTIONS.values(), *MODULES.values(), *OTHERS.values()],
    ids=[*LOST, *FUNCTIONS, *(f"module with {n}" for n in MODULES), *OTHERS],
)
def test_what_would_not_come_back_whole_is_named_in_save(
    table, path, monkeypatch, held, message
):
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda value: None)
    model = regressor(small_network(), max_epochs=1).fit(*table)
    model.backbone_.held = held
    where = r"\ACFLLRegressor\['\w+'\]\..*\.?held.* is an? "
    with pytest.raises(TypeError, match=where) as caught:
        save(model, path)
    assert re.search(re.escape(message), str(caught.value))
    assert not path.exists()


def test_an_object_of_plain_attributes_is_the_cure(table, path):
    model = regressor(small_network(), max_epochs=1).fit(*table)
    model.backbone_.held = Settings(rate=2.0)
    message = r"; keep what it holds in plain attributes, lists or dicts\.\Z"
    with pytest.raises(TypeError, match=message):
        save(model, path)
    model.backbone_.held = Plain()
    save(model, path)
    assert load(path, trusted=HERE).backbone_.held.rate == 2.0


def test_conjugate_and_negative_tensors_of_one_memory_are_kept_apart(table, path):
    X, _ = table
    # In float32, in which complex64 stays as it is, and with it the shared memory.
    model = regressor(TorchBackbone(Conjugated), max_epochs=1, dtype="float32")
    buffers = dict(model.fit(*table).backbone_.named_buffers())
    assert buffers["conjugate"].data_ptr() == buffers["weight"].data_ptr()
    assert buffers["negative"].is_neg()
    save(model, path)
    again = load(path, trusted=HERE)
    for name, buffer in buffers.items():
        assert torch.equal(again.backbone_.get_buffer(name), buffer), name
    np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-5)
