"""
A thousand new targets on a trained backbone
============================================

A network is trained on one target. Then a thousand others, of the same rows, get a head
each by `refit_head`: one pass over the rows and one solve, without training. How well
that does depends on what the targets share; here all are mixtures of the same six
hidden functions of the columns, and none of them is seen by the backbone but the first.
"""

import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from sklearn_cfll import MLP, CFLLRegressor

QUICK = "--quick" in sys.argv  # few rows and targets, to see that it runs
n_rows, n_targets = (1_000, 50) if QUICK else (20_000, 1_000)

random = np.random.default_rng(0)
X = random.normal(size=(n_rows + 2_000, 10))
hidden = np.tanh(X @ random.normal(size=(10, 6))) ** 2
targets = hidden @ random.normal(size=(6, n_targets + 1))
targets += 0.1 * targets.std(axis=0) * random.normal(size=targets.shape)
X_train, X_test = X[:n_rows], X[n_rows:]
first, others = targets[:, 0], targets[:, 1:]

# %%
# Training on the first target, and heads for the others
# ------------------------------------------------------
# Every new output has a ridge of its own, chosen by leave-one-out over a sample of the
# rows. The first call of `refit_head` also warms the machine up, so the second one is
# timed. The original model stays as it was.

max_epochs = 20 if QUICK else "auto"
model = CFLLRegressor(MLP(embedding=None), max_epochs=max_epochs, random_state=0)
start = time.perf_counter()
model.fit(X_train, first[:n_rows])
fit_seconds = time.perf_counter() - start

model.refit_head(X_train, others[:n_rows])
start = time.perf_counter()
many = model.refit_head(X_train, others[:n_rows])
refit_seconds = time.perf_counter() - start
print(f"fit of one target            {fit_seconds:8.2f} s")
print(f"heads of {n_targets:5d} more targets {refit_seconds:8.2f} s")
print(f"ratio                        {refit_seconds / fit_seconds:8.3f}")

# %%
# What the trained features are worth
# -----------------------------------
# Against a ridge regression on the columns, and against heads on the same network
# before any training (`partial_fit` without backbone steps builds it).

untrained = CFLLRegressor(MLP(embedding=None), stream_epochs=0, random_state=0)
untrained.partial_fit(X_train, first[:n_rows])
heads = {
    "ridge on the columns": Ridge().fit(X_train, others[:n_rows]),
    "untrained backbone": untrained.refit_head(X_train, others[:n_rows]),
    "backbone of one target": many,
}
scores = {
    name: r2_score(others[n_rows:], head.predict(X_test), multioutput="raw_values")
    for name, head in heads.items()
}
print(f"\n{'test R2 of the new targets':28s}  5 %   median   95 %")
for name, values in scores.items():
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    print(f"{name:28s} {low:5.2f}   {median:5.2f}   {high:5.2f}")
print(f"the first target: {model.score(X_test, first[n_rows:]):.2f} (at most 0.99)")

# %%
# Each new target's score
# -----------------------

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
bins = np.linspace(min(0, *map(np.min, scores.values())), 1, 60)
for name, values in scores.items():
    axes.hist(values, bins=bins, alpha=0.6, label=name)
axes.set(
    xlabel="test R2",
    ylabel="new targets",
    title=f"{n_targets} targets that the backbone was not trained on",
)
axes.legend()
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_new_targets.png", dpi=150)
