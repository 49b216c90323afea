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
from _fno import run_closed_form, run_end_to_end

QUICK = "--quick" in sys.argv  # fewer samples and epochs, to see that it runs
N_SAMPLES, EPOCHS, SEEDS = (40, 2, [0]) if QUICK else (300, 10, [0, 1])
GRID, MODES = 16, (8, 8)

# %%
# Fields
# ------
# The permeability is 12 where a Gaussian field is positive, and 3 elsewhere. Finite
# volumes on 64 x 64 cells give the pressure; both are means over blocks. X is
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

METHODS = {
    "closed-form last layer": None,
    "Adam, relative L2": {"rate": 1e-2, "package": True},
    "AdamW, its square": {"rate": 1e-2, "package": False},
}
curves = {}
for name, settings in METHODS.items():
    curves[name] = []
    for seed in SEEDS:
        arguments = {"epochs": EPOCHS, "seed": seed}
        if settings is None:
            model, curve = run_closed_form(train, test, MODES, **arguments)
        else:
            _, curve = run_end_to_end(train, test, MODES, **arguments, **settings)
        curves[name].append(curve)
    errors = [curve["errors"][-1] for curve in curves[name]]
    seconds = np.mean([curve["seconds"][-1] for curve in curves[name]])
    print(f"{name:<24} relative L2 {np.mean(errors):.4f} after {seconds:5.1f} s")

# %%
# On a finer grid the same network does worse than on its own: the coefficient is a mean
# over blocks of cells, which differ with the grid.

finer = draw(100, 2, 2 * GRID)
error = relative_error(model.predict(finer[0]), finer[1])
print(f"relative L2 on {2 * GRID} x {2 * GRID} points: {error:.4f}")

# %%
# Pictures
# --------

figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
for name, color in zip(curves, ("C0", "C1", "C2"), strict=True):
    for i, curve in enumerate(curves[name]):
        label = name if i == 0 else None
        axes[0].plot(curve["seconds"], curve["errors"], color=color, label=label)
axes[0].set(
    xlabel="seconds of the processor",
    ylabel="relative L2 error",
    yscale="log",
    title="Test error",
)
axes[0].legend(fontsize="small")
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
