"""Weights of single outputs: each output is a problem of its own."""

from __future__ import annotations

import pytest
import torch
from small_theory import draw

from sklearn_cfll.functional import (
    feature_energy,
    outputs,
    proximal_update,
    solve_ridge,
)
from sklearn_cfll.functional.paths import (
    MomentsByOutput,
    RidgePathByOutput,
    merge,
    remove,
)
from sklearn_cfll.functional.posterior import weight_sums
from sklearn_cfll.losses import SquaredLoss

ALPHAS = pytest.mark.parametrize(
    "alpha",
    [0.0, 0.3, torch.tensor([0.01, 0.2, 5.0], dtype=torch.float64)],
    ids=["no ridge", "one ridge", "ridge per output"],
)
SHAPES = pytest.mark.parametrize(
    "shape", [(40, 7), (6, 15)], ids=["more rows", "more features"]
)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def batch_of(shape=(40, 7), batch=()):
    """Features, targets, last head and weights of three outputs."""
    n_rows, n_features = shape
    sizes = {
        "features": shape,
        "targets": (n_rows, 3),
        "weight": (n_features, 3),
        "bias": (3,),
        "sample_weight": (n_rows, 3),
    }
    problem = {
        name: draw(*batch, *size, seed=seed)
        for seed, (name, size) in enumerate(sizes.items())
    }
    problem["features"] = 3 * problem["features"] + 1
    problem["sample_weight"] = problem["sample_weight"].abs() + 0.1
    return problem


def output_of(problem, output):
    """Give one output's problem, with one weight a row."""
    columns = {
        name: problem[name][..., [output]] for name in ("targets", "weight", "bias")
    }
    sample_weight = problem["sample_weight"][..., output]
    return {**problem, **columns, "sample_weight": sample_weight}


def each_alpha(alpha):
    return torch.as_tensor(alpha, dtype=torch.float64).expand(3).tolist()


# The proximal update ---------------------------------------------------------------


@SHAPES
@ALPHAS
@pytest.mark.parametrize("batch", [(), (2, 4)], ids=["one batch", "many batches"])
def test_each_output_is_solved_as_if_it_were_alone(shape, alpha, batch):
    problem = batch_of(shape, batch)
    settings = {"prox": 0.5, "with_slope": True}
    head = proximal_update(**problem, alpha=alpha, **settings)
    for output, own in enumerate(each_alpha(alpha)):
        alone = proximal_update(**output_of(problem, output), alpha=own, **settings)
        for name in ("weight", "bias", "weight_slope", "bias_slope"):
            actual = getattr(head, name)[..., [output]]
            close(actual, getattr(alone, name))
    assert head.solved.shape == batch
    assert head.solved.all()


@SHAPES
@ALPHAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_columns_of_weights_are_one_weight_a_row(shape, alpha, dtype):
    problem = batch_of(shape)
    problem["features"] = problem["features"].to(dtype)
    weight = problem["sample_weight"][:, 0]
    settings = {"alpha": alpha, "prox": 0.5}
    columns = weight[:, None].expand(-1, 3)
    by_output = proximal_update(**{**problem, "sample_weight": columns}, **settings)
    by_row = proximal_update(**{**problem, "sample_weight": weight}, **settings)
    close(by_output.weight, by_row.weight, 1e-9)
    close(by_output.bias, by_row.bias, 1e-9)


@SHAPES
def test_outputs_are_solved_alike_in_chunks(shape, monkeypatch):
    problem = batch_of(shape)
    settings = {"alpha": 0.1, "prox": 0.5, "with_slope": True}
    at_once = proximal_update(**problem, **settings)
    monkeypatch.setattr(outputs, "_MOST_NUMBERS", 2 * problem["features"].numel())
    for part, whole in zip(
        proximal_update(**problem, **settings), at_once, strict=True
    ):
        close(part, whole, 1e-12)


@SHAPES
def test_integer_weights_equal_rows_repeated_for_that_output(shape):
    problem = batch_of(shape)
    counts = torch.arange(3 * shape[0]).reshape(shape[0], 3) % 4
    head = proximal_update(
        **{**problem, "sample_weight": counts.double()}, alpha=0.1, prox=0.4
    )
    for output in range(3):
        repeated = output_of(problem, output)
        for name in ("features", "targets"):
            repeated[name] = repeated[name].repeat_interleave(counts[:, output], 0)
        del repeated["sample_weight"]
        alone = proximal_update(**repeated, alpha=0.1, prox=0.4)
        close(head.weight[:, [output]], alone.weight)
        close(head.bias[[output]], alone.bias)


@pytest.mark.parametrize("prox", [0.0, 0.5])
def test_an_output_without_weight_keeps_its_last_head(prox):
    problem = batch_of()
    problem["sample_weight"][:, 1] = 0
    head = proximal_update(**problem, alpha=0.1, prox=prox, with_slope=True)
    close(head.weight[:, 1], problem["weight"][:, 1], 0)
    close(head.bias[1], problem["bias"][1], 0)
    assert not head.weight_slope[:, 1].any()
    assert not head.bias_slope[1]
    alone = proximal_update(**output_of(problem, 2), alpha=0.1, prox=prox)
    close(head.weight[:, [2]], alone.weight)


def test_a_singular_system_of_one_output_is_told():
    problem = batch_of((6, 15))
    problem["features"] = torch.zeros(6, 15).double()
    head = proximal_update(**problem, alpha=0.0, prox=0.0)
    assert not head.solved
    assert head.weight.isnan().all()


