"""
Error bars from the exact head
==============================

The last layer is the solution of a ridge problem, and so it has a posterior in closed
form. `predict(X, return_std=True)` gives its standard deviation with the noise,
`sample_y` draws from it, and `predict_interval` scales it so that intervals hold as
many targets as was asked for.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from sklearn_cfll import CFLLRegressor

QUICK = "--quick" in sys.argv  # fewer rows and epochs, to see that it runs

# %%
# Rows with a gap
# ---------------
# One column. There are no rows between 0.5 and 2, and none beyond -3 and 3.


def truth(x):
    return np.sin(2 * x) + 0.3 * x


def draw_rows(n, seed):
    random = np.random.default_rng(seed)
    x = random.uniform(-3, 3, size=2 * n)
    x = x[(x < 0.5) | (x > 2)][:n]
    return x[:, None], truth(x) + 0.2 * random.normal(size=len(x))


X, y = draw_rows(400 if QUICK else 1_000, 0)
model = CFLLRegressor(random_state=0, max_epochs=20 if QUICK else "auto").fit(X, y)

grid = np.linspace(-5, 5, 400)[:, None]
predictions, deviation = model.predict(grid, return_std=True)
draws = model.sample_y(grid, 4, random_state=0)
print(f"noise {model.noise_:.3f}, posterior scale {model.posterior_scale_:.3g}")
for place in (-1.0, 1.25, 5.0):
    spread = model.predict([[place]], return_std=True)[1][0]
    print(f"standard deviation at {place:5.2f}: {spread:.3f}")

# %%
# Intervals
# ---------
# The rows that were held out in fit say by how much standard deviations have to be
# multiplied for a coverage. On fresh rows of the same kind the intervals should hold as
# many targets. Other rows, such as those in the gap, are promised nothing.

X_test, y_test = draw_rows(5_000, 1)
levels = np.arange(0.1, 0.96, 0.05)
shares = []
for level in levels:
    low, high = model.predict_interval(X_test, level).T
    shares.append(np.mean((low <= y_test) & (y_test <= high)))
share = shares[int(np.argmin(abs(levels - 0.9)))]
print(f"90 % intervals hold {100 * share:.1f} % of {len(X_test)} fresh rows")

# %%
# The held-out rows also chose the epoch and the ridge. With `conformalize`, on rows
# that `fit` has not had, the coverage is exact on average over such rows.

X_calibration, y_calibration = draw_rows(200, 2)
model.conformalize(X_calibration, y_calibration)
low, high = model.predict_interval(X_test, 0.9).T
calibrated = np.mean((low <= y_test) & (y_test <= high))
print(f"calibrated on {len(X_calibration)} rows: {100 * calibrated:.1f} %")

# %%
# Pictures
# --------
# The band is narrow where rows are, and wider elsewhere. It stands for the head alone:
# how the features go on where there are no rows is not known to it, and it can be far
# too narrow there.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(2, 1)
)
left.scatter(X[:, 0], y, s=4, color="0.6", label="training rows")
left.plot(grid, truth(grid), "k--", linewidth=1, label="truth")
left.plot(grid, predictions, color="C0", label="prediction")
left.fill_between(
    grid[:, 0],
    predictions - 2 * deviation,
    predictions + 2 * deviation,
    color="C0",
    alpha=0.2,
    label="two standard deviations",
)
left.plot(grid, draws, color="C1", linewidth=0.4)
left.plot([], [], color="C1", linewidth=0.8, label="draws")
left.axvspan(0.5, 2, color="0.93", zorder=0)
left.set(xlabel="x", ylabel="y", ylim=(-5, 5), title="Prediction and posterior")
left.legend(loc="upper left", fontsize="small")
right.plot([0, 1], [0, 1], "k--", linewidth=1)
right.plot(levels, shares, marker="o", markersize=4)
right.set(
    xlabel="coverage asked for",
    ylabel="share of fresh targets within",
    title="Intervals",
    aspect="equal",
    xlim=(0, 1),
    ylim=(0, 1),
)
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_error_bars.png", dpi=150)
    print("The picture is in plot_error_bars.png.")
