"""Networks that write to their input, as torch's in-place layers do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_models import regressor, small_network
from torch import nn

from sklearn_cfll import CFLLIVRegressor, TorchBackbone


class Shift(nn.Module):
    """Shifts and scales what it is given, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.layer = in_place, nn.Linear(4, 16)

    def forward(self, X):
        X = X.sub_(0.5).mul_(0.5) if self.in_place else (X - 0.5) * 0.5
        return self.layer(X).tanh()


def shifting(in_place):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Shift(in_place)


WAYS = {
    "batches": {},
    "full batch": {"batch_size": "full"},
    "backbone first": {"update_order": "backbone_first"},
    "line search": {"optimizer": "lbfgs", "batch_size": "full", "max_epochs": 5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_stay_as_they_are(table, way, dtype):
    X, y = (array.astype(dtype) for array in table)
    rows, held_out = X[:140].copy(), X[140:].copy()
    settings = {"dtype": dtype, "max_epochs": 5, **WAYS[way]}
    fits = [
        regressor(shifting(in_place), **settings).fit(
            rows, y[:140], X_val=held_out, y_val=y[140:]
        )
        for in_place in (True, False)
    ]
    whole = X.copy()
    for method in ("predict", "transform"):
        first, second = (getattr(model, method)(whole) for model in fits)
        assert_array_equal(first, second)
    assert_array_equal(np.concatenate([rows, held_out]), X)
    assert_array_equal(whole, X)


def test_rows_that_are_read_from_a_file_stay_as_they_are(table, tmp_path):
    X, y = table[0].astype(np.float32), table[1]
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = regressor(shifting(True), dtype="float32", max_epochs=2).fit(mapped, y)
    assert_array_equal(model.predict(mapped), model.predict(X))
    assert_array_equal(np.load(tmp_path / "X.npy"), X)


def test_full_batches_are_copied_for_networks_that_write_alone(table):
    class Noting(nn.Module):
        def __init__(self, writes):
            super().__init__()
            self.layer, self.writes, self.memory = nn.Linear(4, 8), writes, []

        def forward(self, X):
            if self.training:
                self.memory.append(X.data_ptr())
            writes = self.writes <= len(self.memory)
            return self.layer(X.mul_(2) if writes else X * 2).tanh()

    for writes, n_own in ((np.inf, 6), (0, 0), (4, 3)):
        X, y = table[0].copy(), table[1]
        model = regressor(Noting(writes), batch_size="full", max_epochs=6).fit(X, y)
        memory = model.backbone_.memory
        own = [pointer == X.ctypes.data for pointer in memory]
        # The first pass, on a copy, tells; so does the first one that writes later.
        assert own == [False] + [True] * n_own + [False] * (len(own) - 1 - n_own)


class Doubling(nn.Module):
    """Doubles its input, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, X):
        return X.mul_(2) if self.in_place else X * 2


def draw_instruments(n_rows, n_instruments):
    random = np.random.default_rng(0)
    Z = random.normal(size=(n_rows, n_instruments))
    confounder = random.normal(size=n_rows)
    x = Z.sum(1) + confounder
    return x, 2 * x - confounder, Z


def test_rows_of_both_stages_stay_as_they_are():
    x, y, Z = draw_instruments(300, 2)
    given = [array.copy() for array in (x[:, None], y, Z)]
    in_place, apart = (
        CFLLIVRegressor(
            TorchBackbone(Doubling, in_place=in_place), max_epochs=2, random_state=0
        ).fit(given[0], given[1], instruments=given[2])
        for in_place in (True, False)
    )
    assert_array_equal(in_place.predict(given[0]), apart.predict(given[0]))
    for array, expected in zip(given, (x[:, None], y, Z), strict=True):
        assert_array_equal(array, expected)


def bent_first(in_place):
    return nn.Sequential(nn.Mish(inplace=in_place), *small_network())


@pytest.mark.parametrize("network", [shifting, bent_first])
@pytest.mark.parametrize("batch_size", ["auto", "full"])
@pytest.mark.parametrize("n_rows", [90, 300])  # of few rows none are held out
@pytest.mark.filterwarnings("ignore:the instruments are weak")
def test_instruments_stay_as_they_are(n_rows, batch_size, network):
    x, y, Z = draw_instruments(n_rows, 4)
    in_place, apart = (
        CFLLIVRegressor(
            instrument_backbone=network(way),
            batch_size=batch_size,
            max_epochs=3,
            random_state=0,
        ).fit(x[:, None], y, instruments=Z)
        for way in (True, False)
    )
    for one, other in zip(
        in_place.predict(x[:, None], return_std=True),
        apart.predict(x[:, None], return_std=True),
        strict=True,
    ):
        assert_allclose(one, other)
    found, expected = (
        model.diagnostics_["first_stage"]["x0"] for model in (in_place, apart)
    )
    assert_allclose(found["partial_r2"], expected["partial_r2"])
