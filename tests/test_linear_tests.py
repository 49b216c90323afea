"""Tests of instruments against brute force, and how they behave under the null."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
import torch
from numpy.testing import assert_allclose
from small_models import draw

from sklearn_cfll.functional.linear_tests import (
    durbin_wu_hausman,
    first_stage,
    overidentification,
)
from sklearn_cfll.functional.projections import (
    n_directions,
    orthonormal,
    projected_sums,
)

N = 60
Z, W = draw(N, 3, seed=1), draw(N, 2, seed=2)
X = Z @ draw(3, 2, seed=3) + W @ draw(2, 2, seed=4) + draw(N, 2, seed=5)
Y = X @ torch.tensor([1.0, -1.0]).double() + draw(N, seed=6)
WEIGHT = draw(N, seed=7).abs() + 0.2


def residuals(target, *columns, weight=None):
    """Least-squares residuals on a constant and columns, by NumPy."""
    parts = [np.ones((N, 1)), *(np.asarray(c).reshape(N, -1) for c in columns)]
    root = np.ones((N, 1)) if weight is None else np.sqrt(np.asarray(weight))[:, None]
    design, target = root * np.hstack(parts), root * np.asarray(target).reshape(N, -1)
    return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_the_first_stage_is_a_regression_with_and_without_instruments(weight):
    found = first_stage(X, Z, W, weight)
    for j in range(2):
        short = np.square(residuals(X[:, j], W, weight=weight)).sum()
        long = np.square(residuals(X[:, j], W, Z, weight=weight)).sum()
        statistic = (short - long) / 3 / (long / (N - 6))
        assert_allclose(found.partial_r2[j], 1 - long / short, rtol=1e-10)
        assert_allclose(found.tests[j].statistic, statistic, rtol=1e-10)
        assert_allclose(found.tests[j].p_value, scipy.stats.f.sf(statistic, 3, N - 6))
        assert found.tests[j][2:] == (3, N - 6)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_a_robust_first_stage_is_that_of_statsmodels(weight):
    spread = (0.2 + Z[:, :1].abs()) * draw(N, 2, seed=5)
    uneven = X + 3 * spread
    found = first_stage(uneven, Z, W, weight, robust=True)
    design = np.column_stack([np.ones(N), W, Z])
    weights = np.ones(N) if weight is None else weight.numpy()
    for j in range(2):
        theirs = sm.WLS(uneven[:, j].numpy(), design, weights).fit(cov_type="HC3")
        theirs = theirs.f_test(np.eye(6)[3:])
        assert_allclose(found.tests[j].statistic, theirs.fvalue, rtol=1e-9)
        assert_allclose(found.tests[j].p_value, theirs.pvalue, rtol=1e-7)
    plain = first_stage(uneven, Z, W, weight)
    assert found.partial_r2 == plain.partial_r2
    assert found.cragg_donald == plain.cragg_donald


def test_a_robust_first_stage_without_errors_is_strong():
    instrument = torch.tensor([[-1.0], [1], [-1], [1]])
    exact = first_stage(2 * instrument, instrument, robust=True)
    assert exact.tests[0].statistic > 1e20


@pytest.mark.parametrize("n_instruments", [1, 8])
def test_irrelevant_instruments_have_an_f_of_one_whatever_the_errors(n_instruments):
    random, found = np.random.default_rng(0), []
    for _ in range(200):
        z = torch.as_tensor(random.normal(size=(100, n_instruments)))
        x = z[:, :1].abs() * torch.as_tensor(random.normal(size=(100, 1)))
        tests = [first_stage(x, z, robust=robust).tests[0] for robust in (False, True)]
        found.append([*(test.statistic for test in tests), tests[1].p_value < 0.1])
    plain, robust, rejected = np.mean(found, 0)
    assert robust == pytest.approx(1.0, abs=0.2)
    assert rejected == pytest.approx(0.1, abs=0.05)
    assert n_instruments > 1 or plain > 2


def test_cragg_and_donald_look_for_the_worst_combination():
    found = first_stage(X, Z, W)
    short, long = residuals(X, W), residuals(X, W, Z)
    covariance = long.T @ long / (N - 6)
    explained = (short.T @ short - long.T @ long) / 3
    values = np.linalg.eigvals(np.linalg.solve(covariance, explained))
    assert_allclose(found.cragg_donald, values.min(), rtol=1e-10)
    assert found.cragg_donald < min(test.statistic for test in found.tests)
    one = first_stage(X[:, :1], Z, W)
    assert_allclose(one.cragg_donald, one.tests[0].statistic)


def test_instruments_that_are_not_enough_are_told_by_cragg_and_donald():
    same = torch.cat([X[:, :1], X[:, :1] + 1e-3 * draw(N, 1, seed=8)], 1)
    found = first_stage(same, Z, W)
    assert found.cragg_donald < 2
    assert min(test.statistic for test in found.tests) > 10


def test_fewer_instruments_than_columns_identify_nothing():
    found = first_stage(X, Z[:, :1], W)
    assert found.cragg_donald == 0
    assert min(test.statistic for test in found.tests) > 0


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_without_controls_there_is_a_constant_still(weight):
    found = first_stage(X[:, :1] + 7, Z, None, weight)
    short = np.square(residuals(X[:, 0], weight=weight)).sum()
    long = np.square(residuals(X[:, 0], Z, weight=weight)).sum()
    assert_allclose(found.partial_r2, 1 - long / short, rtol=1e-10)
    assert found.tests[0].dof_residual == N - 4


def test_columns_that_others_span_count_for_nothing():
    spanned = torch.cat([Z, Z @ draw(3, 2, seed=9), W[:, :1]], 1)
    twice = torch.cat([W, 3 * W + 5], 1)
    plain, found = first_stage(X, Z, W), first_stage(X, spanned, twice)
    assert_allclose(found.partial_r2, plain.partial_r2, rtol=1e-8)
    assert found.tests[0].dof == 3
    assert found.tests[0].dof_residual == N - 6


def test_a_large_mean_hides_nothing():
    far = first_stage(X + 1e5, Z - 1e6, W + 1e6)
    assert_allclose(far.partial_r2, first_stage(X, Z, W).partial_r2, rtol=1e-8)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
def test_hausman_is_the_f_test_of_the_residuals(weight):
    left = torch.as_tensor(X[:, :1] - Z[:, :1])
    found = durbin_wu_hausman(Y, torch.cat([X, W], 1), left, weight)
    short = np.square(residuals(Y, X, W, weight=weight)).sum()
    long = np.square(residuals(Y, X, W, left, weight=weight)).sum()
    statistic = (short - long) / (long / (N - 6))
    assert_allclose(found.statistic, statistic, rtol=1e-10)
    assert_allclose(found.p_value, scipy.stats.f.sf(statistic, 1, N - 6))


def test_hausman_without_residuals_is_not_available():
    assert durbin_wu_hausman(Y, X, X[:, :1] * 0) is None
    assert durbin_wu_hausman(Y, X, X[:, :1] + 1e-12 * Z[:, :1]) is None


def test_sargan_is_r2_of_the_residuals_times_the_rows():
    predicted = torch.as_tensor(np.asarray(X[:, :1]) - residuals(X[:, :1], Z, W))
    errors = torch.as_tensor(residuals(Y, predicted, W)[:, 0])
    found = overidentification(
        errors, torch.cat([predicted, W], 1), torch.cat([Z, W], 1)
    )
    left = np.square(residuals(errors, Z, W)).sum()
    statistic = N * (1 - left / np.square(errors.numpy()).sum())
    assert_allclose(found.statistic, statistic, rtol=1e-10)
    assert found.dof == 2
    assert_allclose(found.p_value, scipy.stats.chi2.sf(statistic, 2))


@pytest.mark.parametrize("robust", [False, True])
def test_under_the_null_p_values_are_uniform(robust):
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        z = torch.as_tensor(random.normal(size=(100, 3)))
        x = z.sum(1, keepdim=True) + torch.as_tensor(random.normal(size=(100, 1)))
        spread = 0.5 + z[:, 0].abs() if robust else 1.0
        e = spread * torch.as_tensor(random.normal(size=100))
        predicted = z @ torch.linalg.lstsq(z, x).solution
        tests = (
            durbin_wu_hausman(x[:, 0] + e, x, x - predicted, robust=robust),
            overidentification(e, predicted, z, robust=robust),
        )
        p_values.append([test.p_value for test in tests])
    share = (np.array(p_values) < 0.1).mean(0)
    assert_allclose(share, 0.1, atol=0.05)


def test_a_basis_spans_its_columns():
    columns = torch.cat([Z, Z[:, :1] - Z[:, 1:2], 0 * Z[:, :1], W], 1)
    basis = orthonormal(columns)
    assert basis.shape == (N, 5)
    assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    assert_allclose(basis @ (basis.T @ columns), columns, atol=1e-12)


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_directions_beyond_a_basis_are_counted(most):
    spanned = torch.cat([W, Z[:, :1], 1e9 * Z[:, :1] + W[:, 1:], Z[:, 1:2]], 1)
    basis = orthonormal(W)
    assert n_directions(spanned, basis, most) == min(2, most)
    assert n_directions(W @ draw(2, 3, seed=9), basis, most) == 0
    assert n_directions(W[:, :0], basis, most) == 0


def test_projected_sums_leave_the_diagonal_out():
    sums = projected_sums(Y, X[:, 0], Z, WEIGHT)
    root = WEIGHT.sqrt()[:, None]
    design = root * torch.cat([torch.ones(N, 1), Z], 1)
    projection = design @ torch.linalg.pinv(design)
    projection -= torch.diag(projection.diagonal())
    for found, rows in zip(sums, (Y, X[:, 0]), strict=True):
        rows = root[:, 0] * rows
        assert_allclose(found, rows @ projection @ rows, rtol=1e-10)


def test_noise_has_no_projected_share_in_the_mean():
    sums = [
        projected_sums(noise, noise, draw(N, 20, seed=i + 500), None)
        for i, noise in enumerate(draw(N, seed=i) for i in range(200))
    ]
    mean = float(torch.stack(sums)[:, 0].mean())
    assert abs(mean) < 3 * float(torch.stack(sums)[:, 0].std()) / 200**0.5
