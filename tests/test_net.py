"""CFLLNet as those who use skorch itself see it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_cfll import MLP, CFLLNet, CFLLRegressor
from sklearn_cfll.losses import Tally

N_ROWS, N_COLUMNS, N_OUTPUTS = 50, 4, 2


@pytest.fixture
def plain():
    random = np.random.default_rng(0)
    X = random.normal(size=(N_ROWS, N_COLUMNS))
    targets = np.column_stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]])
    return X.astype(np.float32), targets.astype(np.float32)


def small_net(**settings):
    torch.manual_seed(0)
    defaults = {
        "module": nn.Sequential(nn.Linear(N_COLUMNS, 16), nn.Tanh()),
        "n_features": 16,
        "n_outputs": N_OUTPUTS,
        "optimizer": torch.optim.SGD,
        "lr": 0.3,
        "max_epochs": 30,
    }
    settings = {**defaults, **settings}
    return CFLLNet(settings.pop("module"), **settings)


@pytest.mark.parametrize("batch_size", [16, 128], ids=["batches", "whole"])
def test_plain_arrays_are_fitted_and_predicted(plain, batch_size):
    X, targets = plain
    net = small_net(batch_size=batch_size).fit(X, targets)
    predictions = net.predict(X)
    assert predictions.shape == targets.shape
    assert 1 - ((predictions - targets) ** 2).mean() / targets.var() > 0.6
    with torch.no_grad():
        expected = net.module_(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(predictions, expected, rtol=1e-5, atol=1e-5)


def test_one_dimensional_targets_are_one_output(plain):
    X, targets = plain
    flat = small_net(n_outputs=1, batch_size=128).fit(X, targets[:, 0])
    column = small_net(n_outputs=1, batch_size=128).fit(X, targets[:, :1])
    assert flat.predict(X).shape == (N_ROWS, 1)
    np.testing.assert_array_equal(flat.predict(X), column.predict(X))


def test_a_data_loader_trains_as_the_batches_in_memory_do(plain):
    X, targets = plain
    settings = {"batch_size": N_ROWS, "max_epochs": 3}
    loaded = small_net(**settings, iterator_train=DataLoader).fit(X, targets)
    own = small_net(**settings).fit(X, targets)
    np.testing.assert_allclose(
        loaded.history[:, "train_loss"], own.history[:, "train_loss"], rtol=1e-4
    )


LOADERS = {
    "trains": {"iterator_train": DataLoader},
    "validates": {"iterator_valid": DataLoader},
    "does both": {"iterator_train": DataLoader, "iterator_valid": DataLoader},
}


@pytest.mark.parametrize("loaders", LOADERS.values(), ids=LOADERS)
def test_a_data_loader_validates_and_predicts_as_the_batches_do(plain, loaders):
    X, targets = plain
    settings = {
        "max_epochs": 2,
        "batch_size": N_ROWS // 2,
        "train_split": ValidSplit(2),
    }
    loaded = small_net(**settings, **loaders).fit(X, targets)
    own = small_net(**settings).fit(X, targets)
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(
            loaded.history[:, name], own.history[:, name], rtol=1e-4
        )
    np.testing.assert_allclose(loaded.predict(X), own.predict(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch_size", [N_ROWS, -1])
def test_a_dataset_needs_no_loader_of_the_users_own(plain, batch_size):
    X, targets = plain
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(targets))
    net = small_net(batch_size=batch_size, max_epochs=3).fit(rows, None)
    own = small_net(batch_size=N_ROWS, max_epochs=3).fit(X, targets)
    np.testing.assert_allclose(net.predict(rows), own.predict(X), rtol=1e-3, atol=1e-4)


def test_one_dimensional_targets_of_a_loader_are_one_output(plain):
    X, targets = plain
    settings = {"n_outputs": 1, "batch_size": N_ROWS, "max_epochs": 3}
    column = small_net(**settings).fit(X, targets[:, :1])
    flat = small_net(**settings, iterator_train=DataLoader).fit(X, targets[:, 0])
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(targets[:, 0]))
    of_dataset = small_net(**settings).fit(rows, None)
    for net in (flat, of_dataset):
        np.testing.assert_allclose(
            net.predict(X), column.predict(X), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("loaders", LOADERS.values(), ids=LOADERS)
def test_loaders_of_an_estimators_net_take_x_in_any_order_in_memory(
    plain, order, loaders
):
    X, targets = np.asarray(plain[0], order=order), plain[1]
    settings = {"max_epochs": 2, "batch_size": 25, "random_state": 0}
    held_out = {"X_val": X[:10], "y_val": targets[:10]}
    model = CFLLRegressor(MLP(width=8), net_params=loaders, **settings)
    losses = model.fit(X, targets, **held_out).history_[:, "valid_loss"]
    other = CFLLRegressor(MLP(width=8), net_params=loaders, **settings)
    other.fit(plain[0], targets, **held_out)
    np.testing.assert_allclose(losses, other.history_[:, "valid_loss"], rtol=1e-9)


def test_a_split_holds_rows_out_and_the_schedules_still_end_where_they_should(plain):
    X, targets = plain
    schedules = {"prox": (0.5, 50.0), "lr_schedule": "cosine"}
    net = small_net(train_split=ValidSplit(2), batch_size=5, **schedules)
    net.fit(X, targets)
    assert net.history[-1, "prox"] == pytest.approx(50.0)
    assert net.history[-1, "lr"] < 0.3 * 0.01
    held_out = np.arange(N_ROWS // 2)  # the first fold, unshuffled
    errors = (net.predict(X)[held_out] - targets[held_out]) ** 2
    assert net.history[-1, "valid_loss"] == pytest.approx(errors.mean(), rel=1e-4)


def test_the_history_holds_what_each_epoch_was(plain):
    net = small_net(batch_size=16, max_epochs=3, prox=(0.5, 50.0)).fit(*plain)
    assert set(net.history[-1]) == {
        "batches",
        "dur",
        "epoch",
        "lr",
        "prox",
        "train_loss",
        "train_loss_best",
        "train_score",
    }
    assert net.history[:, "epoch"] == [1, 2, 3]
    assert net.history[0, "lr"] > net.history[1, "lr"] > net.history[2, "lr"] > 0
    assert net.history[-1, "prox"] == pytest.approx(50.0)
    losses = np.array(net.history[:, "train_loss"])
    np.testing.assert_allclose(net.history[:, "train_score"], 1 - losses)


def test_predictions_are_decoded_by_the_decoder(plain):
    X, targets = plain
    net = small_net(batch_size=128, max_epochs=2).fit(X, targets)
    raw = net.predict(X)
    net.set_params(decode=lambda predictions: 10 * predictions + 1)
    np.testing.assert_allclose(net.predict(X), 10 * raw + 1, rtol=1e-6)


def test_a_module_class_takes_its_parameters_by_skorch_names(plain):
    net = CFLLNet(
        nn.Linear,
        module__in_features=N_COLUMNS,
        module__out_features=3,
        n_features=3,
        n_outputs=N_OUTPUTS,
        max_epochs=2,
        batch_size=128,
    )
    assert clone(net).fit(*plain).predict(plain[0]).shape == (N_ROWS, N_OUTPUTS)
    net.set_params(module__out_features=7, n_features=7).fit(*plain)
    assert net.module_.head.weight.shape == (7, N_OUTPUTS)


def test_partial_fit_goes_on_from_the_trained_head(plain):
    net = small_net(batch_size=128, max_epochs=1, lr=1e-9, prox=1e9).fit(*plain)
    before = net.module_.head.weight.clone()
    net.partial_fit(*plain)
    torch.testing.assert_close(net.module_.head.weight, before, rtol=1e-6, atol=1e-6)
    assert len(net.history) == 2


def test_pickled_nets_predict_alike(plain):
    net = small_net(batch_size=128, max_epochs=2).fit(*plain)
    other = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(other.predict(plain[0]), net.predict(plain[0]))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
def test_the_net_of_an_estimator_is_copied_on_its_own(plain, copied):
    X, targets = plain
    model = CFLLRegressor(MLP(width=8), max_epochs=2).fit(X, targets)
    net = copied(model.net_)
    assert net.module_ is not model.net_.module_
    np.testing.assert_allclose(
        net.module_(torch.from_numpy(X).double()).detach(),
        model.net_.module_(torch.from_numpy(X).double()).detach(),
    )


def test_a_diverging_training_ends_in_an_error_that_names_the_knobs(plain):
    class Explodes(torch.optim.SGD):
        def step(self, closure):
            loss = super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter.data.fill_(torch.nan)
            return loss

    net = small_net(batch_size=128, optimizer=Explodes)
    with pytest.raises(
        FloatingPointError,
        match=r"^training diverged in epoch 7: the loss is nan, after 5 returns to an "
        r"earlier state, each with half the rate; decrease lr \(now 0\.3\), increase "
        r"prox, or scale X\.$",
    ):
        net.fit(*plain)


def test_the_net_prints_nothing(plain, capfd):
    small_net(batch_size=16, max_epochs=2).fit(*plain).predict(plain[0][:16])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("as_weight", [int, float, torch.tensor])
@pytest.mark.parametrize("n_batches", [1, 63, 64, 65, 1000])
def test_a_tally_is_a_weighted_mean_and_holds_few_values(n_batches, as_weight):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(n_batches, generator=generator, dtype=torch.float64)
    weights = [as_weight(number) for number in range(1, n_batches + 1)]
    tally = Tally()
    most = 0
    for value, weight in zip(values, weights, strict=True):
        tally.add(value, weight)
        most = max(most, len(tally._noted))
    expected = np.average(values.numpy(), weights=weights)
    assert tally.mean() == pytest.approx(expected, rel=1e-12)
    assert tally.mean() == pytest.approx(expected, rel=1e-12)  # reading changes nothing
    assert most < 64


class Pairs(torch.utils.data.Dataset):
    """Rows in two parts."""

    def __init__(self, X, targets):
        self.X, self.targets = torch.from_numpy(X), torch.from_numpy(targets)

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return (self.X[index, :2], self.X[index, 2:]), self.targets[index]


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N_COLUMNS, 16)

    def forward(self, X):
        return self.layer(torch.cat(tuple(X), 1)).tanh()


def test_inputs_of_several_tensors_are_trained_on(plain):
    pairs = Pairs(*plain)
    net = small_net(module=Joined()).fit(pairs, None)
    assert net.predict(pairs).shape == plain[1].shape
    assert net.history[-1, "train_loss"] < 0.5 * net.history[0, "train_loss"]
