r"""
Wide backbones train as their tangent kernel says
=================================================

The features of a wide network hardly change their derivatives while it trains: they
move as if they were linear in the parameters :math:`\theta`,

.. math::

   \phi_\theta(x) \approx \phi_{\theta_0}(x) + J(x) \, (\theta - \theta_0),
   \qquad K(x, x') = J(x) J(x')^\top .

The closed-form last layer keeps this simple. With its exact solution :math:`W^*` at
each step, gradient descent on all :math:`n` rows at the rate :math:`\eta` then is a
recursion in the features :math:`\Phi` alone,

.. math::

   \Phi_{t+1} = \Phi_t - \eta K \, \nabla_\Phi L^*(\Phi_t), \qquad
   \nabla_\Phi L^*(\Phi) = \tfrac{2}{n} R \, W^*(\Phi)^\top, \quad
   R = \Phi W^* + b^* - Y ,

which needs the kernel :math:`K` of the network before training, and no network. Here
networks of growing width are trained, and compared with what their kernels foretell.
There are six times as many rows as features, so that no first solve fits them all.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from sklearn_cfll import ClosedFormHead

QUICK = "--quick" in sys.argv  # fewer networks and steps, to see that it runs
WIDTHS = [16, 64, 256] if QUICK else [16, 64, 256, 1024, 4096]
N_SEEDS, N_STEPS = (2, 150) if QUICK else (4, 400)
N_ROWS, N_COLUMNS, N_FEATURES = 24, 8, 4
LR = 0.2
ALPHA = 1e-10  # tiny: the head is the least-squares solution

# %%
# Data and network
# ----------------
# The rows lie on a sphere, where the kernel is well conditioned. The network has one
# hidden layer between them and the features, and the scaling of the NTK literature:
# parameters of variance one, divided by the square root of the width afterwards.

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(N_ROWS, N_COLUMNS, generator=generator, dtype=torch.float64)
inputs /= inputs.norm(dim=1, keepdim=True)
targets = torch.sin(3 * inputs[:, :1]) + 3 * inputs[:, 1:2] * inputs[:, 2:3]
targets = (targets - targets.mean()) / targets.std(correction=0)


class WideBackbone(nn.Module):
    """A hidden layer of a given width, then the features."""

    def __init__(self, width, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(values)

        self.inner, self.outer = draw(width, N_COLUMNS), draw(N_FEATURES, width)

    def forward(self, x):
        """Return the features of rows."""
        hidden = torch.relu(x @ self.inner.T)
        return hidden @ self.outer.T * (2 / len(self.inner)) ** 0.5


def tangent_kernel(backbone):
    """Return K, a row and a column for each feature of each sample."""
    parameters = {name: p.detach() for name, p in backbone.named_parameters()}

    def features(parameters, x):
        return functional_call(backbone, parameters, (x,))

    jacobians = vmap(jacrev(features), in_dims=(None, 0))(parameters, inputs)
    rows = torch.cat([j.flatten(2) for j in jacobians.values()], 2).flatten(0, 1)
    return rows @ rows.T


# %%
# The network, and the recursion
# ------------------------------
# Both solve the head anew at each step, without a pull to the last one. Only the
# first one has a backbone to send the gradient through.


def solve(head, features):
    """Return the predictions at the exact head, and their mean squared error."""
    head.update_(features, targets, alpha=ALPHA, prox=0.0)
    predictions = head(features)
    return predictions, (predictions - targets).square().mean()


def train_network(backbone):
    """Return the predictions and the losses by step."""
    head = ClosedFormHead(N_FEATURES, 1)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=LR)
    path, losses = [], []
    for _ in range(N_STEPS):
        predictions, loss = solve(head, backbone(inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        path.append(predictions.detach())
        losses.append(loss.item())
    return torch.stack(path), np.array(losses)


def train_by_kernel(features, kernel):
    """Return the same from the recursion, and its last features and head."""
    head = ClosedFormHead(N_FEATURES, 1)
    path, losses = [], []
    for _ in range(N_STEPS):
        predictions, loss = solve(head, features)
        path.append(predictions)
        losses.append(loss.item())
        slope = 2 / N_ROWS * (predictions - targets) @ head.weight.T
        features = features - LR * (kernel @ slope.flatten()).view_as(features)
    return torch.stack(path), np.array(losses), features, head


# %%
# The rate
# --------
# Near the end the head stands still, and only the part of the residual matters that
# no head can fit: with the projection :math:`P` off the features and the constant,
# a step takes :math:`R` to :math:`(I - \tfrac{2 \eta}{n} P K_W P) R`, where
# :math:`K_W` is the kernel of the predictions at the head's weight. Its least
# eigenvalue on the range of :math:`P` gives the rate at which the loss falls.


def limiting_rate(kernel, features, head):
    """Return the decades that the loss of the recursion falls by in a step, at last."""
    blocks = kernel.view(N_ROWS, N_FEATURES, N_ROWS, N_FEATURES)
    weight = head.weight[:, 0]
    of_predictions = torch.einsum("iajb,a,b->ij", blocks, weight, weight)
    span = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    off = torch.linalg.qr(span, mode="complete").Q[:, N_FEATURES + 1 :]
    least = torch.linalg.eigvalsh(off.T @ of_predictions @ off)[0].item()
    return -2 * np.log10(1 - 2 * LR / N_ROWS * least)


def last_rate(losses):
    """Return the decades that the loss falls by in a step, in the last quarter."""
    last = np.log10(losses[-N_STEPS // 4 :])
    return (last[0] - last[-1]) / (len(last) - 1)


def compare(width, seed):
    """Return the losses of network and recursion, and five numbers."""
    backbone = WideBackbone(width, seed)
    kernel = tangent_kernel(backbone)
    by_kernel, kernel_losses, *end = train_by_kernel(backbone(inputs).detach(), kernel)
    by_network, losses = train_network(backbone)
    gaps = (by_network - by_kernel).square().sum((1, 2)).sqrt() / targets.norm()
    drift = (tangent_kernel(backbone) - kernel).norm() / kernel.norm()
    rates = last_rate(losses), last_rate(kernel_losses), limiting_rate(kernel, *end)
    return losses, kernel_losses, (drift.item(), gaps.max().item(), *rates)


runs = {width: [compare(width, seed) for seed in range(N_SEEDS)] for width in WIDTHS}

# %%
# Numbers
# -------
# The kernel's drift is ``||K_T - K_0|| / ||K_0||``. The gap is the largest distance of
# the network's predictions to those of the recursion over all steps, relative to the
# targets. Both are medians over the networks of a width. The other columns are of one
# network: its last loss, and the decades by which the loss falls in a hundred steps,
# in the last quarter of the network's and of the recursion's path, and in the limit.
# Where these differ, faster parts of the residual haven't died away yet, or the head
# has grown in the network otherwise than in the recursion.

print(f"{'':6s}{'kernel':>9s}{'gap of':>13s}{'last':>10s}   decades in 100 steps")
print(
    f"{'width':6s}{'drift':>9s}{'predictions':>13s}{'loss':>10s}"
    f"   {'network':8s}{'recursion':10s}{'limit':5s}"
)
drifts = {width: [numbers[0] for *_, numbers in runs[width]] for width in WIDTHS}
gaps = {width: [numbers[1] for *_, numbers in runs[width]] for width in WIDTHS}
for width in WIDTHS:
    losses, _, (_, _, *rates) = runs[width][0]
    network, recursion, limit = (100 * rate for rate in rates)
    print(
        f"{width:<6d}{np.median(drifts[width]):9.4f}{np.median(gaps[width]):13.4f}"
        f"{losses[-1]:10.1e}   {network:<8.3f}{recursion:<10.3f}{limit:<5.3f}"
    )


def exponent(values):
    """Return the power of the width that the medians follow."""
    medians = [np.median(values[width]) for width in WIDTHS]
    return np.polyfit(np.log(WIDTHS), np.log(medians), 1)[0]


print(f"the drift goes as width^{exponent(drifts):.2f}, ", end="")
print(f"the gap as width^{exponent(gaps):.2f}")

# %%
# Picture
# -------
# Left, the training loss of one network of each width goes to zero: the wider the
# network, the closer it keeps to the line that its own kernel foretells. Each network
# has its own first features, and so its own rate. Right, drift and gap shrink with the
# width, somewhat faster than the inverse of its square root.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(WIDTHS)))
for width, colour in zip(WIDTHS, colours, strict=True):
    losses, kernel_losses, _ = runs[width][0]
    left.plot(losses, color=colour, linewidth=5, alpha=0.4, label=f"width {width}")
    left.plot(kernel_losses, color=colour, linestyle="--", linewidth=1.2)
left.plot([], [], color="black", linestyle="--", linewidth=1.2, label="by its kernel")
left.set(
    xlabel="gradient steps",
    ylabel="mean squared training error",
    yscale="log",
    title="Full batch, exact head at each step",
)
for values, marker, label in [
    (drifts, "o", "drift of the kernel"),
    (gaps, "s", "gap of the predictions"),
]:
    middle = np.array([np.median(values[width]) for width in WIDTHS])
    spread = [[min(values[width]), max(values[width])] for width in WIDTHS]
    bars = np.abs(np.array(spread).T - middle)
    right.errorbar(WIDTHS, middle, bars, marker=marker, capsize=3, label=label)
start = np.median(drifts[WIDTHS[0]])
reference = start * (np.array(WIDTHS) / WIDTHS[0]) ** -0.5
right.plot(
    WIDTHS, reference, color="grey", linestyle=":", label="1 / square root of the width"
)
right.set(
    xlabel="width of the hidden layer",
    ylabel="relative size",
    xscale="log",
    yscale="log",
    xticks=WIDTHS,
    title=f"Median and range of {N_SEEDS} networks",
)
right.minorticks_off()
right.xaxis.set_major_formatter("{x:.0f}")
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_ntk.png", dpi=150)
    print("The picture is in plot_ntk.png.")
