"""Our defaults against those of other estimators: nothing is tuned.

Every estimator gets the same rows: four fifths of a table to train on, of which each
holds out what it wants, and a fifth to be tested on. Numeric columns are imputed and
standardised, the others one-hot encoded; all get this one float32 matrix and one
thread. What is compared:

- CFLL: `CFLLRegressor` or `CFLLClassifier`;
- CFLL_4: the mean of four of these, by scikit-learn's bagging without resampling;
- MLP: scikit-learn's, with early stopping;
- HistGB: scikit-learn's gradient boosting;
- skorch: the backbone of CFLL end to end with AdamW, a rate of 3e-3, at most 30 epochs,
  early stopping on a tenth of the rows;
- RealMLP_TD_S, RealMLP_TD and TabM_D: pytabkit's.

Each run is a line of peers.jsonl in the folder of --output, and one that is there is
not run again: methods, tables and seeds can be added later. ``--report FOLDER`` runs
nothing and writes tables and a picture of the runs that are there. Its times are those
of the processor, which other processes on the machine disturb less than those of the
clock; the file has both.

Run it with ``python examples/benchmarks/peers.py``; ``--help`` lists options.
"""

import argparse
import itertools
import json
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
from _common import load_table, split_table, table_names, use_one_thread
from _peer_models import METHODS, installed_version, make_model, one_quiet_thread
from sklearn.metrics import log_loss, r2_score

import sklearn_cfll

# Probabilities are kept this far from zero, the same for all.
LEAST_PROBABILITY = 1e-7
KEY = ("table", "rows", "seed", "method", "label")

# Those of --quick, of packages that the tests have.
QUICK_METHODS = ("CFLL", "CFLL_4", "MLP", "HistGB", "skorch")


def join_training_rows(split):
    """Return the split with its validation rows among its training rows."""
    parts = zip(split.train, split.validation, strict=True)
    return replace(split, train=tuple(np.concatenate(part) for part in parts))


def clock(function, *arguments):
    """Call; return the result, the seconds, and those of the processor."""
    start = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - start[0], time.process_time() - start[1]


def measure(method, split, seed):
    """Fit and test one estimator; return what is measured, by name."""
    model = make_model(method, split, seed)
    X_test, y_test = split.test
    classes = split.task == "classification"
    with one_quiet_thread():
        _, *fit = clock(model.fit, *split.train)
        guess = model.predict_proba if classes else model.predict
        predicted, *predict = clock(guess, X_test)
    predicted = np.asarray(predicted, dtype=float)
    scores = class_scores if classes else regression_scores
    return {
        **scores(y_test, predicted),
        "fit_seconds": fit[0],
        "fit_cpu_seconds": fit[1],
        "predict_seconds": predict[0],
        "predict_cpu_seconds": predict[1],
    }


def regression_scores(y, predicted):
    """Return R2, and the squared error relative to the variance."""
    score = r2_score(y, predicted.reshape(len(y)))
    return {"score": score, "error": 1 - score, "log_loss": None}


def class_scores(y, probabilities):
    """Return the accuracy, the share of wrong classes and the log loss."""
    score = float(np.mean(probabilities.argmax(axis=1) == y))
    probabilities = np.maximum(probabilities, LEAST_PROBABILITY)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    loss = log_loss(y, probabilities, labels=range(probabilities.shape[1]))
    return {"score": score, "error": 1 - score, "log_loss": float(loss)}


def describe(split):
    """Return the sizes of a split, by name."""
    classes = split.task == "classification"
    return {
        "task": split.task,
        "n_train": len(split.train[1]),
        "n_test": len(split.test[1]),
        "n_columns": split.train[0].shape[1],
        "n_classes": int(split.train[1].max()) + 1 if classes else 0,
    }


def warm_up(method, split, seed):
    """Fit a few rows, so that no run is charged for imports."""
    X, y = split.train
    rows = np.random.default_rng(0).permutation(len(y))[:200]
    if split.task == "classification":  # no class left out
        rows = np.union1d(rows, np.unique(y, return_index=True)[1])
    with one_quiet_thread():
        make_model(method, split, seed).fit(X[rows], y[rows])


