"""Moments that merge, and the ridge path that is built on them."""

import numpy as np
import pytest
import torch

from sklearn_cfll.functional import Moments, RidgePath, feature_energy, solve_ridge


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "features": draw(40, 7) * 3 + 1,
        "targets": draw(40, 3),
        "sample_weight": draw(40).abs() + 0.1,
    }


def moments_of(problem, rows=slice(None)):
    return Moments.of(*(values[rows] for values in problem.values()))


def assert_same_moments(actual, expected, tolerance=1e-10):
    for name, value in vars(expected).items():
        close(getattr(actual, name), value, tolerance)


def test_what_moments_are_of_is_left_as_it_is(problem):
    before = {name: values.clone() for name, values in problem.items()}
    moments_of(problem)
    assert all(torch.equal(problem[name], before[name]) for name in problem)


def test_moments_are_the_weighted_centred_sums(problem):
    moments = moments_of(problem)
    features, targets = problem["features"].numpy(), problem["targets"].numpy()
    weights = problem["sample_weight"].numpy()
    mean = np.average(features, axis=0, weights=weights)
    target_mean = np.average(targets, axis=0, weights=weights)
    gram = (features - mean).T @ np.diag(weights) @ (features - mean)
    cross = (features - mean).T @ np.diag(weights) @ (targets - target_mean)
    square = weights @ (targets - target_mean) ** 2
    np.testing.assert_allclose(moments.weight_sum, weights.sum())
    np.testing.assert_allclose(moments.feature_mean, mean)
    np.testing.assert_allclose(moments.target_mean, target_mean)
    np.testing.assert_allclose(moments.gram, gram, atol=1e-10)
    np.testing.assert_allclose(moments.cross, cross, atol=1e-10)
    np.testing.assert_allclose(moments.target_square, square)


@pytest.mark.parametrize("cut", [1, 13, 39], ids=lambda cut: f"cut at {cut}")
def test_moments_of_two_parts_merge_into_those_of_the_whole(problem, cut):
    first = moments_of(problem, slice(cut))
    second = moments_of(problem, slice(cut, None))
    assert_same_moments(first.merge(second), moments_of(problem))
    assert_same_moments(second.merge(first), moments_of(problem))


def test_moments_take_integer_weights_as_repeated_rows(problem):
    counts = torch.arange(40) % 4
    weighted = Moments.of(problem["features"], problem["targets"], counts.double())
    repeated = Moments.of(
        problem["features"].repeat_interleave(counts, 0),
        problem["targets"].repeat_interleave(counts, 0),
    )
    assert_same_moments(weighted, repeated)


def test_a_part_without_weight_adds_nothing(problem):
    whole = moments_of(problem)
    problem["sample_weight"] = torch.zeros(40).double()
    empty = moments_of(problem)
    assert_same_moments(whole.merge(empty), whole)
    assert_same_moments(empty.merge(whole), whole)