def test_energy_of_each_output():
    problem = batch_of(batch=(2,))
    energy = feature_energy(problem["features"], problem["sample_weight"])
    for output in range(3):
        own = problem["sample_weight"][..., output]
        close(energy[:, output], feature_energy(problem["features"], own))


# Moments and the ridge path --------------------------------------------------------


def moments_of(problem, rows=slice(None)):
    names = ("features", "targets", "sample_weight")
    return MomentsByOutput.of(*(problem[name][rows] for name in names))


@ALPHAS
def test_each_outputs_ridge_is_that_of_its_own_weights(alpha):
    problem = batch_of()
    features, targets, sample_weight = (
        problem[name] for name in ("features", "targets", "sample_weight")
    )
    weight, bias = solve_ridge(features, targets, alpha, sample_weight)
    for output, own in enumerate(each_alpha(alpha)):
        expected = solve_ridge(
            features, targets[:, [output]], own, sample_weight[:, output]
        )
        close(weight[:, [output]], expected[0])
        close(bias[[output]], expected[1])
    rows = sample_weight[:, 0]
    columns = rows[:, None].expand(-1, 3)
    same = solve_ridge(features, targets, alpha, columns)
    close(same[0], solve_ridge(features, targets, alpha, rows)[0])
    close(same[1], solve_ridge(features, targets, alpha, rows)[1])


def test_a_stream_of_parts_gives_the_path_of_the_whole():
    problem = batch_of()
    parts = [moments_of(problem, rows) for rows in (slice(13), slice(13, None))]
    merged = RidgePathByOutput(merge(*parts)).solve(0.1)
    whole = RidgePathByOutput(moments_of(problem)).solve(0.1)
    close(merged[0], whole[0])
    close(merged[1], whole[1])


def test_the_mean_of_the_outputs_errors_is_the_weighted_loss():
    problem = batch_of()
    targets, sample_weight = problem["targets"], problem["sample_weight"]
    moments = moments_of(problem)
    predictions = problem["features"] @ problem["weight"] + problem["bias"]
    error = moments.error_of(problem["weight"], problem["bias"])
    close(error.mean(), SquaredLoss()(predictions, targets, sample_weight))
    means = (sample_weight * targets).sum(0) / sample_weight.sum(0)
    expected = SquaredLoss()(means.expand_as(targets), targets, sample_weight)
    close(moments.error_of_mean.mean(), expected)


def test_moved_moments_have_the_given_head_and_its_error():
    problem = batch_of()
    moments, alpha = moments_of(problem), torch.tensor([0.01, 0.2, 5.0]).double()
    error = torch.tensor([1.0, 2.0, 3.0]).double()
    moved = moments.moved(problem["weight"], problem["bias"], alpha, error)
    weight, bias = RidgePathByOutput(moved).solve(alpha)
    close(weight, problem["weight"])
    close(bias, problem["bias"])
    close(moved.error_of(weight, bias), error)


def test_rows_can_be_removed_of_which_no_output_has_more_than_there_is():
    problem = batch_of()
    whole, part = moments_of(problem), moments_of(problem, slice(13))
    rest = RidgePathByOutput(remove(whole, part)).solve(0.1)
    expected = RidgePathByOutput(moments_of(problem, slice(13, None))).solve(0.1)
    close(rest[0], expected[0])
    heavy = problem["sample_weight"].clone()
    heavy[:13, 1] *= 50
    part = moments_of({**problem, "sample_weight": heavy}, slice(13))
    assert remove(whole, part) is None


def test_an_output_without_any_weight_hinders_no_removal():
    problem = batch_of()
    problem["sample_weight"][:, 1] = 0
    rest = remove(moments_of(problem), moments_of(problem, slice(13)))
    assert rest.weight_sum > 0
    assert rest.parts[1].weight_sum == 0


def test_a_scaled_path_knows_the_scaled_sums():
    path = RidgePathByOutput(moments_of(batch_of()))
    sums = weight_sums(path)
    close(weight_sums(path.scaled(3.0)), 3 * sums)
    close(path.scaled(3.0).moments.weight_sum, 3 * sums.mean())


@ALPHAS
def test_leave_one_out_is_what_refits_of_each_output_predict(alpha):
    problem = batch_of()
    path = RidgePathByOutput(moments_of(problem))
    features, targets = problem["features"], problem["targets"]
    projected = path.project(features)
    predictions = path.predict(projected, alpha)
    weight, bias = path.solve(alpha)
    close(predictions, features @ weight + bias)
    pull = problem["sample_weight"] * path.leverage(projected, alpha)
    left_out = targets + (predictions - targets) / (1 - pull)
    for row in (0, 17):
        for output, own in enumerate(each_alpha(alpha)):
            expected = predict_without(problem, row, output, own)
            close(left_out[row, output], expected, 1e-9)


def predict_without(problem, row, output, alpha):
    """Refit one output by brute force, without a row, at the same penalty."""
    features, weight = problem["features"], problem["sample_weight"][:, output]
    penalty = alpha * weight.sum() * feature_energy(features, weight)
    kept = weight.clone()
    kept[row] = 0
    extended = torch.cat([features, torch.ones(len(features), 1).double()], 1)
    free = torch.ones(extended.shape[1]).double()
    free[-1] = 0
    matrix = extended.T @ (kept[:, None] * extended) + torch.diag(penalty * free)
    right = extended.T @ (kept * problem["targets"][:, output])
    return extended[row] @ torch.linalg.solve(matrix, right)


def test_constant_features_are_flat_for_every_output():
    problem = {**batch_of(), "features": torch.ones(40, 7).double()}
    assert RidgePathByOutput(moments_of(problem)).flat
    assert not RidgePathByOutput(moments_of(batch_of())).flat
