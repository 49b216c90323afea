"""Files: what comes back is the same to the bit; no code runs that isn't trusted."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import make_scorer, mean_squared_error
from skorch.callbacks import GradientNormClipping
from small_models import classifier, regressor, small_network
from torch import nn

import sklearn_cfll.persistence
from sklearn_cfll import MLP, KalmanUpdate, TorchBackbone, load, save


class Recurrent(nn.Module):
    """Shared weights, a buffer outside of the state, a function, weak references."""

    def __init__(self, in_features, width=6):
        super().__init__()
        self.first = nn.Linear(in_features, width)
        self.second = nn.Linear(in_features, width)
        self.second.weight = self.first.weight
        self.again = self.first
        self.activation = nn.functional.silu
        self.recurrent = nn.GRU(width, width, batch_first=True)
        shift = torch.linspace(0, 1, width)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, X):
        hidden = self.activation(self.first(X) + self.second(X) + self.shift)
        return self.recurrent(hidden[:, None])[0][:, 0]


class Oscillating(nn.Module):
    """A complex parameter, as Fourier operators have."""

    def __init__(self, in_features):
        super().__init__()
        weight = torch.randn(in_features, 5, dtype=torch.complex64)
        self.weight = nn.Parameter(weight)

    def forward(self, X):
        return torch.view_as_real(torch.exp(1j * (X + 0j) @ self.weight)).flatten(1)


def make_network(in_features, width=6):
    return nn.Sequential(nn.Linear(in_features, width), nn.Tanh())


BACKBONES = {
    "default": None,
    "mlp": MLP(width=8, activation=nn.Softplus, dropout=0.1),
    "class": TorchBackbone(Recurrent, width=5),
    "function": TorchBackbone(make_network, width=5),
    "complex": TorchBackbone(Oscillating),
    "instance": small_network(),
    "instance of a class": Recurrent(4),
    "lazy instance": nn.Sequential(nn.LazyLinear(6), nn.LayerNorm(6)),
}
NAMED = {"Recurrent": Recurrent, "Oscillating": Oscillating}
NAMED = {**NAMED, "make_network": make_network}


@pytest.fixture(scope="module")
def labels(table):
    X, _ = table
    return np.array(["a", "b", "c"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.3)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def reloaded(model, path, **kwargs):
    save(model, path)
    return load(path, **kwargs)


def same_state(first, second):
    """Compare all attributes of two estimators, bit for bit."""
    assert vars(first).keys() == vars(second).keys()
    for name, value in vars(first).items():
        if name not in ("net_", "backbone", "callbacks"):
            assert described(value) == described(vars(second)[name]), name


def described(value):
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tolist()
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value), {name: described(own) for name, own in vars(value).items()}
    if isinstance(value, tuple):
        return tuple(map(described, value))
    if isinstance(value, dict):
        return {name: described(own) for name, own in value.items()}
    return repr(value)


# Round trips ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", BACKBONES)
def test_a_regressor_comes_back_the_same(table, path, kind, dtype):
    X, y = table
    model = regressor(BACKBONES[kind], max_epochs=2, dtype=dtype)
    model.fit(X, np.c_[y, -y])
    again = reloaded(model, path, custom_objects=NAMED)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    same_state(model, again)


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_classifier_comes_back_the_same(table, path, labels, kind):
    X, _ = table
    model = classifier(BACKBONES[kind], max_epochs=2).fit(X, labels)
    again = reloaded(model, path, custom_objects=NAMED)
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.predict(X).tolist() == model.predict(X).tolist()
    same_state(model, again)


@pytest.mark.parametrize("kind", BACKBONES)
def test_file_pickle_and_clone_train_alike(table, path, kind):
    X, y = table
    model = regressor(BACKBONES[kind], max_epochs=2).fit(X, y)
    expected = model.predict(X)
    again = reloaded(model, path, custom_objects=NAMED)
    unpickled = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(unpickled.predict(X), expected)
    for other in (again, clone(again), unpickled, clone(model)):
        np.testing.assert_array_equal(other.fit(X, y).predict(X), expected)


@pytest.mark.parametrize(
    "classes",
    [[3, 5], [False, True], ["no", "yes"], [1.0, 2.0, 4.0], np.array(["x", 7], object)],
    ids=["ints", "bools", "strings", "floats", "mixed objects"],
)
def test_labels_keep_their_kind(table, path, classes):
    X, _ = table
    names = np.asarray(classes)
    if names.dtype == object:
        names = np.array(["x", "zz"], dtype=object)
    y = names[np.arange(len(X)) % len(names)]
    model = classifier(max_epochs=1).fit(X, y)
    again = reloaded(model, path)
    assert again.classes_.dtype == model.classes_.dtype
    assert again.predict(X).dtype == model.predict(X).dtype
    assert again.classes_.tolist() == model.classes_.tolist()


def test_names_of_columns_and_history_come_back(table, path):
    X, y = table
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    model = regressor(max_epochs=3, warm_start=True).fit(frame, y)
    again = reloaded(model, path)
    assert again.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert again.history_[:, "train_loss"] == model.history_[:, "train_loss"]
    assert again.fit(frame, y).n_iter_ == 6
    np.testing.assert_array_equal(
        again.predict(frame), model.fit(frame, y).predict(frame)
    )


def test_parameters_of_every_kind_come_back(table, path):
    X, y = table
    params = {
        "alpha": np.array([0.1]),
        "prox": (2.0, 50.0),
        "optimizer": torch.optim.RAdam,
        "optimizer_params": {"betas": (0.8, 0.9)},
        "lr": np.float64(0.01),
        "net_params": {"head_update": KalmanUpdate()},
        "callbacks": [("clip", GradientNormClipping(2.0))],
        "scoring": make_scorer(mean_squared_error, greater_is_better=False),
        "random_state": np.random.RandomState(3),
        "max_epochs": 2,
    }
    model = regressor(**params).fit(X, y, X_val=X, y_val=y)
    trusted = ["skorch.callbacks", "sklearn.metrics"]
    again = reloaded(model, path, trusted=trusted)
    for name, value in model.get_params(deep=False).items():
        if name not in ("backbone", "callbacks", "random_state", "alpha"):
            assert described(getattr(again, name)) == described(value), name
    assert again.callbacks[0][1].gradient_clip_value == 2.0
    np.testing.assert_array_equal(again.alpha, model.alpha)
    state = again.random_state.randint(1000, size=5)
    assert state.tolist() == model.random_state.randint(1000, size=5).tolist()


OTHERS = {
    "optimizer": {"optimizer": "lbfgs", "weight_decay": 0.1},
    "argument of the optimizer": {"optimizer_params": {"momentum": 0.5}},
    "ridges": {"alpha": [1.0, 2.0]},
    "pull": {"prox": 0},
    "callbacks": {"callbacks": [3]},
    "argument of the net": {"net_params": {"lr": 0.1}},
}


@pytest.mark.parametrize("params", OTHERS.values(), ids=OTHERS)
def test_parameters_that_were_changed_after_the_fit_come_back(table, path, params):
    X, y = table
    model = regressor(max_epochs=2).fit(X, y).set_params(**params)
    again = reloaded(model, path)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert {name: again.get_params()[name] for name in params} == params
    with pytest.raises((TypeError, ValueError)):
        again.fit(X, y)
    settled = regressor(max_epochs=2).get_params()
    again.set_params(**{name: settled[name] for name in params})
    np.testing.assert_array_equal(again.fit(X, y).predict(X), model.predict(X))


def double_the_second(targets, sample_weight):
    return torch.tensor([1.0, 2.0]).to(targets).expand_as(targets)


def test_weights_of_outputs_serve_further_rows_after_loading(table, path):
    X, y = table
    params = {"net_params": {"output_weight": double_the_second}, "max_epochs": 2}
    Y = np.c_[y, y**2]
    model = regressor(dtype="float64", **params).fit(X[:90], Y[:90])
    again = reloaded(model, path, trusted=["test_persistence"])
    for one in (model, again):
        one.partial_fit(X[90:], Y[90:])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_a_loaded_estimator_streams_forgets_and_takes_new_targets(table, path):
    X, y = table
    model = regressor(early_stopping=False, dtype="float64").fit(X[:90], y[:90])
    again = reloaded(model, path)
    for one in (model, again):
        one.partial_fit(X[90:], y[90:]).forget(X[:10], y[:10])
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    both = [one.refit_head(X, np.c_[y, y**2]).predict(X) for one in (model, again)]
    np.testing.assert_array_equal(*both)


def test_shared_weights_are_shared_again(table, path):
    model = regressor(Recurrent(4), max_epochs=1).fit(*table)
    backbone = reloaded(model, path, backbone=Recurrent).backbone_
    assert backbone.second.weight is backbone.first.weight
    assert backbone.again is backbone.first
    assert {name for name, _ in backbone.named_parameters()} == {
        name for name, _ in model.backbone_.named_parameters()
    }


def test_global_random_numbers_are_left_as_they_were(table, path):
    save(regressor(max_epochs=1).fit(*table), path)
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_holds_no_rows_but_quantiles_of_held_out_errors(path):
    random = np.random.default_rng(0)
    sizes = []
    for n_rows in (2000, 6000):
        X = random.normal(size=(n_rows, 4)).astype(np.float32)
        model = regressor(max_epochs=1, batch_size=100, dtype="float32")
        save(model.fit(X, X[:, 0]), path)
        (held_out,) = model._conformal.scores[0]
        assert held_out.n_rows == n_rows / 10
        assert len(held_out.values) <= 105
        sizes.append(path.stat().st_size - held_out.values.nbytes)
    assert abs(sizes[1] - sizes[0]) < 200


def test_saves_to_one_path_at_a_time_leave_a_whole_file(table, path, monkeypatch):
    both_written = threading.Barrier(2, timeout=30)

    def wait_for_the_other(*args):
        save_file(*args)
        both_written.wait()

    monkeypatch.setattr(sklearn_cfll.persistence, "save_file", wait_for_the_other)
    models = [regressor(MLP(width=w), max_epochs=1).fit(*table) for w in (4, 64)]
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(save, model, path) for model in models]:
            done.result()
    assert load(path).backbone.width in (4, 64)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_any_other(table, path):
    model = regressor(max_epochs=1).fit(*table)
    save(model, path)
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    save(model, path)
    assert path.stat().st_mode & 0o777 == 0o640


# What isn't trusted ------------------------------------------------------------------


def test_a_class_of_the_users_own_must_be_passed(table, path):
    model = regressor(TorchBackbone(Recurrent, width=5), max_epochs=1).fit(*table)
    save(model, path)
    message = r"needs test_persistence:Recurrent, which is not among .* pass it in"
    with pytest.raises(ValueError, match=message):
        load(path)
    again = load(path, backbone=Recurrent)
    assert again.backbone.get_params() == {"factory": Recurrent, "width": 5}
    again = load(path, trusted=["test_persistence."])
    np.testing.assert_array_equal(again.predict(table[0]), model.predict(table[0]))


def rewrite(path, change):
    """Change a file's description and set its checksum right, as an attacker does."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = json.loads(metadata["state"])
    change(state)
    text = json.dumps(state)
    digest = sklearn_cfll.persistence._digest(text, tensors)
    save_file(tensors, path, {**metadata, "state": text, "sha256": digest})


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "sklearn_cfll.persistence:load",
        "sklearn_cfll.persistence:Path",
        "sklearn_cfll.persistence:os.system",
        "torch.nn.modules.module:warnings.warn",
        "torch.nn.functional:importlib.import_module",
        "torch:load",
        "torch:tanh",
        "torch.nn.functional:_add_docstr",
        "skorch.callbacks.training:Checkpoint",
        "test_persistence_evil:Recurrent",
    ],
)
def test_no_other_code_is_reached(table, path, name):
    save(regressor(max_epochs=1).fit(*table), path)

    def change(state):
        state["state"]["dict"].append(["extra", {"name": name}])

    rewrite(path, change)
    with pytest.raises(ValueError, match="is not among what may be imported"):
        load(path, trusted=["test_persistence"])


