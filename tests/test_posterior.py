"""The head's posterior equals the dense formulas of Bayesian linear regression."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from small_models import draw

from sklearn_cfll.functional import (
    HeadPosterior,
    RidgePath,
    effective_dof,
    fit_noise,
    log_evidence,
)
from sklearn_cfll.functional.paths import moments_of, path_of
from sklearn_cfll.functional.posterior import noise_left

SHAPES = pytest.mark.parametrize(
    ("n_rows", "n_features"), [(40, 7), (9, 15)], ids=["tall", "wide"]
)
ALPHA = 0.05
ALPHAS = torch.tensor([0.01, 0.3, 7.0], dtype=torch.float64)


def close(actual, expected, tolerance=1e-9):
    actual, expected = (torch.as_tensor(np.asarray(v)) for v in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def problem(n_rows, n_features, *, weighted=False):
    """Features, targets and weights, whose mean is one."""
    weight = draw(n_rows, seed=3).abs() + 0.1 if weighted else torch.ones(n_rows)
    weight = (weight / weight.mean()).double()
    return draw(n_rows, n_features) * 3 + 1, draw(n_rows, 3, seed=1), weight


def dense_covariance(features, weight, alpha, others):
    """Invert the whole precision matrix of weights and bias, noise one."""
    n_features = features.shape[1]
    path = path_of(moments_of(features, features[:, :1], weight))
    ridge = weight.sum() * alpha * path.energy
    rows = torch.cat([features, torch.ones(len(features), 1).double()], 1)
    precision = rows.T @ (weight[:, None] * rows)
    precision += float(ridge) * torch.eye(n_features + 1).double()
    precision[-1, -1] = weight.sum()  # the bias is free
    others = torch.cat([others, torch.ones(len(others), 1).double()], 1)
    return others @ torch.linalg.inv(precision) @ others.T


@SHAPES
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("alpha", [ALPHA, ALPHAS], ids=["one ridge", "three"])
def test_covariances_are_those_of_the_dense_bayesian_formula(
    n_rows, n_features, weighted, alpha
):
    features, targets, weight = problem(n_rows, n_features, weighted=weighted)
    posterior = HeadPosterior.of(path_of(moments_of(features, targets, weight)), alpha)
    others = draw(6, n_features, seed=2)
    covariance = posterior.covariance(others)
    alphas = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1)
    assert covariance.shape == (6, 6, len(alphas))
    for i, one in enumerate(alphas):
        close(covariance[..., i], dense_covariance(features, weight, one, others))
        assert torch.linalg.eigvalsh(covariance[..., i]).min() > -1e-12
    close(covariance, covariance.transpose(0, 1), 1e-14)
    diagonal = covariance.diagonal().T
    close(posterior.leverage(others), diagonal, 1e-12)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_means_and_covariances_are_a_gaussian_process_on_the_features(weighted):
    features, targets, weight = problem(40, 7, weighted=weighted)
    path = RidgePath(moments_of(features, targets, weight))
    noise = 0.3
    prior = noise / float(weight.sum() * ALPHA * path.energy)
    # With weighted features centred the bias is independent of the weights; its flat
    # prior is a constant kernel of great variance.
    kernel = ConstantKernel(prior, "fixed") * DotProduct(0.0, "fixed")
    process = GaussianProcessRegressor(
        kernel, alpha=noise / weight.numpy(), optimizer=None
    )
    mean = weight @ features / weight.sum()
    target_mean = weight @ targets / weight.sum()
    others = draw(6, 7, seed=2)
    process.fit((features - mean).numpy(), (targets - target_mean).numpy())
    predicted, covariance = process.predict((others - mean).numpy(), return_cov=True)
    bias = noise / float(weight.sum())
    posterior = HeadPosterior.of(path, ALPHA)
    close(noise * posterior.covariance(others)[..., 0], covariance[..., 0] + bias)
    actual = path.predict(path.project(others), ALPHA)
    close(actual, predicted + target_mean.numpy())


def test_outputs_that_weigh_rows_their_own_way_have_a_posterior_each():
    features, targets, _ = problem(40, 7)
    weights = draw(40, 3, seed=4).abs() + 0.1
    path = path_of(moments_of(features, targets, weights))
    posterior = HeadPosterior.of(path, ALPHAS)
    others = draw(6, 7, seed=2)
    together = posterior.covariance(others)
    normal = draw(8, 3, 5, seed=5)
    deviations = posterior.deviations(others, normal)
    for i in range(3):
        alone = path_of(moments_of(features, targets[:, [i]], weights[:, i]))
        own = HeadPosterior.of(alone, ALPHAS[i])
        close(together[..., i], own.covariance(others)[..., 0])
        close(posterior.leverage(others)[:, i], own.leverage(others)[:, 0])
        expected = own.deviations(others, normal[:, [i]])[:, 0]
        close(deviations[:, i], expected)
        close(effective_dof(path, ALPHAS)[i], effective_dof(alone, ALPHAS[i])[0])
        evidence = log_evidence(path, ALPHAS, ALPHAS)[i]
        close(evidence, log_evidence(alone, ALPHAS[i], ALPHAS[i])[0])


@pytest.mark.parametrize("alpha", [ALPHA, ALPHAS], ids=["one ridge", "three"])
def test_drawn_heads_have_the_posterior_covariance(alpha):
    features, targets, weight = problem(40, 7)
    posterior = HeadPosterior.of(path_of(moments_of(features, targets, weight)), alpha)
    others = draw(6, 7, seed=2)
    # Each normal number in turn is one: the outer products sum to the covariance.
    normal = torch.eye(8).double()[:, None].expand(8, 3, 8)
    root = posterior.deviations(others, normal)
    covariance = torch.einsum("iks,jks->ijk", root, root)
    expected = posterior.covariance(others)
    close(covariance, expected.expand(6, 6, 3))


@SHAPES
def test_variance_shrinks_with_more_rows(n_rows, n_features):
    features, targets, _ = problem(n_rows, n_features)
    others = draw(6, n_features, seed=2)
    path = path_of(moments_of(features, targets))
    doubled = path_of(path.moments.merge(path.moments))
    once, twice = (HeadPosterior.of(p, ALPHA).leverage(others) for p in (path, doubled))
    close(twice, once / 2)


@SHAPES
def test_degrees_of_freedom_are_the_sum_of_the_leverages(n_rows, n_features):
    features, targets, weight = problem(n_rows, n_features, weighted=True)
    path = path_of(moments_of(features, targets, weight))
    leverage = HeadPosterior.of(path, ALPHAS).leverage(features)
    close(effective_dof(path, ALPHAS), weight @ leverage)


def test_degrees_of_freedom_without_ridge_are_the_rank_and_the_bias():
    features, targets, _ = problem(40, 7)
    features[:, 3] = features[:, 2]
    degrees = effective_dof(path_of(moments_of(features, targets)), 0.0)
    close(degrees, [7.0])


@SHAPES
@pytest.mark.parametrize("alpha", [ALPHA, ALPHAS], ids=["one ridge", "three"])
def test_evidence_is_the_density_of_the_contrasts(n_rows, n_features, alpha):
    features, targets, _ = problem(n_rows, n_features)
    path = path_of(moments_of(features, targets))
    noise = torch.tensor([0.5, 1.0, 2.0]).double()
    evidence = log_evidence(path, alpha, noise)
    # Rows of an orthonormal basis of all that is orthogonal to the constant one.
    basis = np.linalg.svd(np.ones((1, n_rows)))[2][1:]
    alphas = torch.as_tensor(alpha, dtype=torch.float64).expand(3)
    for i in range(3):
        prior = noise[i] / (n_rows * alphas[i] * path.energy)
        identity = torch.eye(n_rows).double()
        covariance = prior * features @ features.T + noise[i] * identity
        contrasts = multivariate_normal(cov=basis @ covariance.numpy() @ basis.T)
        close(evidence[i], contrasts.logpdf(basis @ targets[:, i].numpy()))


def test_evidence_takes_integer_weights_as_repeated_rows():
    features, targets, _ = problem(40, 7)
    counts = torch.arange(40) % 3 + 1
    weighted = path_of(moments_of(features, targets, counts.double()))
    repeated = [values.repeat_interleave(counts, 0) for values in (features, targets)]
    expected = log_evidence(path_of(moments_of(*repeated)), ALPHA, 0.7)
    close(log_evidence(weighted, ALPHA, 0.7), expected)


def test_a_flat_prior_has_no_evidence():
    path = path_of(moments_of(*problem(40, 7)[:2]))
    assert log_evidence(path, 0.0, 1.0).tolist() == [-math.inf] * 3


# Noise ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_fit_finds_noise_and_scale_that_errors_were_drawn_with(scale):
    leverage = draw(20_000, 1, seed=6).square()
    noise = torch.tensor([0.5, 2.0]).double()
    spread = (noise * (1 + scale * leverage)).sqrt()
    fitted, found = fit_noise(spread * draw(20_000, 2, seed=7), leverage)
    # Scales lie 10 ** (1 / 4) apart; the standard error of a variance is 1 per cent.
    assert found == pytest.approx(scale, rel=0.8)
    # Where leverages rule the variance, the noise alone is known less well.
    near = pytest.approx(noise.tolist(), rel=0.1 if scale > 1 else 0.05)
    assert fitted.tolist() == near


def test_with_equal_leverages_the_scale_is_the_ridge_models():
    residual, leverage = draw(30, 2), torch.full((30, 1), 0.2, dtype=torch.float64)
    noise, scale = fit_noise(residual, leverage)
    assert scale == 1
    close(noise, residual.square().mean(0) / 1.2)


def test_the_fit_takes_integer_weights_as_repeated_rows_and_ignores_their_unit():
    residual, leverage = draw(50, 2), draw(50, 1, seed=8).square()
    counts = torch.arange(50) % 3
    noise, scale = fit_noise(residual, leverage, 1e-6 * counts.double())
    repeated = [v.repeat_interleave(counts, 0) for v in (residual, leverage)]
    expected, expected_scale = fit_noise(*repeated)
    close(noise, expected)
    assert scale == expected_scale


def test_an_output_without_any_rows_has_the_noise_of_its_targets():
    weight = torch.ones(30, 2).double()
    weight[:, 1] = 0
    noise, _ = fit_noise(draw(30, 2), draw(30, 1, seed=8).square(), weight)
    alone, _ = fit_noise(draw(30, 2)[:, :1], draw(30, 1, seed=8).square())
    # The sums over the rows are by another product, which rounds otherwise.
    assert noise.tolist() == pytest.approx([alone.item(), 1.0], rel=1e-14)


@pytest.mark.parametrize("n_rows", [40, 5], ids=["many rows", "few rows"])
def test_the_noise_that_is_left_is_each_outputs_own(n_rows):
    features, targets, _ = problem(n_rows, 7)
    weight = draw(n_rows, 3, seed=3).abs() + 0.1
    moments = moments_of(features, targets, weight)
    # Weights are one in the mean over all outputs, not for each of them.
    moments = moments.scaled(n_rows / float(moments.weight_sum))
    path = path_of(moments)
    head, bias = path.solve(1e-14)
    left = noise_left(path, 1e-14, head, bias)
    for output, part in enumerate(moments.parts):
        own = path_of(part), 1e-14, head[:, [output]], bias[[output]]
        close(left[[output]], noise_left(*own))
        if n_rows < 7 and part.weight_sum < n_rows:
            close(left[[output]], part.error_of_mean)
    sums = [float(part.weight_sum) for part in moments.parts]
    assert min(sums) < n_rows - 0.1 < n_rows + 0.1 < max(sums)


def test_rows_on_a_plane_leave_a_noise_that_can_be_divided_by():
    features, _, weight = problem(40, 7)
    targets = features @ draw(7, 2, seed=9)
    path = path_of(moments_of(features, 0 * targets, weight))
    assert noise_left(path, 0.1, *path.solve(0.1)).tolist() == [1e-16, 1e-16]
    path = path_of(moments_of(features, targets, weight))
    assert (noise_left(path, 0.0, *path.solve(0.0)) >= 1e-16).all()


def test_errors_of_zero_leave_a_noise_that_can_be_divided_by():
    noise, _ = fit_noise(torch.zeros(30, 1).double(), draw(30, 1).square())
    assert noise.item() == 1e-16
