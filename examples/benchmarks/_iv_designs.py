"""Designs with an endogenous treatment whose structural function is known."""

from dataclasses import dataclass

import numpy as np

from sklearn_cfll.datasets import demand_grid, make_demand


@dataclass
class Drawn:
    """Rows of a design: treatments first in `X`, and where estimates are judged."""

    X: np.ndarray
    instruments: np.ndarray
    y: np.ndarray
    n_endogenous: int
    X_test: np.ndarray
    structural: np.ndarray


def demand(n_samples, seed, rho, noise_scale):
    """Draw sales by price, time and sentiment, with the grid as test rows."""
    data = make_demand(n_samples, rho=rho, noise_scale=noise_scale, random_state=seed)
    return Drawn(data.X, data.instruments, data.y, 1, *demand_grid())


def several_treatments(n_samples, random):
    """Draw three treatments that four instruments move, with no covariates."""
    Z, shocks = random.normal(size=(n_samples, 4)), random.normal(size=(n_samples, 3))
    means = [
        Z[:, 0] + 0.5 * Z[:, 3],
        Z[:, 1] + 0.5 * Z[:, 0],
        Z[:, 2] + 0.5 * np.tanh(2 * Z[:, 3]),
    ]
    X = np.column_stack(means) + 0.7 * shocks
    bend = X[:, 1] * np.abs(X[:, 1]) / 2
    structural = 2 * np.sin(X[:, 0]) + bend + X[:, 0] * X[:, 2]
    error = 0.7 * shocks @ [1.0, 0.8, -0.6] + 0.5 * random.normal(size=n_samples)
    return X, Z, structural, error, 3


def weak_instruments(n_samples, random):
    """Draw a treatment of which thirty instruments explain a fifth, all alike."""
    Z = random.normal(size=(n_samples, 30))
    covariate = random.uniform(-3, 3, size=n_samples)
    shock = random.normal(size=n_samples)
    x = Z.sum(axis=1) * np.sqrt(0.25 / 30) + 0.3 * covariate + shock
    structural = np.log1p(np.exp(2 * x)) + 0.5 * x + np.sin(covariate)
    error = 0.8 * shock + 0.6 * random.normal(size=n_samples)
    return np.column_stack([x, covariate]), Z, structural, error, 1


def linear(n_samples, random):
    """Draw a linear model of two treatments, two covariates and three instruments."""
    Z, C = random.normal(size=(n_samples, 3)), random.normal(size=(n_samples, 2))
    shocks = random.normal(size=(n_samples, 2))
    by_instruments = Z @ [[0.8, 0.16], [0.4, 0.8], [-0.24, 0.48]]
    X = by_instruments + C @ [[0.3, -0.2], [0.1, 0.4]] + shocks
    structural = 1 + X @ [1.0, -2.0] + C @ [0.5, 1.5]
    error = shocks @ [0.7, 0.5] + 0.5 * random.normal(size=n_samples)
    return np.column_stack([X, C]), Z, structural, error, 2


def curve(function):
    """Return a draw of one curve, in the form of Bennett, Kallus and Schnabel (2019).

    Half of the treatment's variance is the error that y has, too. A second instrument
    moves nothing.
    """

    def draw(n_samples, random):
        Z = random.uniform(-3, 3, size=(n_samples, 2))
        error = random.normal(size=n_samples)
        x = Z[:, 0] + error + 0.1 * random.normal(size=n_samples)
        error = error + 0.1 * random.normal(size=n_samples)
        return x[:, None], Z, function(x), error, 1

    return draw


def bent_confounding(n_samples, random):
    """Draw an error that is a square of the shock, and its product with a covariate."""
    Z, shock = random.normal(size=(n_samples, 2)), random.normal(size=n_samples)
    covariate = random.uniform(-2, 2, size=n_samples)
    x = Z[:, 0] + 0.5 * np.tanh(2 * Z[:, 1]) * covariate + 0.7 * shock
    structural = np.sin(2 * x) + 0.5 * x * covariate
    error = shock**2 - 1 + shock * covariate + 0.3 * random.normal(size=n_samples)
    return np.column_stack([x, covariate]), Z, structural, error, 1


def heavy_tails(n_samples, random):
    """Draw a shock of Student's t with four degrees of freedom, three covariates."""
    Z, C = random.normal(size=(n_samples, 3)), random.normal(size=(n_samples, 3))
    shock = random.standard_t(4, size=n_samples)
    x = 0.8 * Z.sum(axis=1) / np.sqrt(3) + 0.3 * C[:, 0] + shock
    structural = np.abs(x) + C[:, 1] * np.tanh(C[:, 2])
    error = random.normal(size=n_samples) - 1.2 * shock
    return np.column_stack([x, C]), Z, structural, error, 1


def fresh_rows(draw, n_samples, seed):
    """Draw rows, and 3,000 others of the same treatments to judge estimates on."""
    X, Z, structural, error, n_endogenous = draw(
        n_samples, np.random.default_rng([seed, 0])
    )
    X_test, _, truth, *_ = draw(3_000, np.random.default_rng([seed, 1]))
    return Drawn(X, Z, structural + error, n_endogenous, X_test, truth)


OTHERS = {
    "M": ("several treatments", several_treatments),
    "W": ("weak instruments", weak_instruments),
    "L": ("linear", linear),
    "A": ("absolute value", curve(np.abs)),
    "I": ("sine", curve(np.sin)),
    "J": ("jump", curve(lambda x: (x > 0).astype(float))),
    "B": ("bent confounding", bent_confounding),
    "H": ("heavy tails", heavy_tails),
}

# Name: what it is, and how it is drawn from a number of rows, a seed and rho.
DESIGNS = {
    "S": ("demand, small error", lambda n, s, rho=0.5: demand(n, s, rho, 1.0)),
    "C": ("demand, confounded", lambda n, s, rho=0.9: demand(n, s, rho, 50.0)),
    **{
        name: (words, lambda n, s, draw=draw: fresh_rows(draw, n, s))
        for name, (words, draw) in OTHERS.items()
    },
}
