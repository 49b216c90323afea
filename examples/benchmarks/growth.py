"""How the time and the memory of a fit grow with rows, outputs and features.

Each fit has a process of its own, which makes the data, fits once on a few rows, so
that all is loaded, and then measures one fit: processor seconds, and the peak of the
memory above what the process held with the data made.

1. Rows: the default regressor and the default classifier (two classes).
2. Outputs of the default regressor, and classes of the default classifier, but for a
   few epochs.
3. Features into the head: `MLP(width, depth=1)`, whose other layer costs little, for as
   few epochs.

The exponent is the slope of log seconds in log rows: one means proportional.

Run it with ``python examples/benchmarks/growth.py``; ``--help`` lists options. Memory
is read from /proc, which Linux has.
"""

import argparse
import json
import subprocess
import sys

import numpy as np
import pandas as pd
from _command_line import made_folder
from _common import use_one_thread
from _growth_report import LARGE, as_texts, draw, exponents
from _memory import measure
from _tables import as_list_table

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor

SWEEPS = {
    "rows": (10_000, 30_000, 100_000, 300_000, 1_000_000, 2_000_000),
    "outputs": (1, 10, 100, 1_000, 10_000),
    "classes": (2, 10, 100, 1_000, 5_000),
    "features": (256, 512, 1_024, 2_048, 4_096, 8_192),
}
# Rows of the other sweeps; more for classes, so that each has some.
FEW = {"outputs": 5_000, "classes": 20_000, "features": 5_000}
QUICK = {
    "rows": (500, 2_000),
    "outputs": (20,),
    "classes": (5,),
    "features": (64,),
}
FEW_QUICK = {"outputs": 300, "classes": 300, "features": 300}
TASKS = {
    "rows": ("regression", "classification"),
    "outputs": ("regression",),
    "classes": ("classification",),
    "features": ("regression",),
}


# Data -------------------------------------------------------------------------------


def make_data(task, rows, columns, outputs, kind="float32"):
    """Return X, made in place, and targets: numbers, or as many classes as outputs.

    `kind` is the dtype of X, or "frame" for a DataFrame of float64. Classes are ranges
    of a number, each of as many rows.
    """
    rng = np.random.default_rng(0)
    X = np.empty((rows, columns), np.float32 if kind == "float32" else np.float64)
    mix = (rng.standard_normal((columns, 16)) / np.sqrt(columns)).astype(X.dtype)
    classes = task == "classification"
    spread = rng.standard_normal((16, 1 if classes else outputs)) / 4
    y = np.empty((rows, spread.shape[1]))
    for start in range(0, rows, 10_000):  # no array of another size than X and y
        part = slice(start, start + 10_000)
        rng.standard_normal(out=X[part], dtype=X.dtype)
        y[part] = np.sin(3 * (X[part] @ mix)) @ spread
        y[part] += 0.3 * rng.standard_normal(y[part].shape)
    y = y[:, 0] if y.shape[1] == 1 else y
    if classes:
        y = np.searchsorted(np.quantile(y, np.arange(1, outputs) / outputs), y)
    if kind == "frame":  # columns of their own, as read from a file
        X = pd.DataFrame({f"x{j}": X[:, j] for j in range(columns)})
    return X, y


def make_model(task, features, epochs):
    """Return an estimator with its defaults, but for what is given."""
    options = {} if features is None else {"backbone": MLP(features, depth=1)}
    options |= {} if epochs is None else {"max_epochs": epochs}
    kind = CFLLRegressor if task == "regression" else CFLLClassifier
    return kind(random_state=0, **options)


# Measuring --------------------------------------------------------------------------


def fit_once(job):
    """Return what one fit takes; the process is used up by it."""
    use_one_thread()
    X, y = make_data(
        job["task"], job["rows"], job["columns"], job["outputs"], job["input"]
    )
    CFLLRegressor(max_epochs=1).fit(*make_data("regression", 300, 5, 1))
    CFLLClassifier(max_epochs=1).fit(*make_data("classification", 300, 5, 2))
    model = make_model(job["task"], job["features"], job["epochs"])
    measured = measure(lambda: model.fit(X, y))
    training = sum(model.history_[:, "dur"])
    return {**measured, "after": measured["wall"] - training, "epochs": model.n_iter_}


def fit_apart(job):
    """Measure a fit in a process of its own."""
    finished = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(finished.stdout)


def jobs(arguments):
    """Yield what to fit, sweep by sweep."""
    sizes = QUICK if arguments.quick else SWEEPS
    few = FEW_QUICK if arguments.quick else FEW
    for sweep in arguments.sweeps:
        for task in TASKS[sweep]:
            for size in arguments.sizes or sizes[sweep]:
                outputs = 2 if task == "classification" else 1
                yield {
                    "sweep": sweep,
                    "size": size,
                    "task": task,
                    "input": arguments.input,
                    "rows": size if sweep == "rows" else few[sweep],
                    "columns": arguments.columns,
                    "outputs": size if sweep in ("outputs", "classes") else outputs,
                    "features": size if sweep == "features" else None,
                    "epochs": None if sweep == "rows" else arguments.epochs,
                }


def measured(arguments, path):
    """Return all runs; those that the file at `path` has are not measured again."""
    runs = pd.read_csv(path) if path and path.exists() else pd.DataFrame()
    for job in jobs(arguments):
        key = [job["task"], job["sweep"], job["size"]]
        if len(runs) and (runs[["task", "sweep", "size"]] == key).all(axis=1).any():
            continue
        runs = pd.concat([runs, pd.DataFrame([{**job, **fit_apart(job)}])])
        line = "{task}, {size} {sweep}: {processor:.1f} processor s, {peak:.0f} MB"
        print(line.format(**runs.iloc[-1]), flush=True)
        if path:
            runs.to_csv(path, index=False)
    return runs


def main():
    """Fit at every size, then print and write tables and a picture."""
    arguments = parse_arguments()
    if arguments.job:
        print(json.dumps(fit_once(json.loads(arguments.job))))
        return
    folder = made_folder(arguments.output) if arguments.output else None
    runs = measured(arguments, folder and folder / "growth.csv")
    tables = as_texts(runs)
    for title, cells in tables.items():
        print(f"\n{title}\n{cells.to_string(index=False)}")
    print(f"\nexponents in rows, of all sizes and from {LARGE:,} on")
    for task, values in exponents(runs).items():
        print(f"{task}: {values[0]:.2f}, {values[1]:.2f}")
    if folder:
        rst = [as_list_table(cells, title) for title, cells in tables.items()]
        (folder / "growth.rst").write_text("\n".join(rst))
        draw(runs, folder / "growth.png")


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=SWEEPS)
    parser.add_argument(
        "--sizes", nargs="+", type=int, help="in place of a sweep's own"
    )
    parser.add_argument("--columns", type=int, default=50)
    parser.add_argument(
        "--epochs", type=int, default=3, help="of all sweeps but that of rows"
    )
    parser.add_argument(
        "--input", default="float32", choices=("float32", "float64", "frame")
    )
    parser.add_argument("--quick", action="store_true", help="a quick look")
    parser.add_argument("--output", help="folder for growth.csv, .rst and .png")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
