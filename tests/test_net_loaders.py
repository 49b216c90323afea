"""Batches that a CFLLNet gets through loaders: their settings, and several inputs."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sklearn_cfll import CFLLNet, CFLLRegressor
from sklearn_cfll.loop import _as_batch

_random = np.random.default_rng(0)
X = _random.normal(size=(60, 4)).astype(np.float32)
TARGETS = np.sin(X[:, :1]).astype(np.float32)
PARTS = {"left": X[:, :2], "right": X[:, 2:]}
WEIGHT = _random.integers(1, 4, len(X)).astype(np.float32)


class Sizes(Callback):
    """Notes the targets of each training batch."""

    def on_train_begin(self, net, **kwargs):
        self.targets = []

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        if training:
            self.targets.append(batch[1].numpy().copy())


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh())


def net_of(**params):
    settings = {"module": layers(), "n_features": 8, "n_outputs": 1, "max_epochs": 1}
    settings = {**settings, "batch_size": 20, **params}
    return CFLLNet(settings.pop("module"), **settings)


def batches_of(**params):
    net = net_of(callbacks=[("sizes", Sizes())], **params).fit(X, TARGETS)
    return dict(net.callbacks_)["sizes"].targets


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [20] * 3),
        ({"iterator_train__shuffle": True}, [20] * 3),
        ({"iterator_train__batch_size": 30}, [30] * 2),
        ({"iterator_train__batch_size": -1}, [60]),
        ({"batch_size": 25, "iterator_train__drop_last": True}, [25] * 2),
        ({"iterator_valid__batch_size": 7}, [20] * 3),
    ],
    ids=["none", "shuffle", "batch size", "whole", "drop_last", "of validation"],
)
def test_settings_of_the_training_iterator_hold_for_arrays(settings, sizes):
    assert list(map(len, batches_of(**settings))) == sizes


@pytest.mark.parametrize("shuffle", [False, True])
def test_arrays_are_shuffled_unless_the_iterators_setting_says_no(shuffle):
    targets = np.concatenate(batches_of(iterator_train__shuffle=shuffle))
    assert np.array_equal(targets, TARGETS) == (not shuffle)
    sizes = Sizes()
    model = CFLLRegressor(
        layers(),
        max_epochs=1,
        batch_size=20,
        callbacks=[("sizes", sizes)],
        net_params={"iterator_train__shuffle": shuffle},
    ).fit(X, TARGETS[:, 0])
    targets = np.concatenate(dict(model.net_.callbacks_)["sizes"].targets)
    in_order = np.array_equal(targets[:, 0].argsort(), TARGETS[:, 0].argsort())
    assert in_order == (not shuffle)


def test_each_training_has_an_order_of_its_own_which_torchs_seed_gives():
    def orders():
        net = net_of(callbacks=[("sizes", Sizes())])
        torch.manual_seed(1)
        for _ in range(3):
            net.partial_fit(X, TARGETS)
            yield np.concatenate(dict(net.callbacks_)["sizes"].targets)[:, 0]

    given = list(orders())
    assert not any(np.array_equal(given[i], given[i - 1]) for i in range(3))
    np.testing.assert_array_equal(given, list(orders()))


@pytest.mark.parametrize("fitted", [False, True])
def test_predictions_in_training_mode_are_in_the_order_of_the_rows(fitted):
    module = nn.Sequential(layers(), nn.Dropout(0.1))
    net = net_of(module=module, max_epochs=3).initialize()
    if fitted:
        net.fit(X, TARGETS)
    dropped, plain = (net.forward(X, training=mode)[:, 0] for mode in (True, False))
    assert (dropped != plain).any() == fitted  # a head of zeros drops nothing
    if fitted:
        assert torch.corrcoef(torch.stack([dropped, plain]))[0, 1] > 0.8


class Endless(IterableDataset):
    """Rows in turn, of which it doesn't say how many there are."""

    def __iter__(self):
        return iter(zip(X, TARGETS, strict=True))


def test_a_pass_without_length_or_batches_is_refused():
    message = r"^a pass over the training batches has no length \(.*\), by which the "
    with pytest.raises(TypeError, match=message):
        net_of().fit(Endless())
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(TARGETS))
    with pytest.raises(ValueError, match=r"^a pass .* has no batch; .* drop_last\.$"):
        net_of(batch_size=61, iterator_train__drop_last=True).fit(rows)
    with pytest.raises(ValueError, match=r"^X has no rows; pass one at least\.$"):
        net_of().fit(X[:0], TARGETS[:0])


# Several inputs -------------------------------------------------------------------


class Joined(nn.Module):
    """A backbone of two inputs with names."""

    def __init__(self):
        super().__init__()
        self.layers = layers()

    def forward(self, left, right):
        return self.layers(torch.cat([left, right], 1))


class JoinedToX(Joined):
    def forward(self, X, right):
        return self.layers(torch.cat([X, right], 1))


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("first", ["left", "X"])
def test_inputs_of_a_dict_go_to_the_backbone_by_name(first, weighted, order):
    settings = {"max_epochs": 5, "train_split": ValidSplit(4), "update_order": order}
    settings["iterator_train"] = DataLoader  # in order, as for a dict
    weights = {"sample_weight": WEIGHT} if weighted else {}
    module = Joined() if first == "left" else JoinedToX()
    parts = {first: PARTS["left"], "right": PARTS["right"]}
    net = net_of(module=module, **settings).fit({**parts, **weights}, TARGETS)
    single = net_of(**settings).fit({"X": X, **weights}, TARGETS)
    np.testing.assert_allclose(net.predict(parts), single.predict(X), atol=1e-5)
    assert net.history[-1, "valid_loss"] == pytest.approx(
        single.history[-1, "valid_loss"], rel=1e-4
    )


def test_a_transform_of_batches_wants_an_input_of_that_name():
    message = r"^batch_transform changes the input named X, .* \['left', 'right'\]; "
    with pytest.raises(ValueError, match=message):
        net_of(module=Joined(), batch_transform=torch.neg).fit(PARTS, TARGETS)


@pytest.mark.parametrize("inputs", [torch.zeros(2, 4), {"X": torch.zeros(2, 4)}])
def test_batches_of_a_loader_go_to_the_device(inputs):
    given, targets = _as_batch((inputs, torch.zeros(2)), "meta")
    assert given["X"].device.type == targets.device.type == "meta"
    assert targets.shape == (2, 1)