class Runs:
    """The file of results, a line each."""

    def __init__(self, folder):
        self.path = Path(folder) / "peers.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.lines = [json.loads(line) for line in lines]
        self.keys = {tuple(line[name] for name in KEY) for line in self.lines}

    def add(self, line):
        """Append a line to the file."""
        self.lines.append(line)
        self.keys.add(tuple(line[name] for name in KEY))
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def run_all(arguments):
    """Run what is asked for and isn't there."""
    runs = Runs(arguments.output)
    for method in arguments.methods:
        if not installed_version(method):
            print(f"{method} is left out: {METHODS[method][0]} is not installed.")
    methods = [m for m in arguments.methods if installed_version(m)]
    warm = set()
    for seed, name in itertools.product(arguments.seeds, arguments.sets):
        ours = {m for m in methods if METHODS[m][0] == "sklearn-cfll"}
        labels = {m: arguments.label if m in ours else "" for m in methods}
        keys = [(name, arguments.rows, seed, m, labels[m]) for m in methods]
        missing = [key for key in keys if key not in runs.keys]
        if not missing:
            continue
        table = load_table(name, arguments.data)
        split = join_training_rows(split_table(table, arguments.rows, seed))
        for key in missing:
            line = dict(zip(KEY, key, strict=True)) | describe(split)
            line["version"] = installed_version(line["method"])
            line |= try_to_measure(line["method"], split, seed, warm)
            runs.add(line)
            print(as_line(line), flush=True)


def try_to_measure(method, split, seed, warm):
    """Measure after a warm-up if it is the first time; a failure is a result, too."""
    try:
        if method not in warm:
            warm_up(method, split, seed)
            warm.add(method)
        return measure(method, split, seed)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def as_line(line):
    """Return one run as a line to read."""
    start = f"{line['table']:24} {line['seed']} {line['method']:14}"
    if "failed" in line:
        return f"{start} failed: {line['failed']}"
    loss = "" if line["log_loss"] is None else f" log loss {line['log_loss']:.4f}"
    seconds = f"{line['fit_cpu_seconds']:8.2f} s"
    return f"{start} {line['score']:.4f} {seconds}{loss}"


def by_size(names, folder, rows):
    """Sort tables by the number of cells that are used of them."""
    sizes = {}
    for name in names:
        n_rows, n_columns = load_table(name, folder).X.shape
        sizes[name] = min(n_rows, rows) * n_columns
    return sorted(names, key=sizes.get)


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder of NAME.parquet with `__target__`")
    parser.add_argument("--sets", nargs="+", help="names of tables; default: all")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, help="default: all", metavar="NAME"
    )
    parser.add_argument("--rows", type=int, default=20_000, help="at most so many")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0", metavar="SEED"
    )
    parser.add_argument(
        "--label", help="name of this version of CFLL; default: its version"
    )
    parser.add_argument("--output", default="peers", help="folder of peers.jsonl")
    parser.add_argument(
        "--report", metavar="FOLDER", help="write tables and picture of what is there"
    )
    parser.add_argument("--name", default="peers", help="stem of the report's files")
    parser.add_argument("--quick", action="store_true", help="a minute's look")
    return parser.parse_args(arguments)


def complete(arguments):
    """Fill in what to run where the command line doesn't say it."""
    if arguments.quick:
        arguments.sets = arguments.sets or ["diabetes", "breast_cancer"]
        arguments.methods = arguments.methods or [*QUICK_METHODS]
    arguments.methods = arguments.methods or list(METHODS)
    arguments.seeds = arguments.seeds or [0]
    arguments.label = arguments.label or sklearn_cfll.__version__
    if not arguments.sets:
        names = table_names(arguments.data)
        arguments.sets = by_size(names, arguments.data, arguments.rows)


def main():
    """Run what is missing, or report what is there."""
    arguments = parse_arguments()
    if arguments.report:
        from _peers_report import write  # matplotlib is needed here alone

        write(Runs(arguments.output).lines, arguments)
        return
    use_one_thread()
    complete(arguments)
    run_all(arguments)


if __name__ == "__main__":
    main()
