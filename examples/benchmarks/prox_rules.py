"""Ways to set the pull to the last head: annealed, prequential, cross-validated.

`prox` says how strongly the head that is solved on a batch is pulled to the last one.
The rules compared, with a cosine schedule and all else at the
estimators' defaults:

- `(1, 100)`: annealed from 1 to 100, as by default in trainings of full length.
- `"auto"`: prequential; log prox follows how well each head predicts the next batch.
- GCV: the batch itself chooses, by generalized cross-validation over a grid.
- LOO: likewise, by exact leave-one-out.
- GCV, 0.1 and LOO, 0.1: log prox goes a tenth of the way to each batch's choice.

That a batch can choose its own penalty is the idea of slimTrain, which does it with a
memory of past batches and a penalty that accumulates [1]_; here a batch stands alone.

``prox_choices.py`` looks at the choices themselves.

Run it with ``python examples/benchmarks/prox_rules.py``; ``--help`` lists options.

.. [1] Newman, Chung, Chung, Ruthotto, "slimTrain: A Stochastic Approximation Method for
   Training Separable Deep Neural Networks", SIAM J. Sci. Comput. 44(4), 2022,
   arXiv 2109.14002.
"""

import time

import numpy as np
import pandas as pd
import torch
from _command_line import named_splits, table_parser
from _common import errors, use_one_thread
from time_to_quality import cfll_outputs

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.functional.ridge import feature_energy
from sklearn_cfll.head import as_rows
from sklearn_cfll.updates import HeadUpdate

# The range in which the prequential rule moves, eight values a decade.
GRID = torch.logspace(-1, 4, 41, dtype=torch.float64)


def cross_validate(features, residual, weight, alpha, prox):
    """Return a batch's mean squared errors by cross-validation at each `prox`.

    R is what the proximal head leaves of the batch's targets, H its hat matrix:
    generalized cross-validation is ``n ||R||^2 / trace(I - H)^2``, over k; for
    leave-one-out each row of R is divided by its own ``1 - H_ii``.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    residual : Tensor of shape (n, k)
        Targets less the last head's predictions.
    weight : Tensor of shape (d, k)
        The last head's.
    alpha : float
    prox : Tensor of shape (m,)

    Returns
    -------
    errors : dict of Tensor of shape (m,)
        By "GCV" and by "LOO".
    """
    n_rows = len(features)
    scale = n_rows * feature_energy(features)
    # alpha ||W||^2 + prox ||W - W0||^2 is, up to a constant, (alpha + prox) times
    # ||W - W0 prox / (alpha + prox)||^2: a pull to a shrunken head.
    shift, shrunken = scale * (alpha + prox), alpha / (alpha + prox)
    values, vectors = torch.linalg.eigh(features @ features.mT)
    ones = vectors.sum(0)  # all vectors below are in these coordinates
    rest = (vectors.mT @ residual)[..., None]
    rest = rest + shrunken * (vectors.mT @ (features @ weight))[..., None]
    # I - H without an intercept is M = shift (F F' + shift)^-1, which is diagonal here.
    # The intercept, pulled by prox alone, takes off a matrix of rank one:
    # M 1 1' M / (scale prox + 1' M 1).
    left = shift / (values.clamp_min(0)[:, None] + shift)
    left_ones = left * ones[:, None]
    divisor = scale * prox + ones @ left_ones
    share = torch.einsum("nm,nkm->km", left_ones, rest) / divisor
    rest = left[:, None] * rest - left_ones[:, None] * share
    rest = torch.einsum("ij,jkm->ikm", vectors, rest)
    diagonal = vectors.square() @ left - (vectors @ left_ones).square() / divisor
    return {
        "GCV": rest.square().mean((0, 1)) / diagonal.mean(0).square(),
        "LOO": (rest / diagonal[:, None]).square().mean((0, 1)),
    }


class BatchChoiceUpdate(HeadUpdate):
    """Proximal solve whose pull the batch itself chooses.

    Parameters
    ----------
    criterion : {"GCV", "LOO"}
    rate : float
        Share of the way, in log prox, that a batch's choice is followed; with one it
        rules alone.
    alpha : float, default=0.01
        As the estimators have it in the training.
    """

    def __init__(self, criterion, rate, alpha=1e-2):
        self.criterion = criterion
        self.rate = rate
        self.alpha = alpha
        self.logarithm = 0.0  # prox 1, where the other rules start, too

    @property
    def prox(self):
        """The pull of the last update."""
        return float(np.exp(self.logarithm))

    def start_(self, head, features, targets, sample_weight=None):
        """Give a head that is still zero its first solution."""
        head.slope = None
        if not head.weight.any():
            head.start_(features, targets, sample_weight, alpha=self.alpha)

    @torch.no_grad()
    def update_(self, head, features, targets, sample_weight=None, progress=0.0):
        """Choose the pull, then solve."""
        if sample_weight is not None:
            raise ValueError("BatchChoiceUpdate takes no sample_weight.")
        rows, outputs, _ = as_rows(features.detach(), targets)
        rows = rows.to(head.weight.dtype)
        residual = outputs - head(rows)
        errors = cross_validate(rows, residual, head.weight, self.alpha, GRID)
        choice = float(GRID[errors[self.criterion].argmin()].log())
        self.logarithm += self.rate * (choice - self.logarithm)
        head.update_(features, targets, alpha=self.alpha, prox=self.prox)


