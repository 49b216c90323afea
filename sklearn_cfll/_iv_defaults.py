"""Settings of the instrumental variable regressor, each with what chose it."""

from __future__ import annotations

import math

from sklearn_cfll.small_mlp import SmallMLP

# Weight decay of AdamW. Over ten designs the losses on rows that members haven't seen
# don't tell it from 0.3; with this f was nearer to the truth (docs/benchmarks).
WEIGHT_DECAY = 0.03

# Steps over which the rate rises: the first heads are solved on random features.
WARM_UP_STEPS = 20

# Ridges inside the training, relative to the mean feature energy.
ALPHA_IN_TRAINING = 1e-3
INSTRUMENT_ALPHA_IN_TRAINING = 1e-3

# Ridges of the final heads that "auto" tries, relative to the features' variance. The
# largest leave little but what is linear; noiseless data want the smallest.
INSTRUMENT_ALPHAS = tuple(10.0**exponent for exponent in range(-5, 4))
ALPHAS = tuple(10.0**exponent for exponent in range(-7, 4))

# Pull of each batch's heads to the last ones, from the first step to the last.
PROX = (1.0, 10.0)

# An F statistic of the first stage below this makes an instrument weak: Staiger and
# Stock, "Instrumental Variables Regression with Weak Instruments", Econometrica 65,
# 1997; Stock and Yogo, "Testing for Weak Instruments in Linear IV Regression", in
# Identification and Inference for Econometric Models, Cambridge 2005.
WEAK_F = 10.0

# A stage has memorised its rows if it leaves less than this share of what it leaves of
# the variance of rows that it hasn't seen; honest fits of 1,000 rows leave more.
MEMORISED = 0.5

# Fewer held-out rows than this tell nothing of memorising, nor which ridge is best.
FEW_HELD_OUT = 30

# Smaller tables are used whole by every member.
_HELD_OUT_ROWS = 100

# Smaller tables are where rounding shows, and float64 costs little.
FLOAT64_ROWS = 299

# Rows at most, evenly spaced, of what holds all their features in memory.
DIAGNOSTIC_ROWS = 50_000

# Numbers in the columns of the rows that instruments are tested on, which stand in
# memory several times; so many rows as above in any case.
_TESTED_NUMBERS = 2**26

# Where no row was held out: folds in which heads predict rows they weren't solved on.
FOLDS = 5

# Steps on the instrument network for each one on the others where all rows make a
# batch, and such rounds: those of the published method.
FULL_BATCH_INSTRUMENT_STEPS = 20
FULL_BATCH_ROUNDS = 100


def treatment_backbone(n_columns: int) -> SmallMLP:
    """Features of the endogenous columns, not normalised; more of several columns."""
    return SmallMLP((16, 4) if n_columns == 1 else (64, 16))


def instrument_backbone() -> SmallMLP:
    """Features of the instruments and the exogenous columns; more layers gain none."""
    return SmallMLP((64, 32), normalize=True)


def covariate_backbone() -> SmallMLP:
    """Features of the exogenous columns."""
    return SmallMLP((64, 32, 4), normalize=True)


def batch_size(n_rows: int) -> int:
    """Rows in a batch: all of few, and a quarter of many, 400 at most."""
    return min(n_rows, 400, max(64, n_rows // 4))


def max_epochs(n_rows: int, n_batches: int) -> int:
    """Epochs: 400 steps for up to 1,000 rows, and 900 for 5,000 and more."""
    steps = min(900, max(400, 400 + 500 * (n_rows - 1000) / 4000))
    return max(1, math.ceil(steps / n_batches))


def n_estimators(n_rows: int) -> int:
    """Members: the mean of five errs less, and each row is unseen by one of them."""
    return 5


def validation_fraction(n_rows: int, n_estimators: int) -> float:
    """Share of the rows that a member doesn't see: a fold each, a fifth at most."""
    if n_rows < _HELD_OUT_ROWS:
        return 0.0
    return math.ceil(n_rows * min(0.2, 1 / n_estimators) - 1e-9) / n_rows


def tested_rows(n_columns: int) -> int:
    """Rows that instruments are tested on at most, of columns of all kinds."""
    return max(DIAGNOSTIC_ROWS, _TESTED_NUMBERS // n_columns)
