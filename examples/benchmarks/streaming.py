"""How well rows are learnt that come in chunks and are seen no more.

The rows of each table come in chunks, each of which is predicted before it is learnt:
the errors are honest, and nothing else is needed to compare the ways. What is compared:

- auto: `partial_fit` of CFLL from the first chunk on, with the defaults;
- one pass: the same with `stream_epochs=1`;
- frozen: the same with `stream_epochs=0` from the second chunk on;
- MLP: scikit-learn's, with as many units, a rate of 3e-3, targets and columns scaled
  by the first chunk, three passes over each chunk;
- linear: ridge regression (`RidgeCV`) or logistic regression on all rows so far, which
  are kept for it.

Other ways of CFLL, by which the defaults were chosen, run where `--methods` names them:
"5 passes" and "10 passes" over the chunks after the first, and "fit first": `fit`
without held-out rows on the first chunk, whose `prox` and rate are annealed, in place
of `partial_fit` at a constant rate.

Errors are squared ones over the variance, or shares of wrong classes, of all chunks but
the first ("all"), and of the second half of them ("late").

Run it with ``python examples/benchmarks/streaming.py``; ``--help`` lists options.
"""

import time
import warnings

import numpy as np
import pandas as pd
from _command_line import made_folder, named_splits, table_parser
from _common import use_one_thread
from _tables import as_list_table
from peers import join_training_rows
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLClassifier, CFLLRegressor

METHODS = ["auto", "one pass", "frozen", "MLP", "linear"]

# What CFLL has from the second chunk on, where that isn't the default.
LATER = {
    "frozen": {"stream_epochs": 0},
    "5 passes": {"stream_epochs": 5},
    "10 passes": {"stream_epochs": 10},
    "fit first": {"stream_epochs": 3},
}
EVERY_METHOD = list(dict.fromkeys([*METHODS, *LATER]))


class Ours:
    """CFLL on a stream."""

    def __init__(self, classes, seed, *, later, **parameters):
        kind = CFLLRegressor if classes is None else CFLLClassifier
        self.model = kind(random_state=seed, **parameters)
        self.classes, self.later = classes, later

    def learn(self, X, y):
        """Take a chunk."""
        named = {} if self.classes is None else {"classes": self.classes}
        self.model.partial_fit(X, y, **named).set_params(**self.later)

    def predict(self, X):
        """Predict rows."""
        return self.model.predict(X)


class FitFirst(Ours):
    """CFLL on a stream whose first chunk is a fit."""

    def learn(self, X, y):
        """Take a chunk."""
        if hasattr(self.model, "net_"):
            super().learn(X, y)
        else:
            self.model.fit(X, y).set_params(**self.later)


class Perceptron:
    """scikit-learn's multi-layer perceptron on a stream."""

    def __init__(self, classes, seed, passes=3):
        kind = MLPRegressor if classes is None else MLPClassifier
        self.model = kind(
            hidden_layer_sizes=(256, 256), learning_rate_init=3e-3, random_state=seed
        )
        self.classes, self.passes, self.scaler = classes, passes, None

    def learn(self, X, y):
        """Take a chunk."""
        if self.scaler is None:
            self.scaler = StandardScaler().fit(X)
            if self.classes is None:
                self.mean, self.scale = y.mean(), y.std()
        X = self.scaler.transform(X)
        for _ in range(self.passes):
            if self.classes is None:
                self.model.partial_fit(X, (y - self.mean) / self.scale)
            else:
                self.model.partial_fit(X, y, classes=self.classes)

    def predict(self, X):
        """Predict rows."""
        guess = self.model.predict(self.scaler.transform(X))
        return guess * self.scale + self.mean if self.classes is None else guess


class Linear:
    """A linear model that is fitted again to all rows so far."""

    def __init__(self, classes, seed):
        self.rows = []
        model = LogisticRegression(max_iter=200)
        if classes is None:
            model = RidgeCV(np.logspace(-3, 4, 15))
        self.model = make_pipeline(StandardScaler(), model)

    def learn(self, X, y):
        """Take a chunk."""
        self.rows.append((X, y))
        self.model.fit(*map(np.concatenate, zip(*self.rows, strict=True)))

    def predict(self, X):
        """Predict rows."""
        return self.model.predict(X)


