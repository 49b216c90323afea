"""What one step of the method gains over a plain gradient step on all layers."""

import copy
import itertools

import pytest
import torch
from small_theory import (
    N_OUTPUTS,
    close,
    curved_data,
    gradient,
    make_backbone,
    make_head,
    parameters_of,
    with_ones,
)
from torch import nn

from sklearn_cfll.functional import feature_energy


def penalised_loss(features, weight, bias, targets, alpha):
    errors = (features @ weight + bias - targets).square().sum(1).mean()
    return errors + alpha * weight.square().sum()


def losses_after_a_step(backbone, head, data, alpha, rate, frozen):
    """Losses before, after a plain step on all layers, and after one of CFLL.

    CFLL solves the head, then takes the gradient step on the backbone; ``frozen``
    leaves the latter out of both. Gives the backbone's two gradients, too.
    """
    inputs, targets = data
    features = backbone(inputs)
    layers = [head.weight.requires_grad_(), head.bias.requires_grad_()]
    before = penalised_loss(features, *layers, targets, alpha)
    *_, weight_slope, bias_slope = torch.autograd.grad(
        before, [*backbone.parameters(), *layers], retain_graph=True
    )
    plain_slope = gradient(before, backbone)
    stepped = head.weight - rate * weight_slope, head.bias - rate * bias_slope

    features = backbone(inputs)
    held = alpha / feature_energy(features.detach())
    solved = make_head().update_(features, targets, alpha=held, prox=0.0)
    best = solved.weight, solved.bias
    slope = gradient(penalised_loss(features, *best, targets, alpha), backbone)

    losses = [before.item()]
    for backbone_slope, layers in [(plain_slope, stepped), (slope, best)]:
        moved = copy.deepcopy(backbone)
        step = 0.0 if frozen else rate
        nn.utils.vector_to_parameters(
            parameters_of(backbone) - step * backbone_slope, moved.parameters()
        )
        with torch.no_grad():
            loss = penalised_loss(moved(inputs), *layers, targets, alpha)
        losses.append(loss.item())
    return losses, plain_slope, slope


def gain_of_the_solve(features, head, targets, alpha, rate):
    """How much lower the solve leaves the loss than a gradient step on the head.

    Let F (n, d + 1) be the features and the constant one, with ``sqrt(n alpha) I``
    below for a ridge, so that the loss is ``||F W - Y||^2 / n``; F = U S V' and
    R = Y - F W. A step of rate ``r`` takes W to ``W + (2 r / n) F'R``, hence the
    residual's part along ``u_i`` to ``(1 - 2 r s_i^2 / n) u_i'R``. The solve takes it
    to zero, and neither touches the rest. So the gain is, for every rate::

        G(r) = sum_i (1 - 2 r s_i^2 / n)^2 ||u_i'R||^2 / n  >=  0 .

    With the backbone's step, its gradient g at the old head and g* at the solved one,
    the drop of CFLL less that of the plain step is, to first order in ``r``::

        G(r) + r (||g*||^2 - ||g||^2) + O(r^2) .
    """
    n_rows, n_features = features.shape
    ridge_rows = torch.eye(n_features, n_features + 1).to(features)
    ridge_rows *= (n_rows * alpha) ** 0.5
    extended = torch.cat([with_ones(features), ridge_rows])
    weight = torch.cat([head.weight, head.bias[None]])
    residual = torch.cat([targets, torch.zeros(n_features, N_OUTPUTS).to(targets)])
    residual = residual - extended @ weight
    left, values, _ = torch.linalg.svd(extended, full_matrices=False)
    kept = (1 - 2 * rate * values.square() / n_rows).square()
    return (kept @ (left.mT @ residual).square().sum(1) / n_rows).item()


def gain_of_a_step(alpha, rate, frozen=False):
    """Gain as it is measured, and by the formula."""
    inputs, targets = curved_data()
    backbone, head = make_backbone(), make_head()
    (before, plain, cfll), slope, best_slope = losses_after_a_step(
        backbone, head, (inputs, targets), alpha, rate, frozen
    )
    with torch.no_grad():
        gain = gain_of_the_solve(backbone(inputs), head, targets, alpha, rate)
    if not frozen:
        gain += rate * (best_slope.square().sum() - slope.square().sum()).item()
    return (before - cfll) - (before - plain), gain


@pytest.mark.parametrize("alpha", [0.0, 0.05], ids=["least squares", "ridge"])
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 2.0])
def test_the_solve_gains_what_the_singular_values_say(alpha, rate):
    measured, formula = gain_of_a_step(alpha, rate, frozen=True)
    close(measured, formula, 1e-10)
    assert measured > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 0.05], ids=["least squares", "ridge"])
def test_a_whole_step_gains_as_much_but_for_the_square_of_the_rate(alpha):
    rates = [2e-4, 1e-4, 5e-5]
    pairs = [gain_of_a_step(alpha, rate) for rate in rates]
    rests = [measured - formula for measured, formula in pairs]
    for rest, half in itertools.pairwise(rests):
        assert rest / half == pytest.approx(4, rel=0.05)
    measured, formula = pairs[0]
    assert measured == pytest.approx(formula, rel=1e-3)
    assert abs(rests[0]) > 1e-9  # not the rounding