RULES = {
    "(1, 100)": {"prox": (1, 100)},
    '"auto"': {"prox": "auto"},
    "GCV": {"net_params": {"head_update": BatchChoiceUpdate("GCV", 1.0)}},
    "GCV, 0.1": {"net_params": {"head_update": BatchChoiceUpdate("GCV", 0.1)}},
    "LOO": {"net_params": {"head_update": BatchChoiceUpdate("LOO", 1.0)}},
    "LOO, 0.1": {"net_params": {"head_update": BatchChoiceUpdate("LOO", 0.1)}},
}


def fit(split, seed, **parameters):
    """Return an estimator, fitted with the validation rows held out."""
    parameters = {"prox": (1, 100), "lr_schedule": "cosine", **parameters}
    kind = CFLLRegressor if split.task == "regression" else CFLLClassifier
    X_val, y_val = split.validation
    model = kind(random_state=seed, **parameters)
    return model.fit(*split.train, X_val=X_val, y_val=y_val)


def run(split, rule, seed):
    """Fit by one rule; return a row of results."""
    start = time.process_time()
    model = fit(split, seed, **RULES[rule])
    seconds = time.process_time() - start
    X_test, y_test = split.test
    history = np.log(model.history_[:, "prox"])
    quarter = -(-len(history) // 4)
    return {
        "table": split.name,
        "seed": seed,
        "rule": rule,
        "error": errors(cfll_outputs(model, X_test), y_test, split.task)[0],
        "seconds": seconds,
        "epoch": seconds / model.n_iter_,
        # Medians over the ends of the first and of the last quarter of the epochs.
        "early prox": np.exp(np.median(history[:quarter])),
        "late prox": np.exp(np.median(history[-quarter:])),
    }


def geometric_mean(values):
    """Return the exponential of the mean logarithm."""
    return float(np.exp(np.log(values).mean()))


def summarise(results):
    """Return a table's mean error and mean prox by each rule, and the ratios.

    Returns
    -------
    errors, prox : DataFrame
        Tables by rules; of prox "early -> late", geometric means over the seeds.
    ratios : DataFrame
        Of each rule to the first: geometric means over the tables of the mean errors
        and of the mean seconds of a fit and of an epoch; and the tables in which the
        error is lower.
    """
    by_rule = {"index": "table", "columns": "rule", "sort": False}
    columns = ["error", "seconds", "epoch"]
    means = results.pivot_table(values=columns, aggfunc="mean", **by_rule)
    first = next(iter(RULES))
    prox = results.pivot_table(
        values=["early prox", "late prox"], aggfunc=geometric_mean, **by_rule
    ).map("{:.3g}".format)
    relative = {name: means[name].div(means[name][first], axis=0) for name in columns}
    ratios = pd.DataFrame({k: v.apply(geometric_mean) for k, v in relative.items()})
    ratios.insert(1, "standard error", np.log(relative["error"]).sem())
    ratios.insert(2, "better on", (relative["error"] < 1).sum())
    return means["error"], prox["early prox"] + " -> " + prox["late prox"], ratios


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__, rows=8_000, seeds=3, output="file for the results of each run, as CSV"
    )
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.sets, parsed.seeds = parsed.sets or ["diabetes", "breast_cancer"], 1
    return parsed


def _warm_up():
    """Fit once, since the first fit of a process is slow."""
    rng = np.random.default_rng(0)
    CFLLRegressor(max_epochs=1).fit(rng.standard_normal((300, 2)), rng.random(300))


def main():
    """Run every rule on every table and seed; print what came out."""
    arguments = parse_arguments()
    use_one_thread()
    rows = []
    _warm_up()
    for split, seed in named_splits(arguments):
        rows += [run(split, rule, seed) for rule in RULES]
    results = pd.DataFrame(rows)
    titles = ("Test error", "prox, early -> late", f"Ratios to {next(iter(RULES))}")
    for title, part in zip(titles, summarise(results), strict=True):
        print(f"{title}\n{part.round(4).to_string()}\n")
    if arguments.output:
        results.to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()
