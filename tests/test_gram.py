"""Gram matrices by BLAS's own routine, and where torch is not to be replaced."""

import pytest
import torch
from torch.autograd import forward_ad

from sklearn_cfll.functional import Moments, gram
from sklearn_cfll.functional.gram import gram_of
from sklearn_cfll.functional.plain import is_plain

TALL = (12, 5)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch):
    """Count the products by BLAS, which small ones are for now, too."""
    counted, original = [], gram.symmetric_product

    def count(rows):
        counted.append(rows.shape)
        return original(rows)

    monkeypatch.setattr(gram, "_MANY_PRODUCTS", 0)
    monkeypatch.setattr(gram, "symmetric_product", count)
    return counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_the_general_product(calls, dtype):
    features = draw(*TALL, dtype=dtype)
    product = gram_of(features)
    torch.testing.assert_close(product, features.mT @ features)
    assert torch.equal(product, product.mT)
    assert calls == [TALL]


def test_small_products_and_few_rows_are_left_to_torch(calls, monkeypatch):
    gram_of(draw(4, 5))
    monkeypatch.setattr(gram, "_MANY_PRODUCTS", 12 * 5**2 + 1)
    gram_of(draw(*TALL))
    assert calls == []


def test_several_threads_are_left_to_torch(calls):
    torch.set_num_threads(2)
    gram_of(draw(*TALL))
    assert calls == []


def moments_of(features, targets, weight):
    moments = Moments.of(features, targets, weight)
    return moments.gram, moments.cross


# torch loads its rules for forward derivatives by what it deprecates itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("grad_enabled", [True, False], ids=["grad", "no_grad"])
def test_forward_derivatives_are_followed(calls, grad_enabled):
    inputs = draw(*TALL), draw(12, 2, seed=1), draw(12, seed=2).abs() + 0.1
    tangents = draw(*TALL, seed=3), draw(12, 2, seed=4), draw(12, seed=5)
    step = 1e-6
    ahead, behind = (
        moments_of(*map(lambda x, t: torch.add(x, t, alpha=h), inputs, tangents))
        for h in (step, -step)
    )
    calls.clear()
    with torch.set_grad_enabled(grad_enabled), forward_ad.dual_level():
        duals = map(forward_ad.make_dual, inputs, tangents)
        parts = map(forward_ad.unpack_dual, moments_of(*duals))
        for part, after, before in zip(parts, ahead, behind, strict=True):
            torch.testing.assert_close(
                part.tangent, (after - before) / (2 * step), rtol=1e-6, atol=1e-6
            )
    assert calls == []


@pytest.mark.parametrize("position", range(3), ids=["features", "targets", "weight"])
def test_gradients_by_all_that_moments_are_of(calls, position):
    inputs = [draw(*TALL), draw(12, 2, seed=1), draw(12, seed=2).abs() + 0.1]
    inputs[position].requires_grad_()
    assert torch.autograd.gradcheck(moments_of, inputs)


@pytest.mark.parametrize("grad_enabled", [True, False], ids=["grad", "no_grad"])
def test_a_map_over_features_is_a_loop_over_them(calls, grad_enabled):
    features = torch.stack([draw(*TALL), draw(*TALL, seed=1)])
    expected = torch.stack([each.mT @ each for each in features])
    with torch.set_grad_enabled(grad_enabled):
        mapped = torch.func.vmap(gram_of)(features)
    torch.testing.assert_close(mapped, expected)
    assert calls == []


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (draw(3, 2), True),
        (draw(3, 2, dtype=torch.float32), True),
        (draw(3, 2).requires_grad_(), False),
        (draw(3, 2).half(), False),
        (draw(3, 2).to("meta"), False),
    ],
    ids=["float64", "float32", "with gradient", "half", "elsewhere"],
)
def test_plain_is_what_numpy_may_take(tensor, expected):
    assert is_plain(tensor) is expected