def test_moments_of_data_far_from_zero_keep_their_digits(problem):
    near = moments_of(problem)
    problem["features"] = problem["features"] + 2.0**30
    problem["targets"] = problem["targets"] - 2.0**30
    far = moments_of(problem, slice(7)).merge(moments_of(problem, slice(7, None)))
    # The offset costs 30 of the numbers' 52 bits; squares lose no more than that.
    torch.testing.assert_close(far.gram, near.gram, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(far.cross, near.cross, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        far.target_square, near.target_square, rtol=1e-5, atol=1e-5
    )


def test_moments_know_the_energy(problem):
    expected = feature_energy(problem["features"], problem["sample_weight"])
    close(moments_of(problem).energy, expected)


# The ridge path -------------------------------------------------------------------

ALPHAS = pytest.mark.parametrize(
    "alpha",
    [0.0, 0.05, torch.tensor([0.01, 0.3, 7.0], dtype=torch.float64)],
    ids=["no ridge", "one ridge", "ridge per output"],
)


@ALPHAS
def test_the_path_gives_the_ridge_solution_of_every_alpha(problem, alpha):
    weight, bias = RidgePath(moments_of(problem)).solve(alpha)
    features, targets, sample_weight = problem.values()
    energy = feature_energy(features, sample_weight)
    share = (sample_weight / sample_weight.sum())[:, None]
    residual = features @ weight + bias - targets
    penalty = energy * torch.as_tensor(alpha, dtype=torch.float64) * weight
    close(features.T @ (share * residual) + penalty, torch.zeros(7, 3).double())
    close((share * residual).sum(0), torch.zeros(3).double())


@ALPHAS
def test_predictions_of_the_path_are_those_of_its_head(problem, alpha):
    path = RidgePath(moments_of(problem))
    weight, bias = path.solve(alpha)
    others = problem["features"][:5] * 2 - 1
    close(path.predict(path.project(others), alpha), others @ weight + bias)


@ALPHAS
def test_leverage_is_the_pull_of_a_rows_target_on_its_own_prediction(problem, alpha):
    path = RidgePath(moments_of(problem))
    leverage = path.leverage(path.project(problem["features"]), alpha)
    for row in [0, 17]:
        nudged = dict(problem, targets=problem["targets"].clone())
        nudged["targets"][row] += 1.0
        features = problem["features"][row : row + 1]
        rise = [
            p.predict(p.project(features), alpha)[0]
            for p in [path, RidgePath(moments_of(nudged))]
        ]
        expected = leverage[row] * problem["sample_weight"][row]
        close(rise[1] - rise[0], expected.expand(3))


@ALPHAS
def test_leave_one_out_is_what_refits_without_each_row_predict(problem, alpha):
    """The whole penalty, weight_sum * alpha * energy, is held as the rows leave."""
    path = RidgePath(moments_of(problem))
    features, targets, sample_weight = problem.values()
    projected = path.project(features)
    residual = path.predict(projected, alpha) - targets
    taken = sample_weight[:, None] * path.leverage(projected, alpha)
    for row in range(40):
        expected = _predict_without(problem, path, row, sample_weight[row], alpha)
        close((targets + residual / (1 - taken))[row], expected, 1e-9)


def test_leaving_out_one_unit_of_weight_is_leaving_out_one_of_repeated_rows(problem):
    counts = (torch.arange(40) % 3 + 1).double()
    problem["sample_weight"] = counts
    path = RidgePath(moments_of(problem))
    features, targets, _ = problem.values()
    projected = path.project(features)
    residual = path.predict(projected, 0.1) - targets
    left_out = targets + residual / (1 - path.leverage(projected, 0.1))
    for row in range(40):
        expected = _predict_without(problem, path, row, 1.0, 0.1)
        close(left_out[row], expected, 1e-9)


def _predict_without(problem, path, row, unit, alpha):
    """Refit by brute force, the row's weight less by a unit."""
    features, targets, sample_weight = problem.values()
    kept = sample_weight.clone()
    kept[row] -= unit
    penalty = (
        path.moments.weight_sum
        * path.energy
        * torch.as_tensor(alpha, dtype=torch.float64)
    )
    extended = torch.cat([features, torch.ones(40, 1).double()], 1)
    prediction = torch.empty(3).double()
    for output, own in enumerate(penalty.expand(3)):
        ridge = torch.diag(torch.cat([own.expand(7), torch.zeros(1).double()]))
        matrix = extended.T @ (kept[:, None] * extended) + ridge
        right = extended.T @ (kept * targets[:, output])
        prediction[output] = extended[row] @ torch.linalg.solve(matrix, right)
    return prediction


def test_directions_that_the_data_do_not_span_get_no_weight(problem):
    features = problem["features"].clone()
    features[:, 3], features[:, 5] = features[:, 2], 4.0
    weight, bias = solve_ridge(features, problem["targets"], 0.0)
    assert weight.isfinite().all()
    close(weight[3], weight[2], 1e-8)
    close(weight[5], torch.zeros(3).double(), 1e-8)
    spanned = features[:, [0, 1, 2, 4, 6]]
    extended = np.hstack([spanned, np.ones((40, 1))])
    least = np.linalg.lstsq(extended, problem["targets"].numpy(), rcond=None)[0]
    close(features @ weight + bias, torch.from_numpy(extended @ least), 1e-8)


def test_heads_predict_the_same_whatever_the_unit_of_the_features(problem):
    # Features so large that the intercept's one has no share in the energy.
    problem["features"] = problem["features"] * 1e8
    path = RidgePath(moments_of(problem))
    scaled = RidgePath(moments_of({**problem, "features": problem["features"] * 8}))
    close(
        scaled.predict(scaled.project(problem["features"] * 8), 0.1),
        path.predict(path.project(problem["features"]), 0.1),
        1e-9,
    )


def test_the_path_of_constant_features_predicts_the_mean(problem):
    path = RidgePath(moments_of({**problem, "features": torch.ones(40, 7).double()}))
    share = problem["sample_weight"] / problem["sample_weight"].sum()
    for alpha in [0.0, 0.1]:
        predictions = path.predict(path.project(torch.zeros(1, 7).double()), alpha)
        close(predictions[0], share @ problem["targets"])


# Ridge of one table ---------------------------------------------------------------


def test_the_intercept_is_free(problem):
    weight, bias = solve_ridge(*with_alpha(problem, 10.0))
    problem["targets"] = problem["targets"] + 1e3
    shifted_weight, shifted_bias = solve_ridge(*with_alpha(problem, 10.0))
    close(shifted_weight, weight)
    close(shifted_bias, bias + 1e3)


def with_alpha(problem, alpha):
    features, targets, sample_weight = problem.values()
    return features, targets, alpha, sample_weight


def test_ridge_is_the_heads_that_its_path_gives(problem):
    actual = solve_ridge(*with_alpha(problem, 0.3))
    expected = RidgePath(moments_of(problem)).solve(0.3)
    close(actual[0], expected[0])
    close(actual[1], expected[1])


@pytest.mark.parametrize("n_rows", [40, 5], ids=["tall", "wide"])
def test_without_a_penalty_the_solution_is_that_of_least_squares(problem, n_rows):
    features, targets = problem["features"][:n_rows], problem["targets"][:n_rows]
    weight, bias = solve_ridge(features, targets, 0.0)
    centred, target_mean = features - features.mean(0), targets.mean(0)
    # Of the solutions of a wide problem, the one of least norm.
    close(weight, torch.linalg.pinv(centred) @ (targets - target_mean), 1e-9)
    close(bias, target_mean - features.mean(0) @ weight, 1e-9)


def test_the_error_of_a_head_follows_from_the_moments(problem):
    features, targets, weight = problem.values()
    head = torch.linspace(-1, 1, 21).double().reshape(7, 3)
    bias = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    errors = (features @ head + bias - targets).square()
    expected = weight @ errors / weight.sum()
    close(moments_of(problem).error_of(head, bias), expected)
