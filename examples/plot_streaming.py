"""
A stream that drifts
====================

A network is fitted on the first rows of a stream. Half-way through the rest the targets
come to depend on the columns in another way. `partial_fit` keeps the head exact for all
rows so far, by sums over them; with `forgetting` below one earlier rows count less
and less. Each chunk is predicted before it is learnt, so that the errors are honest.
"""

import copy
import sys

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cfll import MLP, CFLLRegressor

QUICK = "--quick" in sys.argv  # fewer chunks, to see that it runs
n_first, n_chunks, size = (500, 20, 50) if QUICK else (3_000, 80, 100)

random = np.random.default_rng(0)
X = random.uniform(-1, 1, size=(n_first + n_chunks * size, 6))
before = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2]
after = np.sin(3 * X[:, 0]) - X[:, 1] * X[:, 2] + X[:, 3]
drift = n_first + n_chunks // 2 * size
y = np.where(np.arange(len(X)) < drift, before, after)
y = y + 0.1 * random.normal(size=len(X))

# %%
# Streaming
# ---------
# After `fit` the backbone stays as it is (`stream_epochs="auto"`). Only the head moves.

fitted = CFLLRegressor(MLP(width=128, embedding=None), random_state=0)
fitted.fit(X[:n_first], y[:n_first])
memory = 200 if QUICK else 500
models = {
    "not updated": None,
    "all rows alike": 1.0,
    f"memory of {memory} rows": 1 - 1 / memory,
}
errors = {}
for name, forgetting in models.items():
    model = copy.deepcopy(fitted)
    if forgetting is not None:
        model.set_params(forgetting=forgetting)
    errors[name] = []
    for i in range(n_chunks):
        rows = slice(n_first + i * size, n_first + (i + 1) * size)
        errors[name].append(np.mean((model.predict(X[rows]) - y[rows]) ** 2))
        if forgetting is not None:
            model.partial_fit(X[rows], y[rows])

half, quarter = n_chunks // 2, n_chunks // 4
print(f"{'mean squared error':24s} before the drift   last quarter")
for name, values in errors.items():
    early, late = np.mean(values[:half]), np.mean(values[-quarter:])
    print(f"{name:24s} {early:16.4f}   {late:12.4f}")
print("The noise alone has 0.0100.")

# %%
# Errors of each chunk before it was learnt
# -----------------------------------------

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, values in errors.items():
    axes.plot(np.arange(n_chunks) * size, values, label=name)
axes.axvline(half * size, color="grey", linestyle=":", label="drift")
axes.set(
    xlabel="rows of the stream",
    ylabel="mean squared error of the next chunk",
    title="Head updated in closed form on a stream that drifts",
    yscale="log",
)
axes.legend()
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_streaming.png", dpi=150)
