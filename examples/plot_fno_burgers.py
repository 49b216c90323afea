"""
A Fourier neural operator with a closed-form last layer
=======================================================

A Fourier neural operator maps a field to a field, here the initial value of Burgers'
equation to its solution at time one. Its last layer is linear at each point of the
grid, so that it can be solved in closed form: every point of every sample is a row.

The network is that of the `neuraloperator` package, up to its last linear layer. It is
compared with the same network trained end to end, by the package's recipe (Adam on the
relative L2 error) and by AdamW on the squared relative error.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from _fields import make_burgers, relative_error
from _fno import compare, draw_curves, run_closed_form

QUICK = "--quick" in sys.argv  # fewer samples and epochs, to see that it runs
N_SAMPLES, GRID, EPOCHS, SEEDS = (60, 32, 2, [0]) if QUICK else (300, 128, 10, [0, 1])
MODES = (8,) if QUICK else (16,)

# %%
# Fields
# ------
# Gaussian random initial values on a periodic interval, of mean zero; the viscosity is
# 0.01, so that steep fronts form. A network gets X of shape (n_samples, channels,
# grid), as convolutions do; y is (n_samples, grid).

torch.set_num_threads(1)


def draw(n_samples, grid, seed):
    initial, final = make_burgers(n_samples, grid, seed=seed)
    return initial[:, None].astype(np.float32), final.astype(np.float32)


train, test = draw(N_SAMPLES, GRID, 0), draw(100, GRID, 2)

# %%
# Training
# --------
# `TorchBackbone(FNOFeatures, feature_axis=1)` says that the features are on the first
# axis; they are moved to the last one as a view. `sample_norm="relative"` weighs each
# sample by the inverse of its mean square, so that the loss is the squared relative L2
# error. Data of a solver have no noise: the pull to the last head is loose (`prox` from
# 0.001 to 0.01), the ridge is small, and the steps are along the gradient of the loss's
# logarithm, which don't fade as the error does (`objective`).
#
# The rate of each end-to-end training is the best of four in the benchmark of more
# samples, on samples apart from these.

model, curves = compare(train, test, MODES, epochs=EPOCHS, seeds=SEEDS)

# %%
# Each schedule ends in small steps, so that an error is reached the sooner, the fewer
# epochs there are. A closed form of a third of the epochs:

short = run_closed_form(train, test, MODES, epochs=max(1, EPOCHS // 3), seed=0)[1]
print(f"{len(short['errors']) - 1} epochs: an error of {short['errors'][-1]:.4f}")
for name in list(curves)[1:]:
    share = short["seconds"][-1] / curves[name][0]["seconds"][-1]
    print(f"in {share:.2f} of the time of {name}, {curves[name][0]['errors'][-1]:.4f}")

# %%
# Another resolution
# ------------------
# The operator takes fields of any resolution, and the estimator lets them pass.

finer = draw(100, 2 * GRID, 2)
error = relative_error(model.predict(finer[0]), finer[1])
print(f"relative L2 on a grid of {2 * GRID} points: {error:.4f}")

# %%
# Pictures
# --------

figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 3.8), layout="constrained"
)
draw_curves(left, curves)
points = np.arange(GRID) / GRID
predicted = model.predict(test[0])
for i, color in enumerate(("C3", "C4", "C5")):
    middle.plot(points, test[0][i, 0], color=color, linestyle=":", linewidth=1)
    middle.plot(points, test[1][i], color=color)
    middle.plot(points, predicted[i], "k--", linewidth=0.8)
    right.plot(points, predicted[i] - test[1][i], color=color)
middle.set(xlabel="x", title="Initial (dotted), final, predicted (dashed)")
right.set(xlabel="x", title="Predicted less true")
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_fno_burgers.png", dpi=150)
    print("The picture is in plot_fno_burgers.png.")
