"""Derivatives of the head's update, of both modes, and maps over it."""

import pytest
import torch
from small_models import draw
from torch.autograd import forward_ad
from torch.func import jacrev, jvp, vmap

from sklearn_cfll.functional import proximal_update

N_OUTPUTS, STEP = 2, 1e-6

# torch loads its rules for forward derivatives by what it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

SHAPES = pytest.mark.parametrize("shape", [(9, 4), (3, 7)], ids=["tall", "wide"])
ALPHAS = pytest.mark.parametrize("alphas", [(), (N_OUTPUTS,)], ids=["one", "each"])
NAMES = ["features", "targets", "weight", "bias", "alpha", "prox", "sample_weight"]
# How many axes the rows' weights have, and by which argument to differentiate.
EACH_ARGUMENT = pytest.mark.parametrize(
    ("weights", "name"),
    [(n, name) for n in range(3) for name in NAMES if n or name != "sample_weight"],
)


def problem(shape, alphas, weights):
    n_rows, n_features = shape
    arguments = {
        "features": draw(n_rows, n_features),
        "targets": draw(n_rows, N_OUTPUTS, seed=1),
        "weight": draw(n_features, N_OUTPUTS, seed=2),
        "bias": draw(N_OUTPUTS, seed=3),
        "alpha": draw(*alphas or (1,), seed=5).abs().add(0.1).reshape(alphas),
        "prox": torch.tensor(0.3, dtype=torch.float64),
    }
    if weights:
        size = (n_rows, N_OUTPUTS)[:weights]
        arguments["sample_weight"] = draw(*size, seed=4).abs() + 0.1
    return arguments


def update_by(name, arguments):
    """Give the update's function of one argument, and that argument."""

    def update(value):
        head = proximal_update(**{**arguments, name: value})
        return torch.cat([head.weight, head.bias[None]])

    return update, arguments[name]


def quotient(update, value, tangent):
    """Give the derivative along a tangent by finite differences."""
    ahead, behind = (update(value + h * tangent) for h in (STEP, -STEP))
    return (ahead - behind) / (2 * STEP)


@EACH_ARGUMENT
@ALPHAS
@SHAPES
def test_both_modes_give_the_derivatives(shape, alphas, weights, name):
    update, value = update_by(name, problem(shape, alphas, weights))
    tangent = torch.ones_like(value) + value.square()
    _, forward = jvp(update, (value,), (tangent,))
    reverse = torch.tensordot(jacrev(update)(value), tangent, dims=value.ndim)
    torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)
    expected = quotient(update, value, tangent)
    torch.testing.assert_close(forward, expected, rtol=1e-6, atol=1e-6)


@EACH_ARGUMENT
@ALPHAS
@SHAPES
def test_a_map_is_a_loop(shape, alphas, weights, name):
    update, value = update_by(name, problem(shape, alphas, weights))
    values = torch.stack([value, 2 * value, value + 0.5])
    expected = torch.stack([update(each) for each in values])
    torch.testing.assert_close(vmap(update)(values), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("plain", [True, False], ids=["numbers", "tensors"])
@pytest.mark.parametrize("grad_enabled", [True, False], ids=["grad", "no_grad"])
def test_dual_numbers_are_followed(grad_enabled, plain):
    arguments = problem((9, 4), (), 0)
    if plain:
        arguments.update(alpha=0.1, prox=0.3)
    update, value = update_by("features", arguments)
    tangent = draw(*value.shape, seed=6)
    expected = quotient(update, value, tangent)
    with torch.set_grad_enabled(grad_enabled), forward_ad.dual_level():
        found = forward_ad.unpack_dual(update(forward_ad.make_dual(value, tangent)))
    torch.testing.assert_close(found.tangent, expected, rtol=1e-6, atol=1e-6)


@ALPHAS
def test_features_that_are_zero_have_derivatives(alphas):
    arguments = problem((9, 4), alphas, 0)
    arguments["features"][:, :2] = 0
    update, value = update_by("features", arguments)
    tangent = draw(*value.shape, seed=6)
    reverse = torch.tensordot(jacrev(update)(value), tangent, dims=2)
    expected = quotient(update, value, tangent)
    torch.testing.assert_close(reverse, expected, rtol=1e-6, atol=1e-6)
