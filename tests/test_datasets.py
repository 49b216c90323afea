"""Simulated demand: its formulas, and the moments that they imply."""

import math
import re
import sys

import numpy as np
import pytest

from sklearn_cfll.datasets import demand_grid, make_demand, structural_demand


def season(t):
    return 2 * ((t - 5) ** 4 / 600 + math.exp(-4 * (t - 5) ** 2) + t / 10 - 2)


def demand(p, t, s):
    return 100 + (10 + p) * s * season(t) - 2 * p


@pytest.fixture(scope="module")
def large():
    return make_demand(200_000, rho=0.7, noise_scale=3.0, random_state=0)


def shocks(data):
    """Solve the equation of the price for what neither cost nor season explains."""
    price, time = data.X[:, 0], data.X[:, 1]
    seasons = np.array([season(t) for t in time])
    return price - 25 - (data.instruments[:, 0] + 3) * seasons


def test_the_structural_part_is_the_formula():
    data = make_demand(50, random_state=1)
    expected = [demand(*row) for row in data.X]
    np.testing.assert_allclose(data.structural, expected, rtol=1e-12)
    np.testing.assert_allclose(structural_demand(data.X), expected, rtol=1e-12)


def test_draws_have_the_moments_of_the_design(large):
    # Five standard errors of a mean over 200,000 rows, or looser for variances.
    cost, shock = large.instruments[:, 0], shocks(large)
    error = (large.y - large.structural) / 3
    for values in (cost, shock, error):
        assert abs(values.mean()) < 0.012
        assert values.std() == pytest.approx(1, abs=0.01)
    _, time, sentiment = large.X.T
    assert time.min() > 0
    assert time.max() < 10
    assert time.mean() == pytest.approx(5, abs=0.04)
    assert time.var() == pytest.approx(100 / 12, rel=0.01)
    values, counts = np.unique(sentiment, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(counts / 200_000, 1 / 7, atol=0.004)


def test_the_error_goes_with_the_price_shock_and_not_with_the_instruments(large):
    error = large.y - large.structural
    assert np.corrcoef(error, shocks(large))[0, 1] == pytest.approx(0.7, abs=0.006)
    for exogenous in (large.instruments[:, 0], large.X[:, 1], large.X[:, 2]):
        assert abs(np.corrcoef(error, exogenous)[0, 1]) < 0.012


@pytest.mark.parametrize("rho", [-1.0, 1.0])
def test_at_the_ends_of_rho_the_error_is_the_shock(rho):
    data = make_demand(30, rho=rho, noise_scale=2.0, random_state=3)
    expected = 2 * rho * shocks(data)
    np.testing.assert_allclose(data.y - data.structural, expected, atol=1e-9)


def test_without_noise_the_sales_are_structural():
    data = make_demand(30, noise_scale=0, random_state=0)
    np.testing.assert_array_equal(data.y, data.structural)


def test_a_seed_gives_the_same_rows_and_noise_scale_the_same_draws():
    one, two = (make_demand(40, random_state=5) for _ in range(2))
    louder = make_demand(40, noise_scale=50, random_state=5)
    other = make_demand(40, random_state=6)
    for name in ("X", "instruments", "y"):
        np.testing.assert_array_equal(one[name], two[name])
        assert not np.array_equal(one[name], other[name])
    np.testing.assert_array_equal(one.X, louder.X)
    expected = 50 * (one.y - one.structural)
    np.testing.assert_allclose(louder.y - louder.structural, expected, atol=1e-9)


def test_frames_hold_the_same_numbers_under_names():
    arrays, frames = (
        make_demand(20, as_frame=as_frame, random_state=0) for as_frame in (False, True)
    )
    assert list(frames.X) == frames.feature_names == ["price", "time", "sentiment"]
    assert list(frames.instruments) == frames.instrument_names == ["cost"]
    assert frames.y.name == "sales"
    assert frames.endogenous == ["price"]
    assert arrays.endogenous == [0]
    turned = frames.X[["time", "price", "sentiment"]]
    np.testing.assert_array_equal(structural_demand(turned), arrays.structural)
    for name in ("X", "instruments", "y"):
        np.testing.assert_array_equal(arrays[name], frames[name].to_numpy())


def test_frames_without_pandas_say_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    message = "as_frame=True needs pandas; install it or pass as_frame=False."
    with pytest.raises(ImportError, match=message):
        make_demand(10, as_frame=True)


def test_the_grid_has_every_combination_and_its_truth():
    X, structural = demand_grid()
    assert X.shape == (20 * 20 * 7, 3)
    assert len(np.unique(X, axis=0)) == len(X)
    steps = [np.unique(column) for column in X.T]
    for found, ends in zip(steps, [(10, 25, 20), (0, 10, 20), (1, 7, 7)], strict=True):
        np.testing.assert_allclose(found, np.linspace(*ends))
    np.testing.assert_allclose(structural, [demand(*row) for row in X], rtol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (5, 2)], ids=["1-D", "two columns"])
def test_columns_that_are_missing_are_named(shape):
    message = (
        f"X has shape {shape} but needs the three columns price, time, sentiment; "
        "pass an array of shape (n_samples, 3)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        structural_demand(np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_samples", 0), ("rho", 1.5), ("noise_scale", -1.0), ("as_frame", "yes")],
)
def test_parameters_out_of_range_are_refused(name, value):
    arguments = {"n_samples": 10} | {name: value}
    with pytest.raises(ValueError, match=f"The '{name}' parameter of make_demand must"):
        make_demand(arguments.pop("n_samples"), **arguments)
