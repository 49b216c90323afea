r"""
The loss landscape of two parameters
====================================

The smallest network with a last layer is :math:`f(x) = W \, \mathrm{relu}(\theta x)`:
one parameter :math:`\theta` inside, one outside. Its loss, with weight decay,

.. math::

   L(W, \theta) = \frac{1}{n} \sum_i (W \, \mathrm{relu}(\theta x_i) - y_i)^2
                  + \alpha \, (W^2 + \theta^2) ,

is a surface over the plane. For a given :math:`\theta` the best :math:`W` is known,

.. math::

   W^*(\theta) = \frac{\sum_i \mathrm{relu}(\theta x_i) \, y_i}
                      {\sum_i \mathrm{relu}(\theta x_i)^2 + n \alpha} ,

a curve along the floors of the valleys. Gradient descent on both parameters has to
find the floor, and follow it without leaving the valley. The closed-form last layer is
on the floor at each step, and descends along it. It is solved here in the formula's
one line: the head of the package has an intercept, which would be a third axis.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch

QUICK = "--quick" in sys.argv  # fewer rates are tried, to see that it runs
ALPHA = 0.1
STARTS = {"left": (0.3, -1.0), "right": (2.7, -0.5)}  # theta, W
LR = 0.1
RATES = [0.1, 0.3, 1.8] if QUICK else np.geomspace(0.01, 10, 13).tolist()
N_STEPS = 300

# %%
# Data
# ----
# Sixty rows of a kinked line. With one unit the network sees either those on the right
# of zero or those on the left, so that there are two valleys, and the right one is
# deeper.

generator = torch.Generator().manual_seed(0)
x = torch.randn(60, generator=generator, dtype=torch.float64)
noise = torch.randn(60, generator=generator, dtype=torch.float64)
y = torch.where(x > 0, 2 * x, -0.8 * x) + 0.3 * noise


def loss_at(theta, weight):
    """Return L, for numbers or for arrays of the same shape."""
    predictions = weight[..., None] * torch.relu(theta[..., None] * x)
    penalty = ALPHA * (weight.square() + theta.square())
    return (predictions - y).square().mean(-1) + penalty


def best_weight(theta):
    """Return W* at a theta, or at several."""
    features = torch.relu(theta[..., None] * x)
    return (features * y).mean(-1) / (features.square().mean(-1) + ALPHA)


grid = torch.linspace(0.01, 3, 3_000, dtype=torch.float64)
on_the_floor = loss_at(grid, best_weight(grid))
lowest = on_the_floor.min().item()
best_theta = grid[on_the_floor.argmin()].item()

# %%
# Both methods
# ------------
# They differ in one line, and in whether the gradient moves W. A path ends where it is
# at the minimum, or has left for infinity.


def path_of(start, rate, closed_form):
    """Return theta, W and the loss at each point of the path."""
    theta, weight = torch.tensor(start, dtype=torch.float64)
    points = []
    for _ in range(N_STEPS):
        if closed_form:
            points.append((theta.item(), weight.item(), loss_at(theta, weight).item()))
            weight = best_weight(theta)
        theta, weight = theta.requires_grad_(), weight.requires_grad_()
        loss = loss_at(theta, weight)
        points.append((theta.item(), weight.item(), loss.item()))
        slopes = torch.autograd.grad(loss, [theta, weight])
        theta, weight = theta.detach(), weight.detach()
        theta = theta - rate * slopes[0]
        if not closed_form:
            weight = weight - rate * slopes[1]
        if not lowest + 1e-6 < loss < 1e6:
            break
    return np.array(points)


def steps_to_minimum(path, closed_form):
    """Return the gradient steps until the loss is within 0.001 of the least one."""
    losses = path[1::2, 2] if closed_form else path[:, 2]
    near = np.flatnonzero(losses < lowest + 1e-3)
    return int(near[0]) if len(near) else None


METHODS = {"end to end": False, "closed-form last layer": True}
paths, steps, best = {}, {}, {}
for name, closed_form in METHODS.items():
    for side, start in STARTS.items():
        paths[name, side] = path_of(start, LR, closed_form)
        steps[name, side] = steps_to_minimum(paths[name, side], closed_form)
        counts = {
            rate: steps_to_minimum(path_of(start, rate, closed_form), closed_form)
            for rate in RATES
        }
        reached = {rate: count for rate, count in counts.items() if count is not None}
        rate = min(reached, key=reached.get, default=None)
        best[name, side] = (rate, reached.get(rate))

# %%
# Steps to the minimum
# --------------------
# At one rate for all, and at the best one of 13 for each. The floor is less steep than
# the walls, so that the closed form stays stable at larger rates. From the left start
# gradient descent goes to zero, where the kink holds it: for a negative W the best
# inner parameter is zero. The solve turns the sign of W before that parameter moves.

print(f"least loss {lowest:.4f} at theta {best_theta:.3f}")
print(f"{'steps to 0.001 above it':24s} start    lr {LR:g}       best lr")
for (name, side), count in steps.items():
    rate, fewest = best[name, side]
    never = f"not in {N_STEPS}"
    at_best = never if rate is None else f"{fewest} at {rate:.3g}"
    print(f"{name:24s} {side:8s} {count or never!s:12s} {at_best}")

# %%
# Picture
# -------

theta, weight = torch.meshgrid(
    torch.linspace(-2.3, 3.1, 271, dtype=torch.float64),
    torch.linspace(-2.2, 3.0, 261, dtype=torch.float64),
    indexing="xy",
)
surface = loss_at(theta, weight)
figure, axes = plt.subplots(figsize=(8, 5.4), layout="constrained")
levels = np.geomspace(0.8, 60, 24)
filled = axes.contourf(
    theta, weight, surface, levels, cmap="Blues", norm="log", extend="max", alpha=0.8
)
bar = figure.colorbar(filled, label="loss", ticks=[1, 2, 5, 10, 20, 50])
bar.ax.minorticks_off()
bar.ax.yaxis.set_major_formatter("{x:g}")
axes.plot(
    theta[0], best_weight(theta[0]), color="black", label=r"best head $W^*(\theta)$"
)
colours = {"end to end": "tab:red", "closed-form last layer": "tab:orange"}
for (name, side), path in paths.items():
    axes.plot(
        path[:, 0],
        path[:, 1],
        color=colours[name],
        marker="o",
        markersize=3,
        label=f"{name}, lr {LR:g}" if side == "left" else None,
    )
for start in STARTS.values():
    axes.plot(*start, "ks", markersize=7)
axes.plot([], [], "ks", markersize=7, label="start")
axes.plot(
    best_theta,
    best_weight(torch.tensor(best_theta).double()),
    "*",
    color="white",
    markeredgecolor="black",
    markersize=16,
    zorder=3,
    label="minimum",
)
axes.set(
    xlabel=r"inner parameter $\theta$",
    ylabel="last layer $W$",
    title=r"Loss of $f(x) = W\,\mathrm{relu}(\theta x)$ and two ways down",
    xlim=(-2.3, 3.1),
    ylim=(-2.2, 3.0),
)
axes.legend(loc="lower left")
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_landscape.png", dpi=150)
    print("The picture is in plot_landscape.png.")
