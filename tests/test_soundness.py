"""Scales of X and y don't matter; awkward tables are fitted; dead units are told."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from small_models import regressor
from torch import nn

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor, TorchBackbone

# Scales -------------------------------------------------------------------------


def predictions(X, y, X_new, **params):
    settings = {"max_epochs": 8, "batch_size": 32, "random_state": 0, **params}
    model = CFLLRegressor(MLP(width=32), **settings).fit(X, y)
    return model.predict(X_new)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [2.0**40, 2.0**-40, 2.0**200, 2.0**-600])
def test_powers_of_two_in_y_scale_predictions_exactly(table, fresh_rows, factor, dtype):
    (X, y), X_new = table, fresh_rows[0]
    plain = predictions(X, y, X_new, dtype=dtype)
    scaled = predictions(X, factor * y, X_new, dtype=dtype)
    assert_array_equal(scaled, factor * plain)


def test_an_output_too_small_to_be_squared_is_fitted_beside_others(table, fresh_rows):
    (X, y), X_new = table, fresh_rows[0]
    Y, factor = np.column_stack([y, X[:, 0] ** 2]), np.array([1.0, 2.0**-600])
    plain = predictions(X, Y, X_new, dtype="float64")
    scaled = predictions(X, factor * Y, X_new, dtype="float64")
    assert_array_equal(scaled, factor * plain)
    assert np.ptp(scaled[:, 1]) > 0


def test_scores_of_targets_too_small_to_be_squared(table):
    X, y = table
    settings = {"max_epochs": 2, "early_stopping": True, "random_state": 0}
    plain, small = (
        CFLLRegressor(MLP(width=8), **settings).fit(X, factor * y)
        for factor in (1, 2.0**-600)
    )
    assert small.score(X, 2.0**-600 * y) == pytest.approx(plain.score(X, y), rel=1e-9)
    scores = small.history_[:, "valid_score"]
    assert_allclose(scores, plain.history_[:, "valid_score"], rtol=1e-9)
    assert small.score(X, -(2.0**-600) * y) < 0


@pytest.mark.parametrize(
    ("scale", "shift"), [(1e8, 1e9), (-3.7, 0.0), (1e-8, 1e-8), (1.0, 1e6)]
)
def test_predictions_follow_the_scale_and_shift_of_y(table, fresh_rows, scale, shift):
    (X, y), X_new = table, fresh_rows[0]
    plain = predictions(X, y, X_new, dtype="float64")
    moved = predictions(X, scale * y + shift, X_new, dtype="float64")
    # y itself is rounded by the shift.
    tolerance = 1e-7 * abs(scale) * y.std()
    assert_allclose(moved, scale * plain + shift, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "scale",
    [
        2.0**20,
        2.0**-20,
        2.0**700,  # 5e+210, whose square overflows
        2.0**-700,
        2.0 ** np.array([300.0, -300, 0, 30]),
        2.0 ** np.array([1000.0, -1000, 0, -400]),
    ],
    ids=["large", "small", "huge", "tiny", "each", "each huge or tiny"],
)
def test_powers_of_two_in_x_change_nothing(table, fresh_rows, scale, dtype):
    (X, y), X_new = table, fresh_rows[0]
    plain = predictions(X, y, X_new, dtype=dtype)
    assert_array_equal(predictions(X * scale, y, X_new * scale, dtype=dtype), plain)


@pytest.mark.parametrize(
    ("scale", "shift"),
    [(1e6, 0.0), (1e-6, 0.0), ([1.0, 1e9, 1e-9, 7.0], [0.0, 1e3, 1.0, 1e4])],
    ids=["large", "small", "each its own"],
)
def test_the_scale_and_shift_of_columns_change_nothing(table, fresh_rows, scale, shift):
    (X, y), X_new = table, fresh_rows[0]
    plain = predictions(X, y, X_new, dtype="float64")
    moved = predictions(X * scale + shift, y, X_new * scale + shift, dtype="float64")
    # A column of 1e-9 beside 1 has seven digits.
    assert_allclose(moved, plain, rtol=0, atol=1e-4 * y.std())


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (
            1e200,
            "float32",
            r"X holds 1e\+200, beyond float32's range; scale X or set "
            r"dtype='float64'\.",
        ),
        (
            [1.0, 1.0, 1e-200, 1e-200],
            "float32",
            r"column 2 of X holds nothing above 1e-200, which float32 takes for "
            r"zero; scale X or set dtype='float64'\.",
        ),
        (
            [1e200, 1e-200, 1.0, 1.0],
            "float64",
            r"backbone Sequential returned features that are not finite for X of shape "
            r"\(2, 4\); scale X or check the backbone's initial weights\.",
        ),
    ],
    ids=["huge", "tiny", "huge and tiny"],
)
def test_a_backbone_that_takes_x_as_it_is_refuses_such_columns(
    table, scale, dtype, message
):
    X, y = table
    X = np.vstack([np.ones(4), X[1:]]) * scale
    backbone = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match=f"^{message}$"):
        regressor(backbone, dtype=dtype).fit(X, y)


def test_a_grid_may_hold_points_that_float32_takes_for_zero(table):
    X, y = table
    fields = X.reshape(-1, 2, 2) * [1.0, 1e-60]
    regressor(nn.Flatten(), dtype="float32", max_epochs=1).fit(fields, y)
    with pytest.raises(ValueError, match=r"^X holds nothing above 9\.\d\de-61, which"):
        regressor(nn.Flatten(), dtype="float32").fit(1e-60 * X.reshape(-1, 2, 2), y)


def test_held_out_rows_may_be_small_where_training_rows_are_not(table):
    X, y = table
    model = regressor(nn.Linear(4, 8), dtype="float32", max_epochs=1)
    model.fit(X, y, X_val=X[:3] * [1.0, 1.0, 1e-200, 0.0], y_val=y[:3])
    assert np.isfinite(model.history_[-1, "valid_loss"])


def test_values_that_float32_hardly_tells_apart_are_told(table):
    X, y = table
    ids = X.copy()
    ids[:, 1] = 10**12 + np.arange(len(X))
    settings = {"max_epochs": 1, "dtype": "float32"}
    message = (
        r"^column 1 of X has a range of 179 near 1e\+12, where float32 has steps of "
        r"1\.2e\+05, so that .* set dtype='float64'\.$"
    )
    with pytest.warns(UserWarning, match=message):
        regressor(TorchBackbone(nn.Linear, out_features=8), **settings).fit(ids, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(TorchBackbone(nn.Linear, out_features=8), **settings).fit(X, y)
        regressor(**settings).fit(ids, y)  # MLP takes X as it is
        settings["dtype"] = "float64"
        own = TorchBackbone(nn.BatchNorm1d, affine=False, track_running_stats=False)
        regressor(own, batch_size="full", **settings).fit(ids, y)
        # Chunks of a stream span less than the stream does.
        ordered = X.copy()
        ordered[:, 2] = 2024 + np.linspace(0, 0.5, len(X))
        own = TorchBackbone(nn.Linear, out_features=8)
        model = regressor(own, max_epochs=1, dtype="float32")
        model.partial_fit(ordered[::2], y[::2]).partial_fit(ordered[90:95], y[90:95])


def test_columns_that_are_lost_beside_the_biases_are_told(table):
    X, y = table
    backbone = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.LayerNorm(32))
    for seed in range(3):
        model = regressor(backbone, dtype="float64", max_epochs=3, random_state=seed)
        with pytest.warns(ConvergenceWarning, match="the same features.*scale X"):
            model.fit(1e-200 * X, y)


# Awkward tables -----------------------------------------------------------------


def awkward_tables(X):
    wide = np.random.default_rng(2).normal(size=(len(X), 3)) @ np.ones((3, 400))
    return {
        "constant columns": np.column_stack([X, np.full((len(X), 3), 0.1)]),
        "duplicated columns": np.tile(X, 3),
        "one column dominates": np.column_stack([1e12 * X[:, ::-1], X]),
        "rank-deficient and wide": np.column_stack([X, X @ np.ones((4, 300)), wide]),
    }


@pytest.mark.parametrize("alpha", ["auto", 1e-12])
@pytest.mark.parametrize("batch_size", [1, 30, "full"])
@pytest.mark.parametrize("name", awkward_tables(np.ones((2, 4))))
def test_awkward_columns_are_fitted(table, name, batch_size, alpha):
    X, y = table
    X = awkward_tables(X)[name]
    epochs = {1: 2, 30: 15, "full": 60}[batch_size]
    model = regressor(alpha=alpha, batch_size=batch_size, max_epochs=epochs).fit(X, y)
    assert model.score(X, y) > (0.25 if "wide" in name else 0.6)


def test_a_last_batch_of_one_row_is_evened_out_or_taken(table):
    X, y = (part[:61] for part in table)
    model = regressor(batch_size=60, max_epochs=60).fit(X, y)
    assert model.score(X, y) > 0.9


def normalised():
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Tanh())


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
@pytest.mark.parametrize(("n_rows", "batch_size"), [(61, 60), (61, 3), (4, 3)])
def test_batch_norm_meets_no_batch_of_one_row(table, n_rows, batch_size, order):
    X, y = (part[:n_rows] for part in table)
    settings = {"batch_size": batch_size, "update_order": order}
    model = regressor(normalised(), max_epochs=10, **settings).fit(X, y)
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("order", ["head_first", "backbone_first"])
@pytest.mark.parametrize(("n_rows", "batch_size"), [(61, 2), (60, 1)])
def test_batch_norm_with_a_batch_of_one_row_is_an_error(
    table, n_rows, batch_size, order
):
    X, y = (part[:n_rows] for part in table)
    model = regressor(normalised(), batch_size=batch_size, update_order=order)
    message = (
        r"^the backbone raised ValueError for a batch of one row: Expected more than 1 "
        r"value per channel when training, got input size torch\.Size\(\[1, 32\]\); "
        rf"set batch_size to 3 or more \(now {batch_size}\), which leaves no such "
        r"batch, or take LayerNorm in place of BatchNorm\.$"
    )
    with pytest.raises(ValueError, match=message):
        model.fit(X, y)


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_two_rows_are_interpolated(batch_size):
    X, y = np.array([[0.0], [1.0]]), np.array([1e9, 1e9 + 1e8])
    settings = {"max_epochs": 5, "batch_size": batch_size, "random_state": 0}
    model = CFLLRegressor(alpha=1e-12, **settings).fit(X, y)
    assert_allclose(model.predict(X), y, atol=1e3, rtol=0)
    labels = CFLLClassifier(**settings).fit(X, ["a", "b"]).predict(X)
    assert labels.tolist() == ["a", "b"]


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
def test_five_thousand_classes():
    n_classes = 5000
    y = np.repeat(np.arange(n_classes), 2)[: n_classes + 500]
    y = np.append(y, np.arange(n_classes - 2250, n_classes))
    X = np.random.default_rng(0).normal(size=(len(y), 8))
    model = CFLLClassifier(MLP(width=16), max_epochs=1, random_state=0).fit(X, y)
    probabilities = model.predict_proba(X[:20])
    assert probabilities.shape == (20, n_classes)
    assert_allclose(probabilities.sum(1), 1)


# Dead units ---------------------------------------------------------------------


def dead_network():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    nn.init.constant_(network[0].bias, -1e6)
    return network


@pytest.mark.parametrize(
    "backbone", [dead_network(), MLP(width=1)], ids=["ReLU", "MLP"]
)
def test_dead_features_are_told_and_predict_the_mean(table, backbone):
    X, y = table
    model = regressor(backbone, max_epochs=2)
    with pytest.warns(
        ConvergenceWarning,
        match=r"^the trained backbone gives all training rows the same features, so "
        r"that predictions are the mean of y; its units may be dead, or it may end in "
        r"a LayerNorm of one feature: decrease lr, scale X, widen the backbone, or "
        r"choose an activation other than ReLU\.$",
    ):
        model.fit(X, y)
    assert_allclose(model.predict(X), y.mean(), rtol=1e-6)


def test_an_x_that_is_constant_is_no_dead_network(table):
    model = regressor(max_epochs=2).fit(np.full((60, 3), 0.1), table[1][:60])
    assert_allclose(model.predict([[0.1] * 3]), table[1][:60].mean())
