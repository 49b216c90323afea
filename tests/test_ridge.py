"""The mathematics of the head's solves, against brute force in float64."""

import pytest
import torch

from sklearn_cfll.functional import (
    feature_energy,
    lapack,
    proximal_update,
    solve_ridge,
    systems,
)

TALL, WIDE = (40, 7), (6, 15)
SHAPES = pytest.mark.parametrize(
    ("n_rows", "n_features"), [TALL, WIDE], ids=["tall", "wide"]
)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_problem(n_rows, n_features, n_outputs=3, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    return {
        "features": draw(n_rows, n_features) * 3 + 1,
        "targets": draw(n_rows, n_outputs),
        "weight": draw(n_features, n_outputs),
        "bias": draw(n_outputs),
        "sample_weight": draw(n_rows).abs() + 0.1,
    }


def brute_energy(features, sample_weight):
    square = features.square().sum(1) + 1
    return (sample_weight @ square) / sample_weight.sum() / (features.shape[1] + 1)


def brute_proximal(features, targets, weight, bias, *, alpha, prox, sample_weight=None):
    """Solve the normal equations of the extended problem, output by output."""
    n_rows, n_features = features.shape
    if sample_weight is None:
        sample_weight = torch.ones(n_rows, dtype=features.dtype)
    energy = brute_energy(features, sample_weight)
    extended = torch.cat([features, torch.ones(n_rows, 1).double()], 1)
    last = torch.cat([weight, bias[None]])
    share = torch.diag(sample_weight / sample_weight.sum())
    free = torch.eye(n_features + 1).double()
    free[-1, -1] = 0
    alphas = torch.as_tensor(alpha, dtype=torch.float64).expand(targets.shape[1])
    solution = torch.empty_like(last)
    for output, own in enumerate(alphas):
        matrix = extended.T @ share @ extended + energy * own * free
        matrix = matrix + energy * prox * torch.eye(n_features + 1).double()
        right = extended.T @ share @ targets[:, output]
        right = right + energy * prox * last[:, output]
        solution[:, output] = torch.linalg.solve(matrix, right)
    return solution[:-1], solution[-1]


# The proximal update --------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    "alpha",
    [0.0, 0.3, torch.tensor([0.0, 0.2, 5.0], dtype=torch.float64)],
    ids=["no ridge", "one ridge", "ridge per output"],
)
@pytest.mark.parametrize("prox", [1e-3, 1.0, 100.0])
def test_proximal_update_solves_the_stated_problem(
    n_rows, n_features, weighted, alpha, prox
):
    problem = random_problem(n_rows, n_features)
    if not weighted:
        del problem["sample_weight"]
    actual = proximal_update(**problem, alpha=alpha, prox=prox)
    expected = brute_proximal(**problem, alpha=alpha, prox=prox)
    close(actual[0], expected[0], 1e-9)
    close(actual[1], expected[1], 1e-9)


def test_proximal_update_minimises_the_stated_objective():
    problem = random_problem(*TALL)
    alpha, prox = 0.3, 0.7
    share = problem["sample_weight"] / problem["sample_weight"].sum()
    energy = feature_energy(problem["features"], problem["sample_weight"])
    weight, bias, *_ = proximal_update(**problem, alpha=alpha, prox=prox)
    weight.requires_grad_(), bias.requires_grad_()
    residual = problem["features"] @ weight + bias - problem["targets"]
    objective = (
        (share @ residual.square()).sum()
        + alpha * energy * weight.square().sum()
        + prox * energy * (weight - problem["weight"]).square().sum()
        + prox * energy * (bias - problem["bias"]).square().sum()
    )
    objective.backward()
    close(weight.grad, torch.zeros_like(weight), 1e-11)
    close(bias.grad, torch.zeros_like(bias), 1e-11)


