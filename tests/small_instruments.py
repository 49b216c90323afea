"""Data with instruments, and estimators that fit them in a fraction of a second."""

from __future__ import annotations

import numpy as np
from torch import nn

from sklearn_cfll import CFLLIVRegressor, SmallMLP, TorchBackbone

IDENTITY = TorchBackbone(nn.Identity)


def two_stage_least_squares(endogenous=None, **params):
    """Make the estimator that is plain two-stage least squares."""
    settings = {"alpha": 0, "instrument_alpha": 0, "combine": "concatenate", **params}
    return CFLLIVRegressor(
        IDENTITY,
        instrument_backbone=IDENTITY,
        covariate_backbone=IDENTITY,
        endogenous=endogenous,
        **settings,
    )


def small(**params):
    """Make an estimator that is trained, but not for long."""
    settings = {
        "backbone": SmallMLP((8, 3)),
        "instrument_backbone": SmallMLP((16, 8), normalize=True),
        "covariate_backbone": SmallMLP((8, 4), normalize=True),
        "endogenous": [0],
        "max_epochs": 15,
        "n_estimators": 2,
        "random_state": 0,
    }
    return CFLLIVRegressor(**{**settings, **params})


def confounded(n_rows=400, seed=0, strength=1.0):
    """Draw a curve of one endogenous column, an exogenous one, and two instruments.

    Returns
    -------
    X, Z, y, f : arrays
        The structural f is ``|x| + w / 2``; the error is correlated with x.
    """
    random = np.random.default_rng(seed)
    Z = random.normal(size=(n_rows, 2))
    w, hidden = random.normal(size=(2, n_rows))
    x = strength * (Z[:, 0] + 0.5 * Z[:, 1]) + 0.3 * w + hidden
    f = np.abs(x) + 0.5 * w
    y = f + hidden + 0.1 * random.normal(size=n_rows)
    return np.column_stack([x, w]), Z, y, f
