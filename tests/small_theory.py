"""A small backbone, a head and data in float64, for the tests of the theory."""

import torch
from small_models import draw
from torch import nn

from sklearn_cfll import ClosedFormHead

N_FEATURES, N_OUTPUTS = 6, 2


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def make_backbone(n_inputs=3):
    first = nn.Linear(n_inputs, 5, dtype=torch.float64)
    second = nn.Linear(5, N_FEATURES, dtype=torch.float64)
    with torch.no_grad():
        for seed, layer in enumerate([first, second]):
            layer.weight.copy_(draw(*layer.weight.shape, seed=seed))
            layer.bias.copy_(draw(*layer.bias.shape, seed=seed + 10))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh())


def make_head():
    head = ClosedFormHead(N_FEATURES, N_OUTPUTS)
    head.weight = draw(N_FEATURES, N_OUTPUTS, seed=20)
    head.bias = draw(N_OUTPUTS, seed=21)
    return head


def with_ones(features):
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def gradient(loss, backbone):
    return nn.utils.parameters_to_vector(
        torch.autograd.grad(loss, list(backbone.parameters()))
    )


def parameters_of(backbone):
    return nn.utils.parameters_to_vector(backbone.parameters()).detach()


def curved_data(n_rows=40):
    inputs = draw(n_rows, 3)
    curves = [torch.sin(2 * inputs[:, 0]), inputs[:, 1] * inputs[:, 2]]
    return inputs, torch.stack(curves, 1)
