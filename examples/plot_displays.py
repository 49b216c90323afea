"""
Pictures of a fitted estimator
==============================

`sklearn_cfll.plot` has displays in scikit-learn's manner: `from_estimator` draws, and
gives back an object with the numbers, the axes and the lines.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_friedman1

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.plot import (
    AlphaPathDisplay,
    IntervalCalibrationDisplay,
    PredictionIntervalDisplay,
    TrainingCurveDisplay,
)

QUICK = "--quick" in sys.argv  # fewer rows and epochs, to see that it runs
N_TRAIN, N_TEST = (600, 300) if QUICK else (2_000, 1_000)

# %%
# A fit of two outputs: Friedman's function, and a noisier copy of it. A fifth of the
# rows is held out; with `store_loo` the path of `alpha` has leave-one-out errors, too.

X, y = make_friedman1(N_TRAIN + N_TEST, noise=1.0, random_state=0)
y = np.column_stack([y, y + 2 * np.random.default_rng(0).normal(size=len(y))])
train, test = slice(N_TRAIN), slice(N_TRAIN, None)
model = CFLLRegressor(
    max_epochs=5 if QUICK else 15,
    validation_fraction=0.2,
    store_loo=True,
    random_state=0,
).fit(X[train], y[train])

# %%
# Training, and the ridge
# -----------------------
# Losses of training rows are taken in passing, each batch under the head that has just
# been solved on it. The dotted line marks the epoch whose network was kept.
#
# The errors of the last head by its ridge: those of leave-one-out are lower than those
# of the held-out rows, as the backbone has learnt its features from these very rows.
# Whatever is drawn can be changed by the axes.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
training = TrainingCurveDisplay.from_estimator(model, ax=left)
path = AlphaPathDisplay.from_estimator(model, ax=right)
left.set_title("Training")
right.set_title("Ridge of the last head, first output")

# %%
# Predictions, and how often their intervals are right
# ----------------------------------------------------
# `output` chooses one of several. The conformal intervals of `predict_interval` hold
# about as many of the fresh rows as was asked for, give or take what chance makes of
# the held-out rows that they rest on: with 400, some points. `kind="std"` draws the
# Gaussian intervals of the standard deviations in their place.

below, (first, second) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
bars = PredictionIntervalDisplay.from_estimator(
    model, X[test], y[test], output=1, random_state=0, ax=first
)
conformal = IntervalCalibrationDisplay.from_estimator(
    model, X[test], y[test], output=1, name="conformal", ax=second
)
gaussian = IntervalCalibrationDisplay.from_estimator(
    model, X[test], y[test], output=1, kind="std", name="Gaussian", ax=second
)
first.set_title("90 % intervals, second output")
second.set_title("Calibration")
for display in (conformal, gaussian):
    gap = np.abs(display.coverage - display.nominal).max()
    print(f"{display.name}: coverage is off by {100 * gap:.1f} points at most")

if "sphinx_gallery" not in sys.modules:  # the gallery keeps the pictures itself
    figure.savefig("plot_displays_fit.png", dpi=150)
    below.savefig("plot_displays.png", dpi=150)
    print("The pictures are in plot_displays.png and plot_displays_fit.png.")