@pytest.mark.parametrize(
    "described",
    [{"evil": 1}, {"object": "torch.nn.functional:silu", "state": []}, {"tensor": "x"}],
    ids=["unknown kind", "object of a function", "no tensor"],
)
def test_a_description_that_makes_no_sense_is_an_error(table, path, described):
    save(regressor(max_epochs=1).fit(*table), path)
    rewrite(path, lambda state: state["state"]["dict"].append(["extra", described]))
    with pytest.raises(ValueError, match=r"the file describes|describes no estimator"):
        load(path)


def test_the_estimator_must_be_one(table, path):
    save(regressor(max_epochs=1).fit(*table), path)
    rewrite(path, lambda state: state.update(estimator="sklearn_cfll.mlp:MLP"))
    with pytest.raises(ValueError, match=r"the file names sklearn_cfll.mlp:MLP, no"):
        load(path)


# Files that aren't whole --------------------------------------------------------------


@pytest.fixture
def saved(table, path):
    save(regressor(max_epochs=1).fit(*table), path)
    return path


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_changed_byte_is_noticed(saved, place):
    content = bytearray(saved.read_bytes())
    content[int(place * len(content))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"was changed since|no safetensors file"):
        load(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_cut_short_is_noticed(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="no safetensors file, or is cut short"):
        load(saved)


def test_files_of_others_are_noticed(tmp_path):
    foreign = tmp_path / "model.pkl"
    foreign.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="no safetensors file"):
        load(foreign)
    foreign = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(3)}, foreign)
    with pytest.raises(ValueError, match=r"not one that sklearn_cfll\.save wrote"):
        load(foreign)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("device", ["cuda:99", "hpu", "gpu", "meta"])
