"""What the comparisons of settings share: fits that are kept in a file, and ratios."""

import json
from pathlib import Path

import numpy as np
from _command_line import named_splits, table_parser
from peers import class_scores, clock, join_training_rows, regression_scores

from sklearn_cfll import CFLLClassifier, CFLLRegressor

KEY = ["table", "rows", "seed", "setting"]
LEAST_ERROR = 1e-3  # a classifier that is always right is as good as this


def settings_parser(description, settings):
    """Return a parser with the options of a comparison of settings, given by name."""
    parser = table_parser(
        description,
        sets=None,
        rows=8_000,
        seeds=3,
        output="file of results, a line of JSON each",
    )
    parser.add_argument(
        "--settings", nargs="+", choices=settings, default=list(settings)
    )
    return parser


def look_quickly(arguments):
    """Make the options those of a quick look."""
    arguments.rows, arguments.seeds = 400, 1
    arguments.sets = ["diabetes", "digits"]


def fit_and_score(split, seed, parameters):
    """Fit once; return the errors on the test rows with the seconds, and the model."""
    classes = split.task == "classification"
    kind = CFLLClassifier if classes else CFLLRegressor
    model = kind(random_state=seed, **parameters)
    _, _, seconds = clock(model.fit, *split.train)
    X, y = split.test
    if classes:
        scores = class_scores(y, model.predict_proba(X))
    else:
        scores = regression_scores(y, model.predict(X))
    return scores | {"seconds": seconds}, model


def read_lines(path):
    """Return the fits that a file holds."""
    if path is None or not Path(path).exists():
        return []
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run_missing(arguments, fit):
    """Return the fits that the file holds, with those that it hadn't.

    `fit` takes a split, a seed and the name of a setting, and returns measures.
    """
    # No setting is charged for imports.
    CFLLRegressor(max_epochs=1).fit(np.eye(20), np.arange(20.0))
    lines = read_lines(arguments.output)
    done = {tuple(line[name] for name in KEY) for line in lines}
    for split, seed in named_splits(arguments):
        split = join_training_rows(split)
        keys = [(split.name, arguments.rows, seed, s) for s in arguments.settings]
        for key in [key for key in keys if key not in done]:
            measures = fit(split, seed, key[-1])
            lines.append(dict(zip(KEY, key, strict=True)) | measures)
            if arguments.output:
                with Path(arguments.output).open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    return lines


def ratios(results, measures, settings):
    """Return, for each setting, ratios to the first, and the error's by table."""
    settings = [name for name in settings if name in set(results["setting"])]
    results = results.assign(error=results["error"].clip(lower=LEAST_ERROR))
    logs = np.log(results.set_index(KEY)[measures].astype(float))
    gains = logs - logs.xs(settings[0], level="setting")
    by_table = gains.groupby(level=["setting", "table"]).mean()
    means = by_table.groupby(level="setting").mean().loc[settings]
    spread = by_table["error"].groupby(level="setting").sem().loc[settings]
    tables = np.exp(by_table["error"]).unstack("table").loc[settings]
    return np.exp(means).assign(spread=spread), tables
