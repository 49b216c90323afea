"""
Demand whose price is not exogenous
===================================

What would sales be if the price were set from outside? Prices follow demand that isn't
observed, so that a regression of sales on the price answers another question: what are
sales where the price *was* found to be such. The cost of fuel moves the price and has
no other effect on sales, and serves as an instrument.

The data are simulated (:func:`~sklearn_cfll.datasets.make_demand`), and the structural
function is known. Four fits are compared: `CFLLIVRegressor`; `CFLLRegressor`, which
ignores the instrument; two-stage least squares with polynomials; and
`CFLLIVRegressor` with all rows at each step, the form in which deep feature IV was
published. Larger comparisons, with the published settings, are on the page of
benchmarks.
"""

import sys
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import nn

from sklearn_cfll import CFLLIVRegressor, CFLLRegressor, TorchBackbone
from sklearn_cfll.datasets import demand_grid, make_demand, structural_demand

QUICK = "--quick" in sys.argv  # fewer rows and epochs, to see that it runs

# %%
# Data
# ----
# The error is large here, and its correlation with the unobserved part of the price is
# 0.9. Time and sentiment are exogenous: they are in X, and needn't be among the
# instruments.

data = make_demand(
    300 if QUICK else 1_000, rho=0.9, noise_scale=50, as_frame=True, random_state=0
)
grid, truth = demand_grid()
print(data.X.join(data.instruments).join(data.y).head().to_string())

# %%
# Fits
# ----
# Polynomials are made beforehand, of the same degree for X and for the instruments; the
# degree is the one whose second stage predicts held-out sales best. The stages are
# those of `CFLLIVRegressor` with networks that do nothing and next to no ridge.

IDENTITY = TorchBackbone(nn.Identity)


def polynomials(degree):
    """Return terms of X and of the exogenous columns with the instrument."""
    own = data.X[["time", "sentiment"]]
    parts = []
    for columns in (data.X, data.instruments.join(own)):
        powers = PolynomialFeatures(degree, include_bias=False)
        scaled = make_pipeline(StandardScaler(), powers, StandardScaler())
        parts.append(scaled.fit(columns.to_numpy()))
    terms, instrument_terms = parts
    Z = instrument_terms.transform(data.instruments.join(own).to_numpy())
    return terms, terms.transform(data.X.to_numpy()), Z


def least_squares_error(degree):
    """Return the error of the second stage on a fifth of the rows."""
    _, X, Z = polynomials(degree)
    X, Z = (np.column_stack([np.ones(len(part)), part]) for part in (X, Z))
    held = np.arange(len(X)) % 5 == 0
    first = np.linalg.lstsq(Z[~held], X[~held])[0]
    second = np.linalg.lstsq(Z[~held] @ first, data.y[~held], rcond=1e-8)[0]
    return np.mean((data.y[held] - Z[held] @ first @ second) ** 2)


def two_stage_least_squares():
    """Fit with the best degree; return the structural function."""
    degree = min(range(1, 5), key=least_squares_error)
    terms, X, Z = polynomials(degree)
    model = CFLLIVRegressor(
        IDENTITY, instrument_backbone=IDENTITY, alpha=1e-8, instrument_alpha=1e-8
    ).fit(X, data.y, instruments=Z)
    return lambda rows: model.predict(terms.transform(rows))


def with_instruments(**settings):
    """Fit `CFLLIVRegressor`; return the structural function, and the model."""
    model = CFLLIVRegressor(endogenous="price", random_state=0, **settings)
    model.fit(data.X, data.y, instruments=data.instruments)
    return lambda rows: model.predict(named(rows)), model


def without_instruments():
    """Fit `CFLLRegressor`."""
    model = CFLLRegressor(random_state=0, max_epochs=5 if QUICK else "auto")
    model.fit(data.X, data.y)
    return lambda rows: model.predict(named(rows))


def named(rows):
    """Return rows with the names of the columns."""
    return type(data.X)(rows, columns=data.feature_names)


epochs = 20 if QUICK else "auto"
rounds = 3 if QUICK else "auto"
fits = {
    "CFLLIVRegressor": lambda: with_instruments(max_epochs=epochs)[0],
    "CFLLRegressor": without_instruments,
    "2SLS, polynomials": two_stage_least_squares,
    "full batch": lambda: with_instruments(
        batch_size="full", shrink_to="zero", max_epochs=rounds
    )[0],
}
predictions, seconds = {}, {}
for name, fit in fits.items():
    start = time.perf_counter()
    with warnings.catch_warnings():
        # The full-batch form memorises its rows here, and says so.
        warnings.simplefilter("ignore", UserWarning)
        predictions[name] = fit()
    seconds[name] = time.perf_counter() - start

errors = {name: np.mean((f(grid) - truth) ** 2) for name, f in predictions.items()}
print(f"{'squared error on the grid':26s}{'':8s}  seconds")
for name, error in errors.items():
    print(f"{name:26s}{error:8.0f}  {seconds[name]:7.1f}")
print(f"{'a constant':26s}{truth.var():8.0f}")

# %%
# Diagnostics
# -----------
# `summary` prints how well the instrument explains the price, whether the fit without
# instruments differs by more than chance, and how much of their own rows the stages
# have memorised.

model = with_instruments(max_epochs=epochs)[1]
print(model.summary())

# %%
# Demand curves
# -------------
# Sales by price at three times, with the largest sentiment. Without the instrument
# demand seems to fall less with the price, or to rise. At time 5 sales and prices have
# a narrow peak, which few rows show.

prices = np.linspace(10, 25, 60)
figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), layout="constrained")
for axis, moment in zip(axes, (2.0, 5.0, 8.0), strict=True):
    rows = np.column_stack([prices, np.full(60, moment), np.full(60, 7.0)])
    near = (abs(data.X["time"] - moment) < 0.3) & (data.X["sentiment"] >= 6)
    axis.plot(
        data.X["price"][near], data.y[near], ".", color="0.7", label="rows nearby"
    )
    axis.plot(prices, structural_demand(rows), "k--", label="truth")
    curves = [f(rows) for f in predictions.values()]
    for name, curve in zip(predictions, curves, strict=True):
        axis.plot(prices, curve, label=name)
    axis.set(title=f"time {moment:g}", xlabel="price", xlim=(9.5, 25.5))
    known = np.concatenate([structural_demand(rows), curves[0]])
    margin = 0.4 * np.ptp(known) + 50
    axis.set_ylim(known.min() - margin, known.max() + margin)
axes[0].set_ylabel("sales")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_iv_demand.png", dpi=150)
