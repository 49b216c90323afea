"""
Flow through a porous medium
============================

The pressure of a fluid in a medium of two permeabilities solves Darcy's equation. A
Fourier neural operator learns to give the pressure for a medium. Its last layer is
linear at each point of the plane, and is solved in closed form; the same network is
trained end to end for comparison.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from _fields import make_darcy, relative_error
from _fno import compare, draw_curves

QUICK = "--quick" in sys.argv  # fewer samples and epochs, to see that it runs
N_SAMPLES, EPOCHS, SEEDS = (40, 2, [0]) if QUICK else (300, 10, [0, 1])
GRID, MODES = 16, (8, 8)

# %%
# Fields
# ------
# The permeability is 12 where a Gaussian field is above its mean, and 3 elsewhere.
# Finite volumes on 64 x 64 cells give the pressure; both are means over blocks. X is
# (n_samples, channels, rows, columns), y is (n_samples, rows, columns).

torch.set_num_threads(1)


def draw(n_samples, seed, grid=GRID):
    medium, pressure = make_darcy(n_samples, grid, seed=seed)
    X = (medium[:, None] - 7.5) / 4.5
    return X.astype(np.float32), pressure.astype(np.float32)


train, test = draw(N_SAMPLES, 0), draw(100, 2)

# %%
# Training
# --------
# The settings are those of the example on Burgers' equation; the rates of the
# end-to-end trainings are the best of four in the benchmark.

model, curves = compare(train, test, MODES, epochs=EPOCHS, seeds=SEEDS)

# %%
# The same network on a finer grid. There the coefficient is another function, since it
# is a mean over smaller blocks.

finer = draw(100, 2, 2 * GRID)
error = relative_error(model.predict(finer[0]), finer[1])
print(f"relative L2 on {2 * GRID} x {2 * GRID} points: {error:.4f}")

# %%
# Pictures
# --------

figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
draw_curves(axes[0], curves)
true, predicted = test[1][0], model.predict(test[0][:1])[0]
pictures = {
    "permeability": test[0][0, 0],
    "pressure": true,
    "predicted": predicted,
    "predicted less true": predicted - true,
}
for axis, (title, picture) in zip(axes[1:], pictures.items(), strict=True):
    shared = {"vmin": 0, "vmax": true.max()} if "press" in title else {}
    figure.colorbar(axis.imshow(picture, **shared), ax=axis, shrink=0.8)
    axis.set(title=title, xticks=[], yticks=[])
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_fno_darcy.png", dpi=150)
    print("The picture is in plot_fno_darcy.png.")
