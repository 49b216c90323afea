"""Other ways to a structural function: least squares, networks, the published form."""

import functools
import itertools
import math

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import nn

from sklearn_cfll import CFLLIVRegressor, CFLLRegressor, TorchBackbone

MOST_TERMS = 0.4  # of the rows: polynomials with more can't be told apart


def layers(*sizes):
    """Return linear layers with ReLU between them."""
    pairs = list(itertools.pairwise(sizes))
    parts = [part for i, o in pairs for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


# Two-stage least squares ------------------------------------------------------------


def fit_polynomials(data, rows, degree):
    """Fit 2SLS on polynomials of the treatments, covariates and instruments."""
    own = data.X[:, data.n_endogenous :]
    inputs = np.column_stack([data.instruments, own])
    bases = []
    for columns in (data.X, inputs):
        scale = StandardScaler()
        powers = PolynomialFeatures(degree, include_bias=False)
        basis = make_pipeline(scale, powers, StandardScaler()).fit(columns[rows])
        bases.append(basis)

    def terms(basis, columns):
        return np.column_stack([np.ones(len(columns)), basis.transform(columns)])

    second, first = terms(bases[0], data.X[rows]), terms(bases[1], inputs[rows])
    projection = np.linalg.lstsq(first, second)[0]
    coefficients = np.linalg.lstsq(first @ projection, data.y[rows], rcond=1e-8)[0]
    reduced = projection @ coefficients
    return (
        lambda X: terms(bases[0], X) @ coefficients,
        lambda held: terms(bases[1], inputs[held]) @ reduced,
    )


def possible_degrees(data, most=6):
    """Return the degrees of which the rows determine all terms."""
    n_inputs = data.instruments.shape[1] + data.X.shape[1] - data.n_endogenous
    columns = max(n_inputs, data.X.shape[1])
    return [
        degree
        for degree in range(1, most + 1)
        if degree == 1
        or math.comb(columns + degree, degree) <= MOST_TERMS * len(data.y)
    ]


def two_stage_polynomials(data, seed, quick=False):
    """Fit with the degree that predicts held-out targets best from instruments."""
    rows = np.arange(len(data.y))
    held, kept = np.split(
        np.random.default_rng(seed).permutation(rows), [len(rows) // 5]
    )
    losses = {}
    for degree in possible_degrees(data, 2 if quick else 6):
        reduced = fit_polynomials(data, kept, degree)[1]
        losses[degree] = np.mean((data.y[held] - reduced(held)) ** 2)
    # In the rows' own order, as of every other fit: sums round by it.
    return fit_polynomials(data, rows, min(losses, key=losses.get))[0]


def two_stage_best(data, seed, quick=False):
    """Fit with the degree that is best by the truth, which no user can know."""
    rows = np.arange(len(data.y))
    fits = [fit_polynomials(data, rows, d)[0] for d in possible_degrees(data)]
    errors = [np.mean((f(data.X_test) - data.structural) ** 2) for f in fits]
    return fits[int(np.argmin(errors))]


def two_stage_linear(data, seed, quick=False):
    """Fit linear 2SLS."""
    return fit_polynomials(data, np.arange(len(data.y)), 1)[0]


# Networks ---------------------------------------------------------------------------


class OuterProduct(nn.Module):
    """Products of features of the treatments and of the covariates.

    The networks are as in `CFLLIVRegressor`, without its linear path.
    """

    def __init__(self, n_features, n_endogenous):
        super().__init__()
        self.n_endogenous = n_endogenous
        n_own = n_features - n_endogenous
        self.treatment = layers(n_endogenous, 16, 4)
        self.covariate = None
        if n_own:
            widths = layers(n_own, 64, 32, 8)
            self.covariate = nn.Sequential(
                widths, nn.LayerNorm(8, elementwise_affine=False)
            )

    def forward(self, X):
        """Return the features, (n, d)."""
        treatment = self.treatment(X[:, : self.n_endogenous])
        if self.covariate is None:
            return treatment
        return products(treatment, self.covariate(X[:, self.n_endogenous :]))


def products(left, right):
    """Return the outer product of each row, ones appended to both sides."""
    left, right = (nn.functional.pad(part, (0, 1), value=1.0) for part in (left, right))
    return torch.einsum("ni,nj->nij", left, right).flatten(1)


def outer_network(data, seed, quick=False):
    """Train the outer product of networks without instruments."""
    scale = StandardScaler()
    backbone = TorchBackbone(
        OuterProduct, n_features=data.X.shape[1], n_endogenous=data.n_endogenous
    )
    model = CFLLRegressor(
        backbone, random_state=seed, max_epochs=3 if quick else "auto"
    )
    model.fit(scale.fit_transform(data.X), data.y)
    return lambda X: model.predict(scale.transform(X))


def plain_regressor(data, seed, quick=False):
    """Train the default regressor without instruments."""
    model = CFLLRegressor(random_state=seed, max_epochs=3 if quick else "auto")
    return model.fit(data.X, data.y).predict


def instrumental_regressor(data, seed, quick=False, **params):
    """Train `CFLLIVRegressor` with its defaults, or a parameter set."""
    model = CFLLIVRegressor(
        endogenous=list(range(data.n_endogenous)),
        random_state=seed,
        max_epochs=3 if quick else "auto",
        **params,
    )
    return model.fit(data.X, data.y, instruments=data.instruments).predict


# The published form -----------------------------------------------------------------


class FullBatch:
    """Deep feature IV on all rows at each step, with the published settings.

    Half of the rows serve stage 1 and half stage 2. A round is 20 steps on the
    instrument network, 20 on the covariate network and one on the treatment network,
    each by Adam on the regularised loss of its stage, where the ridge is solved anew
    and differentiated through. Networks, rounds and ridges are those of the low-dim
    demand experiment in the authors' repository (liyuan9988/DeepFeatureIV, its
    ``final_configs/dfiv_low_dim``); columns are taken as they are, as there.

    References
    ----------
    Xu, Chen, Srinivasan, de Freitas, Doucet and Gretton (2021). Learning deep features
    in instrumental variable regression. ICLR. arXiv 2010.07154.
    """

    RIDGE = 0.1  # relative to the rows of each stage
    STEPS = 20
    COVARIATE_DECAY = 0.1

    def __init__(self, data, seed, rounds):
        self.n_endogenous = data.n_endogenous
        order = np.random.default_rng(seed).permutation(len(data.y))
        self.halves = [self._tensors(data, half) for half in np.array_split(order, 2)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build()
        self._train(rounds)

    def _build(self):
        X, own, inputs, _ = self.halves[0]
        self.treatment = layers(X.shape[1], 16, 1)
        self.instrument = layers(inputs.shape[1], 128, 64, 32).append(
            nn.BatchNorm1d(32)
        )
        self.covariate = None
        if own.shape[1]:
            self.covariate = nn.Sequential(
                *layers(own.shape[1], 128, 32), nn.BatchNorm1d(32), nn.ReLU(),
                nn.Linear(32, 16), nn.ReLU(),
            )  # fmt: skip

    def _tensors(self, data, rows):
        X, own = np.split(data.X[rows], [self.n_endogenous], axis=1)
        inputs = np.column_stack([data.instruments[rows], own])
        parts = X, own, inputs, data.y[rows, None]
        return [torch.as_tensor(part, dtype=torch.float32) for part in parts]

    def _train(self, rounds):
        adam = torch.optim.Adam
        instrument = adam(self.instrument.parameters())
        treatment = adam(self.treatment.parameters())
        covariate = None
        if self.covariate is not None:
            parameters = self.covariate.parameters()
            covariate = adam(parameters, weight_decay=self.COVARIATE_DECAY)
        for _ in range(rounds):
            self._set_training(self.instrument)
            self._steps(instrument, self._first_loss(), self.STEPS)
            if covariate is not None:
                self._set_training(self.covariate)
                self._steps(covariate, self._second_loss("covariate"), self.STEPS)
            self._set_training(self.treatment)
            self._steps(treatment, self._second_loss("treatment"), 1)
        self._set_training(None)
        with torch.no_grad():
            features = self._second_features(self._predicted())
            self.weight = self._ridge(features, self.halves[1][3])[0]

    def _set_training(self, network):
        for other in (self.treatment, self.instrument, self.covariate):
            if other is not None:
                other.train(other is network)

    @staticmethod
    def _steps(optimizer, loss, n_steps):
        for _ in range(n_steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    def _ridge(self, features, targets):
        """Return the ridge solution and its penalised loss."""
        penalty = self.RIDGE * len(features)
        gram = features.mT @ features + penalty * torch.eye(features.shape[1])
        weight = torch.linalg.solve(gram, features.mT @ targets)
        residuals = targets - features @ weight
        return weight, residuals.square().sum() + penalty * weight.square().sum()

    def _first_loss(self):
        X, _, inputs, _ = self.halves[0]
        with torch.no_grad():
            features = self.treatment(X)
        return lambda: self._ridge(with_one(self.instrument(inputs)), features)[1]

    def _predicted(self, first=None, second=None):
        """Predict the treatment features of stage 2's rows from its instruments."""
        X, _, inputs, _ = self.halves[0]
        first = with_one(self.instrument(inputs)) if first is None else first
        if second is None:
            second = with_one(self.instrument(self.halves[1][2]))
        return second @ self._ridge(first, self.treatment(X))[0]

    def _second_features(self, predicted, own=None):
        if self.covariate is None:
            return with_one(predicted)
        own = self.covariate(self.halves[1][1]) if own is None else own
        return products(predicted, own)

    def _second_loss(self, moving):
        """Return the loss of stage 2 as a function of one network alone."""
        y = self.halves[1][3]
        with torch.no_grad():
            first, second = (with_one(self.instrument(h[2])) for h in self.halves)
            own = None if self.covariate is None else self.covariate(self.halves[1][1])
            predicted = self._predicted(first, second)

        def loss():
            if moving == "covariate":
                features = self._second_features(predicted)
            else:
                features = self._second_features(self._predicted(first, second), own)
            return self._ridge(features, y)[1]

        return loss

    @torch.no_grad()
    def predict(self, X):
        """Predict the structural function."""
        X = torch.as_tensor(X, dtype=torch.float32)
        own = None
        if self.covariate is not None:
            own = self.covariate(X[:, self.n_endogenous :])
        features = self.treatment(X[:, : self.n_endogenous])
        return (self._second_features(features, own) @ self.weight)[:, 0].numpy()


def with_one(features):
    """Append a column of ones."""
    return nn.functional.pad(features, (0, 1), value=1.0)


def full_batch(data, seed, quick=False):
    """Train the published form."""
    return FullBatch(data, seed, rounds=2 if quick else 100).predict


# Name in the tables, and how a method is fitted: it returns the structural function.
METHODS = {
    "CFLLIVRegressor": instrumental_regressor,
    "ridge to zero": functools.partial(instrumental_regressor, shrink_to="zero"),
    "full batch": full_batch,
    "2SLS, polynomials": two_stage_polynomials,
    "2SLS, best degree": two_stage_best,
    "2SLS, linear": two_stage_linear,
    "outer product, no instruments": outer_network,
    "CFLLRegressor": plain_regressor,
}

# Not among those that are compared by default.
VARIANTS = {
    "sample splitting": functools.partial(
        instrumental_regressor, sample_splitting=True
    ),
}