@SHAPES
def test_the_fixed_point_of_proximal_updates_is_ridge(n_rows, n_features):
    problem = random_problem(n_rows, n_features)
    ridge = solve_ridge(
        problem["features"], problem["targets"], 0.2, problem["sample_weight"]
    )
    start = problem.pop("weight"), problem.pop("bias")
    for weight, bias in [start, ridge]:
        for _ in range(200):
            weight, bias, *_ = proximal_update(
                **problem, weight=weight, bias=bias, alpha=0.2, prox=0.02
            )
        close(weight, ridge[0], 1e-8)
        close(bias, ridge[1], 1e-8)


def test_without_a_pull_the_update_is_ridge_at_once():
    problem = random_problem(*TALL)
    actual = proximal_update(**problem, alpha=0.2, prox=0.0)
    expected = solve_ridge(
        problem["features"], problem["targets"], 0.2, problem["sample_weight"]
    )
    close(actual[0], expected[0])
    close(actual[1], expected[1])


def test_a_strong_pull_leaves_the_head_where_it_was():
    problem = random_problem(*TALL)
    weight, bias, *_ = proximal_update(**problem, alpha=0.0, prox=1e12)
    close(weight, problem["weight"])
    close(bias, problem["bias"])


def test_equal_ridges_per_output_equal_one_ridge():
    problem = random_problem(*WIDE)
    one = proximal_update(**problem, alpha=0.3, prox=0.5)
    each = proximal_update(
        **problem, alpha=torch.full((3,), 0.3, dtype=torch.float64), prox=0.5
    )
    close(each[0], one[0], 1e-9)
    close(each[1], one[1], 1e-9)


@SHAPES
def test_integer_weights_equal_repeated_rows(n_rows, n_features):
    problem = random_problem(n_rows, n_features)
    counts = torch.arange(n_rows) % 3
    repeated = {
        **problem,
        "features": problem["features"].repeat_interleave(counts, 0),
        "targets": problem["targets"].repeat_interleave(counts, 0),
        "sample_weight": None,
    }
    weighted = proximal_update(
        **{**problem, "sample_weight": counts.double()}, alpha=0.1, prox=0.4
    )
    expected = proximal_update(**repeated, alpha=0.1, prox=0.4)
    close(weighted[0], expected[0])
    close(weighted[1], expected[1])


@SHAPES
@pytest.mark.parametrize(
    "alpha", [0.1, torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)]
)
def test_batch_dimensions_are_independent_problems(n_rows, n_features, alpha):
    problem = random_problem(n_rows, n_features, batch=(2, 4))
    settings = {"alpha": alpha, "prox": 0.5, "with_slope": True}
    together = proximal_update(**problem, **settings)
    for i in range(2):
        for j in range(4):
            single = {name: value[i, j] for name, value in problem.items()}
            alone = proximal_update(**single, **settings)
            for all_parts, expected in zip(together, alone, strict=True):
                close(all_parts[i, j], expected)