def test_a_device_that_is_not_there_is_named_in_load(saved, device):
    message = rf"\Adevice='{device}' is not available here \(.+\); use device='auto' or"
    with pytest.raises(ValueError, match=message):
        load(saved, device=device)


@pytest.mark.parametrize("device", ["cuda:99", "hpu"])
def test_a_pickle_from_a_device_that_is_not_there_predicts_on_the_cpu(table, device):
    model = regressor(max_epochs=1).fit(*table)
    model.set_params(device=device)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(table[0]), model.predict(table[0]))


def test_a_newer_format_is_refused(saved):
    tensors = load_file(saved)
    with safe_open(saved, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, saved, {**metadata, "version": "2"})
    with pytest.raises(ValueError, match="has version '2' of the format, where 1 is"):
        load(saved)


# What can't be saved ------------------------------------------------------------------


def test_only_fitted_estimators_are_saved(table, path):
    with pytest.raises(NotFittedError):
        save(regressor(), path)
    with pytest.raises(TypeError, match="takes a CFLLRegressor, a CFLLClassifier or a"):
        save(LinearRegression().fit(*table), path)


def test_what_can_not_be_described_is_named(table, path):
    saved = regressor(max_epochs=1).fit(*table)
    save(saved, path)
    content = path.read_bytes()
    hooked = small_network()
    hooked[0].register_forward_hook(lambda *args: None)
    model = regressor(hooked, max_epochs=1).fit(*table)
    with pytest.raises(TypeError, match=r"backbone\.0|it has hooks"):
        save(model, path)
    weighted = small_network()
    nn.utils.parametrizations.spectral_norm(weighted[0])
    model = regressor(TorchBackbone(lambda: weighted), max_epochs=1).fit(*table)
    with pytest.raises(TypeError, match="ParametrizedLinear can't be found"):
        save(model, path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(table, tmp_path):
    model = regressor(max_epochs=1).fit(*table)
    message = (
        rf"\Athere is no folder {re.escape(str(tmp_path / 'no'))}; make it first\.\Z"
    )
    with pytest.raises(FileNotFoundError, match=message):
        save(model, tmp_path / "no" / "model.safetensors")
