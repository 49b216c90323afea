"""What a default is worth: the estimators with one setting changed at a time.

Every setting gets the same rows, four fifths of a table, of which it holds out its own,
and is judged on the other fifth: the squared error relative to the variance, or the
share of wrong classes, the log loss, and the processor seconds of the fit. Shown are
ratios to the first setting: geometric means over the tables, of which each is the
geometric mean over its seeds, and the standard error of the error's logarithm over the
tables.

Run it with ``python examples/benchmarks/defaults.py``; ``--help`` lists options. With
``--output`` each fit is kept as a line, and those that are there are not run again.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from _command_line import named_splits, table_parser
from _common import use_one_thread
from peers import class_scores, clock, join_training_rows, regression_scores

from sklearn_cfll import MLP, CFLLClassifier, CFLLRegressor

SETTINGS = {
    "default": {},
    "embedding=None": {"backbone": MLP(embedding=None)},
    "n_frequencies=8": {"backbone": MLP(n_frequencies=8)},
    "embedding_size=7": {"backbone": MLP(embedding_size=7)},
    "frequency_scale=0.1": {"backbone": MLP(frequency_scale=0.1)},
    "frequency_scale=0.2": {"backbone": MLP(frequency_scale=0.2)},
    "width=128": {"backbone": MLP(width=128)},
    "dropout=0.1": {"backbone": MLP(dropout=0.1)},
    "lr=0.01": {"lr": 0.01},
    "alpha=0.1": {"alpha": 0.1},
}
KEY = ["table", "rows", "seed", "setting"]
MEASURES = ["error", "log_loss", "seconds"]
LEAST_ERROR = 1e-3  # a classifier that is always right is as good as this


def fit_and_score(split, seed, setting, max_epochs):
    """Return the measures of one fit."""
    classes = split.task == "classification"
    kind = CFLLClassifier if classes else CFLLRegressor
    model = kind(random_state=seed, max_epochs=max_epochs, **SETTINGS[setting])
    _, _, seconds = clock(model.fit, *split.train)
    X, y = split.test
    if classes:
        scores = class_scores(y, model.predict_proba(X))
    else:
        scores = regression_scores(y, model.predict(X))
    return scores | {"seconds": seconds}


def ratios(results):
    """Return, for each setting, ratios to the first, and the error's by table."""
    results = results.assign(error=results["error"].clip(lower=LEAST_ERROR))
    logs = np.log(results.set_index(KEY)[MEASURES].astype(float))
    settings = list(dict.fromkeys(results["setting"]))
    gains = logs - logs.xs(settings[0], level="setting")
    by_table = gains.groupby(level=["setting", "table"]).mean()
    means = by_table.groupby(level="setting").mean().loc[settings]
    spread = by_table["error"].groupby(level="setting").sem().loc[settings]
    summary = np.exp(means).assign(spread=spread)
    tables = np.exp(by_table["error"]).unstack("table").loc[settings]
    return summary, tables


def read_lines(path):
    """Return the fits that a file holds."""
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def parse_arguments(arguments=None):
    """Read the command line."""
    parser = table_parser(
        __doc__,
        sets=None,
        rows=8_000,
        seeds=3,
        output="file of results, a line of JSON each",
    )
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS)
    )
    parsed = parser.parse_args(arguments)
    parsed.max_epochs = "auto"
    if parsed.quick:
        parsed.rows, parsed.seeds, parsed.max_epochs = 400, 1, 3
        parsed.sets = ["diabetes", "digits"]
        parsed.settings = ["default", "width=128"]
    return parsed


def main():
    """Fit with every setting on every table and seed, then print the ratios."""
    arguments = parse_arguments()
    use_one_thread()
    lines = read_lines(arguments.output)
    done = {tuple(line[name] for name in KEY) for line in lines}
    for split, seed in named_splits(arguments):
        split = join_training_rows(split)
        for setting in arguments.settings:
            key = split.name, arguments.rows, seed, setting
            if key in done:
                continue
            scores = fit_and_score(split, seed, setting, arguments.max_epochs)
            lines.append(dict(zip(KEY, key, strict=True)) | scores)
            if arguments.output:
                with Path(arguments.output).open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    results = pd.DataFrame(lines)
    results = results[results["setting"].isin(arguments.settings)]
    summary, tables = ratios(results)
    print(summary.round(3).to_string())
    print(tables.T.round(2).to_string())


if __name__ == "__main__":
    main()