@SHAPES
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4], ids=["unit", "small", "large"])
def test_float32_features_are_solved_as_exactly_as_float64(n_rows, n_features, scale):
    problem = random_problem(n_rows, n_features)
    problem["features"] = (problem["features"] * scale).float()
    narrow = proximal_update(**problem, alpha=0.01, prox=0.3)
    problem["features"] = problem["features"].double()
    exact = brute_proximal(**problem, alpha=0.01, prox=0.3)
    assert narrow[0].dtype == torch.float64
    # Both see the same rounded numbers: what differs is the float32 Gram matrix,
    # whose relative error of about 1e-7 times the condition one refinement squares.
    torch.testing.assert_close(narrow[0], exact[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(narrow[1], exact[1], rtol=1e-8, atol=1e-8)


@SHAPES
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_float32_gram_matrix_is_refined_by_torch_too(
    n_rows, n_features, weighted, monkeypatch
):
    problem = random_problem(n_rows, n_features)
    problem["features"] = problem["features"].float()
    if not weighted:
        problem["sample_weight"] = None
    wide = {**problem, "features": problem["features"].double()}
    # A prox that is a tensor, as a learnt one is, goes by torch.
    settings = {"alpha": 0.01, "prox": torch.tensor(0.3).double()}
    exact = proximal_update(**wide, **settings)
    monkeypatch.setattr(systems, "MANY_PRODUCTS", 1)
    narrow = proximal_update(**problem, **settings)
    assert not torch.equal(narrow.weight, exact.weight)
    close(narrow.weight, exact.weight, 1e-9)
    close(narrow.bias, exact.bias, 1e-9)


@pytest.mark.parametrize("many", [1, 2**23], ids=["large", "small"])
@pytest.mark.parametrize("by_torch", [False, True], ids=["LAPACK", "torch"])
def test_float32_features_with_a_weak_pull_fall_back_to_float64(
    many, by_torch, monkeypatch
):
    for module in (systems, lapack):
        monkeypatch.setattr(module, "MANY_PRODUCTS", many)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    problem = {
        "features": (100 * direction + 1e-2 * noise).float(),
        "targets": noise[:, :1],
        "weight": torch.zeros(8, 1).double(),
        "bias": torch.zeros(1).double(),
    }
    if by_torch:  # as weights of each output's own are
        problem["sample_weight"] = torch.ones(200, 1).double()
    narrow = proximal_update(**problem, alpha=0.0, prox=1e-9)
    problem["features"] = problem["features"].double()
    problem.pop("sample_weight", None)
    exact = brute_proximal(**problem, alpha=0.0, prox=1e-9)
    close(narrow[0], exact[0], 1e-5)


@SHAPES
def test_float32_all_through_stays_near(n_rows, n_features):
    problem = random_problem(n_rows, n_features)
    exact = proximal_update(**problem, alpha=0.01, prox=0.5)
    narrow = {name: value.float() for name, value in problem.items()}
    weight, _, *_ = proximal_update(**narrow, alpha=0.01, prox=0.5)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.double(), exact[0], rtol=1e-4, atol=1e-4)


@SHAPES
def test_where_there_is_no_factor_the_answer_is_nan(n_rows, n_features):
    problem = random_problem(n_rows, n_features)
    problem["features"][0, 0] = torch.nan
    weight, bias, *_ = proximal_update(**problem, alpha=0.1, prox=0.1)
    assert weight.isnan().all()
    assert bias.isnan().all()


def test_a_singular_system_gives_nan_and_raises_nothing():
    features = torch.zeros(5, 3).double()
    weight, bias, *_ = proximal_update(
        features,
        torch.ones(5, 1).double(),
        torch.zeros(3, 1).double(),
        torch.zeros(1).double(),
        alpha=0.0,
        prox=0.0,
    )
    assert weight.isnan().all()
    assert bias.isnan().all()


def test_of_a_batch_of_problems_only_the_singular_one_is_nan():
    problem = random_problem(*TALL, batch=(2,))
    problem["features"][1] = 0
    weight, _, *_ = proximal_update(**problem, alpha=0.0, prox=0.0)
    assert weight[0].isfinite().all()
    assert weight[1].isnan().all()


# Feature energy -------------------------------------------------------------------


def test_energy_is_the_mean_square_with_the_intercepts_one():
    problem = random_problem(*TALL)
    features, sample_weight = problem["features"], problem["sample_weight"]
    expected = brute_energy(features, sample_weight)
    close(feature_energy(features, sample_weight), expected)


def test_energy_ignores_rotations_row_order_and_the_weights_unit():
    problem = random_problem(*TALL)
    features, sample_weight = problem["features"], problem["sample_weight"]
    energy = feature_energy(features, sample_weight)
    rotation = torch.linalg.qr(features[:7]).Q
    close(feature_energy(features @ rotation, sample_weight), energy)
    order = sample_weight.argsort()
    close(feature_energy(features[order], sample_weight[order]), energy)
    close(feature_energy(features, 7 * sample_weight), energy)
    close(feature_energy(features, torch.ones(40).double()), feature_energy(features))


def test_energy_of_float32_features_is_summed_in_float64():
    features = torch.full((1000, 3), 0.1)
    energy = feature_energy(features)
    assert energy.dtype == torch.float64
    close(energy, (3 * features[0, 0].double() ** 2 + 1) / 4, 1e-12)