def make(method, classes, seed, parameters):
    """Return one way of learning a stream."""
    if method == "MLP":
        return Perceptron(classes, seed)
    if method == "linear":
        return Linear(classes, seed)
    if method == "one pass":
        parameters = parameters | {"stream_epochs": 1}
    if method == "fit first":
        parameters = parameters | {"early_stopping": False}
    kind = FitFirst if method == "fit first" else Ours
    return kind(classes, seed, later=LATER.get(method, {}), **parameters)


def measure(split, seed, method, arguments):
    """Return a row of the results: errors before learning, and seconds."""
    X, y = split.train
    classes = np.unique(y) if split.task == "classification" else None
    chunks = np.array_split(np.arange(len(y)), max(2, len(y) // arguments.chunk))
    learner = make(method, classes, seed, arguments.settings)
    errors, start = [], time.process_time()
    for number, rows in enumerate(chunks):
        if number:
            predicted = learner.predict(X[rows])
            gap = predicted != y[rows]
            if classes is None:
                gap = (predicted - y[rows]) ** 2 / np.var(y)
            errors.append(gap)
        learner.learn(X[rows], y[rows])
    seconds = time.process_time() - start
    return {
        "table": split.name,
        "chunk": arguments.chunk,
        "seed": seed,
        "method": method,
        "all": np.concatenate(errors).mean(),
        "late": np.concatenate(errors[len(errors) // 2 :]).mean(),
        "seconds": seconds,
    }


def summarise(results):
    """Return, by table and method, mean errors as text, and ratios to CFLL's own."""
    values = ["all", "late", "seconds"]
    means = results.groupby(["table", "method"], sort=False)[values].mean()
    wide = means.unstack("method")
    methods = [name for name in EVERY_METHOD if name in wide["all"]]
    cells = pd.DataFrame({"table": wide.index})
    for name in methods:
        pairs = zip(wide["all", name], wide["late", name], strict=True)
        cells[name] = [f"{whole:.3f} / {late:.3f}" for whole, late in pairs]
    logs = np.log(means.clip(lower=1e-3))
    gains = np.exp(
        (logs - logs.xs(methods[0], level="method")).groupby("method").mean()
    )
    return cells, gains.loc[methods]


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=["diabetes", "digits"],
        rows=8_000,
        seeds=3,
        output="folder for streaming.csv and .rst",
    )
    parser.add_argument("--chunk", type=int, default=300, help="rows in a chunk")
    parser.add_argument("--methods", nargs="+", choices=EVERY_METHOD, default=METHODS)
    parsed = parser.parse_args(arguments)
    parsed.settings = {}
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.chunk = 500, 1, 100
        parsed.settings = {"max_epochs": 3}
    return parsed


def main():
    """Stream every table, then print and write errors and ratios."""
    arguments = parse_arguments()
    use_one_thread()
    # Three passes are not meant to converge, nor is every logistic regression.
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = pd.DataFrame(
        measure(join_training_rows(split), seed, method, arguments)
        for split, seed in named_splits(arguments)
        for method in arguments.methods
    )
    cells, gains = summarise(results)
    print(
        f"errors on chunks of {arguments.chunk} rows before they are learnt: all / late"
    )
    print(cells.to_string(index=False))
    print(f"ratios to {arguments.methods[0]}, geometric means over the tables")
    print(gains.round(2).to_string())
    if arguments.output:
        folder = made_folder(arguments.output)
        stem = f"streaming_{arguments.chunk}"
        results.to_csv(folder / f"{stem}.csv", index=False)
        title = f"Errors on chunks of {arguments.chunk} rows, all / late"
        text = as_list_table(cells, title)
        ratio = gains.map("{:.2f}".format).reset_index()
        text += "\n" + as_list_table(ratio, f"Ratios to {arguments.methods[0]}")
        (folder / f"{stem}.rst").write_text(text)


if __name__ == "__main__":
    main()
