"""The update by BLAS and LAPACK themselves, against the same one by torch."""

import pytest
import torch

from sklearn_cfll import ClosedFormHead
from sklearn_cfll.functional import lapack, proximal_update
from sklearn_cfll.functional.ridge import proximal_step

TALL, SQUARE, WIDE = (40, 7), (12, 12), (6, 15)


def draw_problem(n_rows, n_features, n_outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "features": draw(n_rows, n_features) * 3 + 1,
        "targets": draw(n_rows, n_outputs),
        "weight": draw(n_features, n_outputs),
        "bias": draw(n_outputs),
        "sample_weight": draw(n_rows).abs() + 0.1,
    }


def by_lapack(problem, **settings):
    arrays = {k: None if v is None else v.numpy() for k, v in problem.items()}
    weight, bias, solved = lapack.update(**arrays, **settings)
    return torch.from_numpy(weight), torch.from_numpy(bias), solved


def by_torch(problem, **settings):
    problem = dict(problem)
    targets = problem.pop("targets")
    predictions = problem["features"] @ problem["weight"] + problem["bias"]
    return proximal_step(**problem, **settings, residual=targets - predictions)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture
def calls(monkeypatch):
    """Count the updates by LAPACK."""
    counted = []
    original = lapack.update

    def count(*args, **settings):
        counted.append(settings)
        return original(*args, **settings)

    monkeypatch.setattr(lapack, "update", count)
    return counted


@pytest.mark.parametrize("shape", [TALL, SQUARE, WIDE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_symmetric_product_is_the_general_one(shape, dtype):
    rows = draw_problem(*shape)["features"].to(dtype)
    product = torch.from_numpy(lapack.symmetric_product(rows.numpy()))
    assert torch.equal(product, product.mT)
    torch.testing.assert_close(product, rows.mT @ rows)


# The same numbers -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [TALL, SQUARE, WIDE], ids=["tall", "square", "wide"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n_outputs", [1, 3, 50])
@pytest.mark.parametrize(
    ("alpha", "prox"), [(0.3, 0.0), (0.0, 1.0), (0.3, 1e-3), (0.3, 100.0)]
)
def test_both_ways_give_the_same_head(shape, weighted, n_outputs, alpha, prox):
    problem = draw_problem(*shape, n_outputs)
    if not weighted:
        problem["sample_weight"] = None
    weight, bias, solved = by_lapack(problem, alpha=alpha, prox=prox)
    expected = by_torch(problem, alpha=alpha, prox=prox)
    assert solved
    assert relative_error(weight, expected.weight) < 1e-12
    assert relative_error(bias, expected.bias) < 1e-12


@pytest.mark.parametrize("prox", [0.1, 0.3, 100.0])
@pytest.mark.parametrize("n_outputs", [1, 40])
@pytest.mark.parametrize("shape", [(512, 200), (200, 512)], ids=["tall", "wide"])
def test_float32_features_in_large_batches_give_nearly_the_same(shape, n_outputs, prox):
    problem = draw_problem(*shape, n_outputs)
    problem["features"] = problem["features"].float()
    narrow = by_lapack(problem, alpha=0.01, prox=prox)
    problem["features"] = problem["features"].double()
    exact = by_torch(problem, alpha=0.01, prox=prox)
    # In float32, under a strong pull; else one refinement squares what is lost.
    tolerance = 1e-5 if prox >= 0.3 else 1e-8
    assert narrow[0].dtype == torch.float64
    assert 0 < relative_error(narrow[0], exact.weight) < tolerance
    assert relative_error(narrow[1], exact.bias) < tolerance


@pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["by row", "by column", "strided"])
def test_what_is_given_is_not_written_over(shape, dtype, layout):
    problem = draw_problem(*shape)
    problem["features"] = problem["features"].to(dtype)
    expected = by_lapack(problem, alpha=0.1, prox=0.5)
    if layout == "by column":
        problem["features"] = problem["features"].T.contiguous().T
    elif layout == "strided":
        problem["features"] = problem["features"].repeat_interleave(2, 1)[:, ::2]
    before = {name: value.clone() for name, value in problem.items()}
    actual = by_lapack(problem, alpha=0.1, prox=0.5)
    for name, value in before.items():
        assert torch.equal(problem[name], value)
    assert relative_error(actual[0], expected[0]) < 1e-12


# No solution ----------------------------------------------------------------------


def without_penalty():
    problem = draw_problem(*TALL)
    return {**problem, "features": torch.zeros(40, 7).double()}, 0.0


def without_weight():
    problem = draw_problem(*TALL)
    return {**problem, "sample_weight": torch.zeros(40).double()}, 0.5


def with_few_rows():
    return draw_problem(*WIDE), 0.0


def with_an_infinite_feature():
    problem = draw_problem(*TALL)
    problem["features"][3, 2] = torch.inf
    return problem, 0.5


NO_SOLUTION = [
    without_penalty,
    without_weight,
    with_few_rows,
    with_an_infinite_feature,
]


@pytest.mark.parametrize("make", NO_SOLUTION, ids=lambda make: make.__name__)
def test_without_a_solution_the_head_stays_and_the_failure_is_counted(make):
    problem, prox = make()
    assert not by_lapack(problem, alpha=0.0, prox=prox)[2]
    head = ClosedFormHead(*problem["weight"].shape)
    head.weight, head.bias = problem.pop("weight"), problem.pop("bias")
    before = head.weight.clone(), head.bias.clone()
    head.update_(**problem, alpha=0.0, prox=prox)
    assert int(head.n_failures) == 1
    assert torch.equal(head.weight, before[0])
    assert torch.equal(head.bias, before[1])


# The choice -----------------------------------------------------------------------


def test_a_plain_batch_on_the_cpu_goes_by_lapack(calls):
    problem = draw_problem(*TALL)
    proximal_update(**problem, alpha=0.1, prox=0.5)
    head = ClosedFormHead(7, 3)
    head.update_(problem["features"], problem["targets"], alpha=0.1, prox=0.5)
    assert len(calls) == 2


def in_float32(problem):
    return {k: v.float() if torch.is_tensor(v) else v for k, v in problem.items()}


ONE_EACH = torch.full((3,), 0.1, dtype=torch.float64)
OTHERWISE = {
    "a float32 head": (in_float32, 1e-4),
    "half precision": (lambda p: {**p, "features": p["features"].bfloat16()}, 2e-2),
    "a graph": (lambda p: {**p, "features": p["features"].requires_grad_()}, 1e-12),
    "weights an output": (
        lambda p: {**p, "sample_weight": p["sample_weight"][:, None].expand(-1, 3)},
        1e-12,
    ),
    "a ridge an output": (lambda p: {**p, "alpha": ONE_EACH}, 1e-12),
    "a learnt prox": (lambda p: {**p, "prox": torch.tensor(0.5).double()}, 1e-12),
    "a slope": (lambda p: {**p, "with_slope": True}, 1e-12),
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_lapack_is_not_made_for_goes_by_torch(calls, kind):
    problem = {**draw_problem(*TALL), "alpha": 0.1, "prox": 0.5}
    expected = proximal_update(**problem)
    calls.clear()
    change, tolerance = OTHERWISE[kind]
    head = proximal_update(**change(problem))
    assert calls == []
    assert relative_error(head.weight.detach(), expected.weight) < tolerance


def test_a_large_batch_is_left_to_torchs_threads_where_there_are_several(
    calls, monkeypatch
):
    large = draw_problem(300, 200)
    for threads, n_calls in [(1, 1), (2, 0)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        calls.clear()
        proximal_update(**large, alpha=0.1, prox=0.5)
        assert len(calls) == n_calls
